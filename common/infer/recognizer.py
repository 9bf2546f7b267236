"""Reading text in images: what every trained reader offers, and everything around it.

A project writes a *reader*: its preprocessing, model and decode rule (see `Reader`). `Recognizer` adds files, folders,
bytes, arrays, batches, devices, precision and progress; `open_recognizer` makes one from a checkpoint.

>>> recognizer = open_recognizer("best_score.pth")                      # doctest: +SKIP
>>> [(p.text, p.confidence) for p in recognizer(["a.jpg", "b.png"])]    # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from common import registry
from common.errors import UserError
from common.files import files_below
from common.infer.options import open_with_options

ImageLike = str | Path | bytes | np.ndarray | Any  # Any: a PIL image, without importing PIL here
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
LONGEST_ASPECT = 12.0  # width / height beyond which a crop is surely more than one word


@dataclass(frozen=True)
class Prediction:
    """What was read in one image.

    Attributes:
        text: the characters, possibly none.
        confidence: in [0, 1]; the project's own rule (usually the product of the steps' probabilities, end included).
        char_confidences: one probability for each character of `text` (an end token may follow).
        attention: float array [T, h, w], one map for each character, scaled as the reader likes; None if not asked for.
        extra: what a project wants to show beside it, for example {"char": …, "bpe": …} for several heads.
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
    """`auto` is CUDA where there is one, else the CPU. Raises `UserError` for a card that is not there."""
    from common.train.distributed import choose_device

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

    Args:
        reader: the project's side, on its device and in eval mode.
        batch_size: images a forward pass.
        amp: no (fp32, the precision that figures are stated for), fp16 or bf16.
        workers: threads that decode images.
        upright: turn files and bytes as their EXIF orientation says; the papers' loaders ignore it.
    """

    def __init__(
        self, reader: Reader, batch_size: int = 64, amp: str = "no", workers: int = 2, upright: bool = False
    ) -> None:
        for flag, value in (("--batch-size", batch_size), ("--workers", workers)):
            if value < 1:
                raise UserError(f"{flag}: {value} must be at least 1")
        self.upright = upright
        self.reader, self.batch_size, self.amp, self.workers = reader, batch_size, amp, workers
        self.bad: list[tuple[str, str]] = []  # (name, reason) of images that could not be read

    @property
    def charset(self) -> str:
        """The characters that the reader knows."""
        return self.reader.charset

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        return self.reader.image_size

    def __call__(
        self, images: Iterable[ImageLike], attention: bool = False, progress: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Read paths, bytes, PIL images or uint8 arrays [h, w, 3]; one prediction for each, in order.

        An image that cannot be decoded gives a prediction with `error` set and is listed in `self.bad`.
        `progress` is told the number of images read after each batch.
        """
        return list(self.stream(images, attention, progress))

    def stream(
        self, images: Iterable[ImageLike], attention: bool = False, progress: Callable[[int], None] | None = None
    ) -> Iterator[Prediction]:
        """As calling, with two batches in memory: threads decode the next one while the model reads."""
        iterator = iter(images)
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = self._submit(pool, iterator)
            while waiting:
                following = self._submit(pool, iterator)
                yield from self._read_some(waiting, attention)
                if progress is not None:
                    progress(len(waiting))
                waiting = following

    def read_batch(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """Read one uint8 batch [B, H, W, 3] that has the model's size already, on any device."""
        try:
            images = images.to(self.reader.device, non_blocking=True)
            with torch.inference_mode(), autocast(self.reader.device, self.amp):
                return self.reader.read(images, attention=attention)
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"{len(images)} images at once do not fit into the GPU's memory: lower --batch-size"
            ) from None

    def prepare(self, image: ImageLike) -> np.ndarray:
        """Decode and fit one image: uint8 [H, W, 3]. Raises `BadImage`."""
        if isinstance(image, bytes) and getattr(self.reader, "prepare", None) is None and not self.upright:
            from common.data.decode import decode_resized

            return decode_resized(image, self.reader.image_size)  # the same pixels, without a copy between
        return self.fit(as_array(image, self.upright))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Fit a decoded crop uint8 [h, w, 3] into the model's input, by the reader's own way or the bicubic resize."""
        own = getattr(self.reader, "prepare", None)
        if own is not None:
            return own(image)
        from common.data.decode import resize_bicubic

        return resize_bicubic(image, self.reader.image_size)

    def _submit(self, pool: ThreadPoolExecutor, images: Iterator[ImageLike]) -> list[tuple[ImageLike, Future]]:
        """Start to decode the next batch."""
        return [(image, pool.submit(self.prepare, image)) for image in islice(images, self.batch_size)]

    def _read_some(self, waiting: list[tuple[ImageLike, Future]], attention: bool) -> list[Prediction]:
        """Read one batch, putting error predictions where an image could not be decoded."""
        from common.data.decode import BadImage

        fitted, results = [], {}
        for i, (image, future) in enumerate(waiting):
            try:
                fitted.append((i, future.result()))
            except BadImage as error:
                name = str(image) if isinstance(image, (str, Path)) else f"image {i} of a batch"
                self.bad.append((name, str(error)))
                results[i] = Prediction("", 0.0, error=str(error))
        if fitted:
            batch = torch.from_numpy(np.stack([image for _, image in fitted]))
            results.update(zip((i for i, _ in fitted), self.read_batch(batch, attention)))
        return [results[i] for i in range(len(waiting))]


def as_array(image: ImageLike, upright: bool = False) -> np.ndarray:
    """Any kind of image as uint8 RGB [h, w, 3], files with `upright` turned by their EXIF. Raises `BadImage`."""
    from common.data.decode import BadImage, decode_rgb, orientation, turned

    if isinstance(image, (str, Path)):
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise BadImage(f"{error.strerror or error}") from None
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        return turned(decode_rgb(data), orientation(data)) if upright else decode_rgb(data)
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("RGB"))
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.size == 0 or image.ndim not in (2, 3):
        raise BadImage(f"an array of type {image.dtype} and shape {image.shape}, where uint8 [h, w, 3] is needed")
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] not in (3, 4):
        raise BadImage(f"an array of shape {image.shape}, where [h, w, 3] is needed")
    return np.ascontiguousarray(image[:, :, :3])


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Image files that the arguments name: files, folders (searched for known suffixes, see `files_below`), or glob
    patterns.

    Raises `UserError` for an argument that names nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            some = [
                p for p in files_below(path, lambda name: Path(name).suffix.lower() in IMAGE_SUFFIXES) if p.is_file()
            ]
        elif path.exists():
            some = [path]
        else:
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            some = sorted(anchor.glob(str(path.relative_to(path.anchor)))) if any(c in pattern for c in "*?[") else []
        if not some:
            raise UserError(f"{pattern}: no image is there; give files, a folder or a pattern in quotes")
        found.extend(some)
    return found


def card_path(checkpoint: Path) -> Path:
    """Where the card of a checkpoint file stands: `<file>.json`; of a checkpoint folder: `card.json` in it."""
    return checkpoint / "card.json" if checkpoint.is_dir() else checkpoint.with_name(checkpoint.name + ".json")


def read_card(checkpoint: Path) -> dict[str, Any]:
    """The card beside a checkpoint, {} if there is none: at least `model` (row name) and `options` (for its build)."""
    path = card_path(checkpoint)
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: no readable card ({error}); remove it and name the model with --model") from None
    if not isinstance(card, dict):
        raise UserError(f"{path}: a card is a JSON object; remove it and name the model with --model")
    return card


def open_recognizer(
    checkpoint: str | Path,
    model: str | None = None,
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    **how: Any,
) -> Recognizer:
    """Open a trained reader.

    Args:
        checkpoint: a file in the form of ours or of the paper, or a folder where the project writes folders.
        model: row name (`strlab models`); needed where no card stands beside the checkpoint.
        device: auto, cpu, cuda, cuda:1.
        options: build options that override the card's.
        how: batch_size, amp, workers, upright of `Recognizer`.

    Raises:
        UserError: no such file, no model named, model that is no recogniser, checkpoint that does not fit, an option
            that the model has not.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.exists():
        raise UserError(f"--checkpoint: {checkpoint} does not exist")
    card = read_card(checkpoint)
    name = model or card.get("model")
    if not name:
        raise UserError(
            f"{checkpoint}: no card ({card_path(checkpoint).name}) stands beside it; "
            "say which model it holds with --model (`strlab models` lists them)"
        )
    row = registry.find(str(name))
    if row.open is None:
        raise UserError(f"--model: {row.name} is a {row.kind} and reads no text")
    merged: dict[str, Any] = {**row.options}
    if card.get("model", row.name).lower() == row.name.lower():
        merged.update(card.get("options") or {})
    merged.update(options or {})
    reader = open_with_options(row, checkpoint, merged, pick_device(device), options or {})
    return Recognizer(reader, **how)
