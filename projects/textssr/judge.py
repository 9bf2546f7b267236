"""What judges painted words: a checkpoint of one of our readers, or an installed OCR package by its name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.data.decode import decode_rgb
from common.errors import UserError
from common.files import read_regular
from common.infer.recognizer import Prediction, open_recognizer

PACKAGES = {"rapidocr": "rapidocr_onnxruntime"}
"""Names for --reader and the packages that they stand for: PP-OCR's recogniser, as published comparisons read with."""
Crop = Path | np.ndarray
Read = Callable[[Sequence[Crop]], list[Prediction]]


def check_reader(name: str) -> None:
    """Raise UserError for a checkpoint that does not exist and for a package that is not installed."""
    package = PACKAGES.get(name)
    if package is None and not Path(name).exists():
        names = ", ".join(PACKAGES)
        raise UserError(f"--reader: {name} does not exist: give a checkpoint, or the name of an OCR package ({names})")
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"--reader: {name}: the package {package} is not installed: install it or give a checkpoint")


def open_reader(name: str, model: str | None, device: str) -> Read:
    """A function from crops (files or RGB uint8 `[h, w, 3]`) to predictions. Raises as `check_reader`."""
    check_reader(name)
    if name not in PACKAGES:
        return open_recognizer(Path(name), model, device)
    engine = importlib.import_module(PACKAGES[name]).RapidOCR()
    return lambda crops: [read_crop(engine, crop) for crop in crops]


def read_crop(engine: Callable, crop: Crop) -> Prediction:
    """One crop through the recognition of RapidOCR alone; what it cannot read is an empty text."""
    pixels = decode_rgb(read_regular(crop)) if isinstance(crop, Path) else crop
    picture = np.ascontiguousarray(pixels[..., ::-1])
    found, _ = engine(picture, use_det=False, use_cls=False, use_rec=True)
    text, confidence = found[0][:2] if found else ("", 0.0)
    return Prediction(text, float(confidence))
