"""Reading text in images: what every trained reader offers, and everything around it.

A project writes a *reader*: its preprocessing, model and decode rule (see `Reader`). `Recognizer` adds files, folders,
bytes, arrays, batches, devices, precision and progress; `open_recognizer` makes one from a checkpoint.

>>> recognizer = open_recognizer("best_score.pth")                      # doctest: +SKIP
>>> [(p.text, p.confidence) for p in recognizer(["a.jpg", "b.png"])]    # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import numpy as np
import torch

from common import registry
from common.data.decode import BadImage, decode_resized, resize_bicubic
from common.errors import UserError
from common.files import read_regular
from common.infer.images import KINDS, LONGEST_ASPECT, ImageLike, as_array, check_kind, find_images, is_image
from common.infer.options import open_with_options
from common.train.checkpoint import card_path, read_card
from common.train.distributed import choose_device

if TYPE_CHECKING:
    from common.infer.pages import Detector, Word

__all__ = ["LONGEST_ASPECT", "ImageLike", "Prediction", "Reader", "Recognizer", "as_array", "find_images"]


ENGINES = ("auto", "torch", "onnx", "int8")


@dataclass(frozen=True)
class Prediction:
    """What was read in one image.

    Attributes:
        text: the characters, possibly none.
        confidence: in [0, 1]; the project's own rule (usually the product of the steps' probabilities, end included).
        char_confidences: one probability for each character of `text` (an end token may follow).
        attention: float array [T, h, w], one map for each character, scaled as the reader likes; None if not asked for.
        extra: what a project wants to show next to it, for example {"char": …, "bpe": …} for several heads.
        error: why the image could not be read; the text is then empty and the confidence 0.
    """

    text: str
    confidence: float
    char_confidences: Sequence[float] = ()
    attention: np.ndarray | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@runtime_checkable
class Reader(Protocol):
    """The project's side. It may also offer, and `Recognizer`, `export` and the reports then use:

    - `prepare(image uint8 [h, w, 3]) -> uint8 [H, W, 3]`: fit a crop into the input, where that is not the bicubic
      resize to `image_size` (padding, keeping the ratio); called from several threads;
    - `settle(images, read) -> list[Prediction]`: read a batch with `read`, which may be that of an exported graph, as
      often as the reader likes (a second look at unsure words);
    - `codec`: what its ids stand for is written into an exported file;
    - `export_module() -> (module, decode)`: a module from uint8 [B, H, W, 3] to a tensor or tuple of tensors, free of
      loops over data, and `decode(list of numpy arrays) -> list[Prediction]`; raise `UserError` for a mode that cannot
      be;
    - `extras(images uint8 [B, H, W, 3]) -> dict[str, ndarray [B, h, w]]`: pictures for the report (glyph masks, maps).
    """

    image_size: tuple[int, int]
    charset: str
    device: torch.device

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """Read uint8 images [B, H, W, 3] that lie on `device`; called under inference mode and, if asked, autocast."""
        ...


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises `UserError` for a GPU that is not there."""
    return choose_device(name, 0)


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """The precision context of `--amp {no,fp16,bf16}` on this device."""
    if amp == "no":
        return contextlib.nullcontext()
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
    if amp not in kinds:
        raise UserError(f"--amp: {amp!r} is none of no, fp16, bf16")
    return torch.autocast(device.type, dtype=kinds[amp])


class Recognizer:
    """Reads images of any origin with a project's reader.

    Calls from several threads take turns.

    Args:
        reader: the project's side, on its device and in eval mode.
        batch_size: images per forward pass.
        amp: no (fp32, the precision that figures are stated for), fp16 or bf16.
        workers: threads that decode images.
        upright: turn files and bytes as their EXIF orientation says; the papers' loaders ignore it.
        published: decode files and bytes as the papers' loaders do: transparency is dropped, deep greys are clipped.
        second_look: let a reader that does so look at unsure words in several ways (`common.reader.looks`).
        name: the registry entry of the model, for `repr` and reports.
        source: the checkpoint that it was opened from.
        metadata: the metadata of that checkpoint.

    Attributes:
        bad: (name, reason) of every image that could not be read so far.
    """

    def __init__(
        self,
        reader: Reader,
        batch_size: int = 64,
        amp: str = "no",
        workers: int = 2,
        upright: bool = False,
        published: bool = False,
        second_look: bool = True,
        name: str = "",
        source: Path | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        for flag, value in (("--batch-size", batch_size), ("--workers", workers)):
            if value < 1:
                raise UserError(f"{flag}: {value} must be at least 1")
        autocast(torch.device("cpu"), amp)  # an unknown precision is refused before anything is read
        self.upright, self.published = upright, published
        inner = getattr(reader, "reader", reader)
        if not second_look:
            if not hasattr(inner, "second_look"):
                raise UserError("--single-look: this reader looks at every word once anyway; leave the flag away")
            inner.second_look = False
        self.reader, self.batch_size, self.amp, self.workers = reader, batch_size, amp, workers
        self.name, self.source, self.metadata = name or type(reader).__name__, source, dict(metadata or {})
        self.bad: list[tuple[str, str]] = []
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        height, width = self.image_size
        precision = "fp32" if self.amp == "no" else self.amp
        return (
            f"Recognizer({self.name}, {height}x{width}, {len(self.charset)} characters, {self.device}, {precision}, "
            f"batch_size={self.batch_size})"
        )

    @property
    def charset(self) -> str:
        """The characters that the reader knows."""
        return self.reader.charset

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        return self.reader.image_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.reader.device

    @overload
    def __call__(self, images: ImageLike, attention: bool = ..., progress: None = ...) -> Prediction: ...

    @overload
    def __call__(
        self, images: Iterable[ImageLike], attention: bool = ..., progress: Callable[[int], None] | None = ...
    ) -> list[Prediction]: ...

    def __call__(self, images, attention=False, progress=None):
        """Read one picture or many.

        Args:
            images: one picture (a path, bytes, an open binary file, a PIL image, an array or tensor of type uint8 or
                float, channels first or last), or any iterable of pictures, for example an array [B, h, w, 3].
            attention: also return attention maps, where the reader has them.
            progress: called with the number of images read after each batch.

        Returns:
            One `Prediction` for one picture; for an iterable a list, in order. A picture that cannot be decoded gives
            a prediction with `error` set and is listed in `self.bad`.

        Raises:
            TypeError: something that is no picture, also inside an iterable.
            OSError: a single path that cannot be opened.
        """
        if not is_image(images):
            return list(self.stream(images, attention, progress))
        check_kind(images)
        if isinstance(images, (str, os.PathLike)):
            # A wrong name raises here: it should not look like a picture without text.
            images = _NamedBytes(read_regular(Path(images).expanduser()), str(images))
        return next(self.stream([images], attention, progress))

    def stream(
        self, images: Iterable[ImageLike], attention: bool = False, progress: Callable[[int], None] | None = None
    ) -> Iterator[Prediction]:
        """Yield one prediction for each picture of an iterable, in order, with two batches in memory: threads decode
        the next one while the model reads. Errors are those of a call."""
        if is_image(images):
            images = [images]
        try:
            iterator = iter(images)
        except TypeError:
            raise TypeError(f"{type(images).__name__} is neither a picture nor pictures; give {KINDS}") from None
        if isinstance(images, Mapping):
            raise TypeError("a mapping has no order of pictures; give its values()")
        return self._stream(iterator, attention, progress)

    def _stream(
        self, iterator: Iterator[ImageLike], attention: bool, progress: Callable[[int], None] | None
    ) -> Iterator[Prediction]:
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = self._submit(pool, iterator)
            while waiting:
                following = self._submit(pool, iterator)
                yield from self._read_some(waiting, attention)
                if progress is not None:
                    progress(len(waiting))
                waiting = following

    def read_page(self, image: ImageLike, detector: Detector | None = None) -> list[Word]:
        """Find the words in a whole picture and read each.

        The detector is not part of this library: see `common.infer.pages`.

        Args:
            image: one picture of any kind that a call takes.
            detector: what finds the words; by default the installed one.

        Returns:
            The words in reading order, each with `box` (four corners in pixels), `text` and `confidence`; boxes in
            which nothing is read are skipped.

        Raises:
            UserError: no detector is installed (`pip install 'strlab[detect]'`).
            BadImage: the picture cannot be decoded.
        """
        from common.infer import pages  # only where whole pictures are read

        boxes, crops = (detector or pages.detector()).words(as_array(image, self.upright, self.published))
        return [pages.Word(box, prediction) for box, prediction in zip(boxes, self(crops)) if prediction.text]

    async def aread(self, images: ImageLike | Iterable[ImageLike], attention: bool = False) -> Any:
        """Read without blocking the event loop: what a call returns, from a thread."""
        return await asyncio.to_thread(self, images, attention)

    def to(self, device: str | torch.device) -> Recognizer:
        """Move the model to `cpu`, `cuda`, `cuda:1` or `auto` and return self. Raises `UserError` for a device that is
        not there."""
        target = pick_device(str(device))
        inner = getattr(self.reader, "reader", self.reader)  # an OnnxReader runs on the CPU only
        if inner is not self.reader and target.type != "cpu":
            self.reader = inner
        with self._lock:
            inner.model.to(target)
            inner.device = target
        return self

    def warmup(self, batches: int = 1) -> Recognizer:
        """Read blank pictures, one alone and then full batches, so that the first real one is not slow; return self."""
        height, width = self.image_size
        for size in [1, *[self.batch_size] * batches]:
            self.read_batch(torch.zeros(size, height, width, 3, dtype=torch.uint8))
        return self

    def read_batch(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """Read one uint8 batch [B, H, W, 3] that has the model's size already, on any device."""
        try:
            images = images.to(self.device, non_blocking=True)
            with self._lock, torch.inference_mode(), autocast(self.device, self.amp):
                return self.reader.read(images, attention=attention)
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"{len(images)} images at once do not fit into the GPU's memory: lower --batch-size"
            ) from None

    def prepare(self, image: ImageLike) -> np.ndarray:
        """Decode and fit one image: uint8 [H, W, 3]. Raises `BadImage`, and `TypeError` for what is no picture."""
        plain = getattr(self.reader, "prepare", None) is None and not self.upright and self.published
        if isinstance(image, bytes) and plain:
            return decode_resized(image, self.image_size)  # the same pixels, without a copy between
        return self.fit(as_array(image, self.upright, self.published))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Fit a decoded crop uint8 [h, w, 3] into the model's input, by the reader's own way or the bicubic resize."""
        own = getattr(self.reader, "prepare", None)
        if own is not None:
            return own(image)
        return resize_bicubic(image, self.image_size)

    def _submit(self, pool: ThreadPoolExecutor, images: Iterator[ImageLike]) -> list[tuple[ImageLike, Future]]:
        """Start to decode the next batch."""
        batch = list(islice(images, self.batch_size))
        for image in batch:
            check_kind(image)
        return [(image, pool.submit(self.prepare, image)) for image in batch]

    def _read_some(self, waiting: list[tuple[ImageLike, Future]], attention: bool) -> list[Prediction]:
        """Read one batch, putting error predictions where an image could not be decoded."""
        fitted, results = [], {}
        for i, (image, future) in enumerate(waiting):
            try:
                fitted.append((i, future.result()))
            except BadImage as error:
                named = isinstance(image, (str, os.PathLike, _NamedBytes))
                self.bad.append((str(image) if named else f"image {i} of a batch", str(error)))
                results[i] = Prediction("", 0.0, error=str(error))
        if fitted:
            batch = torch.from_numpy(np.stack([image for _, image in fitted]))
            results.update(zip((i for i, _ in fitted), self.read_batch(batch, attention)))
        return [results[i] for i in range(len(waiting))]


class _NamedBytes(bytes):
    """The content of a file that remembers the file's name."""

    def __new__(cls, data: bytes, name: str) -> _NamedBytes:
        made = super().__new__(cls, data)
        made.name = name
        return made

    def __str__(self) -> str:
        return self.name


def open_recognizer(
    checkpoint: str | Path,
    model: str | None = None,
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    engine: str = "auto",
    **how: Any,
) -> Recognizer:
    """Open a trained reader.

    Args:
        checkpoint: a file of this library or of the paper, or a folder where the project writes folders.
        model: registry entry (`strlab models`); needed where the checkpoint has no metadata file.
        device: auto, cpu, cuda, cuda:1.
        options: build options that override those of the metadata.
        engine: auto (ONNX Runtime where it is installed, the checkpoint has an ONNX file next to it, and the device is
            a CPU), torch, onnx, or int8 (the quantised ONNX file); the last two are refused where impossible.
        how: batch_size, amp, workers, upright, published of `Recognizer`.

    Raises:
        UserError: no such file, no model named, a model that reads no text, a checkpoint that does not fit, an option
            that the model does not take.
    """
    checkpoint = Path(checkpoint).expanduser()
    if not checkpoint.exists():
        raise UserError(f"--checkpoint: {checkpoint} does not exist")
    if engine not in ENGINES:
        raise UserError(f"--engine: {engine!r} is not one of {', '.join(ENGINES)}")
    card = read_card(checkpoint)
    name = model or card.get("model") or (registry.recognise(checkpoint) if checkpoint.is_file() else None)
    if not name:
        raise UserError(
            f"{checkpoint}: no metadata file ({card_path(checkpoint).name}) is next to it; "
            "say which model it holds with --model (`strlab models` lists them)"
        )
    row = registry.find(str(name))
    if row.open is None:
        raise UserError(f"--model: {row.name} is a {row.kind} and reads no text")
    stated = str(card.get("model", row.name))
    merged: dict[str, Any] = {**row.options}
    if stated.lower() == row.name.lower():
        merged.update(card.get("options") or {})
    merged.update(options or {})
    try:
        reader = open_with_options(row, checkpoint, merged, pick_device(device), options or {})
    except UserError as error:
        if stated.lower() == row.name.lower():
            raise
        raise UserError(f"{error} ({card_path(checkpoint).name} says that it holds {stated}, not {row.name})") from None
    if engine != "torch" and not options and how.get("amp", "no") == "no":
        from common.infer.onnx_reader import faster_reader  # only where ONNX Runtime may read

        suffix = ".int8.onnx" if engine == "int8" else ".onnx"
        reader = faster_reader(reader, checkpoint.with_suffix(suffix))
    if engine in ("onnx", "int8") and not hasattr(reader, "session"):
        file = checkpoint.with_suffix(".int8.onnx" if engine == "int8" else ".onnx").name
        raise UserError(
            f"--engine {engine}: it needs onnxruntime (`pip install 'strlab[export]'`), a CPU, and {file} next to the "
            "checkpoint"
        )
    return Recognizer(reader, name=row.name, source=checkpoint, metadata=card, **how)
