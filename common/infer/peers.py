"""Other people's readers under the same protocols: RapidOCR (PP-OCR), Tesseract, nano-ocr, where they are installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata

import numpy as np
import torch
from PIL import Image

from common.data.decode import BadImage
from common.errors import UserError
from common.infer import pp_ocr
from common.infer.images import ImageLike, as_array
from common.infer.recognizer import Prediction, Recognizer
from common.text.charset import CHARSET_94

PEERS = ("rapidocr", "tesseract", "nano-ocr")
Read = Callable[[np.ndarray], tuple[str, float]]


class PeerReader:
    """The side of a `Reader` that a peer has: it takes crops as they are, one at a time, on the CPU."""

    image_size, charset, device = (0, 0), CHARSET_94, torch.device("cpu")

    def __init__(self, name: str, read_one: Read) -> None:
        self.name, self.read_one = name, read_one

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """Read uint8 [B, H, W, 3]."""
        return [Prediction(*self.read_one(image)) for image in images.numpy()]


class PeerRecognizer(Recognizer):
    """A recognizer that gives the peer each crop in its own size."""

    def _stream(
        self, iterator: Iterator[ImageLike], attention: bool, progress: Callable[[int], None] | None
    ) -> Iterator[Prediction]:
        for image in iterator:
            try:
                yield Prediction(*self.reader.read_one(as_array(image, self.upright, self.published)))
            except BadImage as error:
                self.bad.append((str(image)[:80], str(error)))
                yield Prediction("", 0.0, error=str(error))
            if progress is not None:
                progress(1)


def open_peer(name: str) -> Recognizer:
    """A peer by its name: rapidocr, tesseract or nano-ocr. Raises `UserError` where it is not installed."""
    openers: dict[str, Callable[[], Read]] = {"rapidocr": _rapidocr, "tesseract": _tesseract, "nano-ocr": _nano_ocr}
    if name not in openers:
        raise UserError(f"--reader: {name!r} is not one of {', '.join(openers)}")
    return PeerRecognizer(PeerReader(name, openers[name]()), name=name, workers=1)


def peer_version(name: str) -> str:
    """The installed version of a peer."""
    if name == "rapidocr":
        return metadata.version(rapidocr_package())
    if name == "nano-ocr":
        return metadata.version("nano-ocr")
    told = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=False).stdout.split()
    return told[1] if len(told) > 1 else "of unknown version"


def rapidocr_package(wanted: str | None = None) -> str:
    """The installed package of RapidOCR: `wanted`, or the newest. Raises `UserError` for none."""
    if package := pp_ocr.installed(wanted):
        return package
    install = "'strlab[textssr-judge]'" if wanted == "rapidocr" else "'strlab[peers]'"
    raise UserError(f"--reader {wanted or 'rapidocr'}: not installed; run `pip install {install}`")


def _rapidocr() -> Read:
    """PP-OCR's recogniser without its detector, blanks removed as the protocols want it."""
    engine = pp_ocr.Recogniser(rapidocr_package())

    def read(image: np.ndarray) -> tuple[str, float]:
        text, confidence = engine(image)
        return text.replace(" ", ""), confidence

    return read


def _nano_ocr() -> Read:
    """A CRNN of 4.8 M parameters, trained on MJSynth and IIIT5k: letters, digits, full stop and hyphen."""
    if importlib.util.find_spec("nano_ocr") is None:
        raise UserError("--reader nano-ocr: not installed; run `pip install 'strlab[peers]'`")
    from nano_ocr import NanoOCR

    engine = NanoOCR(device="cpu")

    def read(image: np.ndarray) -> tuple[str, float]:
        found = engine.predict(Image.fromarray(image))
        return found.text.replace(" ", ""), float(found.confidence)

    return read


def _tesseract() -> Read:
    """Tesseract's command line with page segmentation mode 8: one word."""
    program = shutil.which("tesseract")
    if program is None:
        raise UserError("--reader tesseract: the program is not installed; `apt install tesseract-ocr` has it")

    def read(image: np.ndarray) -> tuple[str, float]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        done = subprocess.run(
            [program, "stdin", "stdout", "--psm", "8", "tsv"], input=stream.getvalue(), capture_output=True, check=False
        )
        return joined(csv.DictReader(io.StringIO(done.stdout.decode("utf-8", "replace")), delimiter="\t", quoting=3))

    return read


def joined(rows: Iterable[dict[str, str]]) -> tuple[str, float]:
    """Text and confidence in [0, 1] of Tesseract's table: its words joined, the mean of their confidences."""
    words = [(row["text"].strip(), float(row["conf"])) for row in rows if (row.get("text") or "").strip()]
    if not words:
        return "", 0.0
    return "".join(text for text, _ in words), max(0.0, sum(value for _, value in words) / len(words) / 100)
