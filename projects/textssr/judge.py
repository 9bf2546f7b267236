"""What judges painted words: the default reader, a reader of this repository, or an installed OCR package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from common.data.decode import decode_rgb
from common.errors import UserError
from common.files import read_regular
from common.infer import peers, pp_ocr, shipped
from common.infer.recognizer import Prediction, Recognizer, open_recognizer

DEFAULT = "default"
PACKAGES = {"rapidocr": None, "rapidocr_onnxruntime": "rapidocr_onnxruntime"}
"""Names for --reader that stand for PP-OCR, as published comparisons read with, and the package that each insists on:
`rapidocr` takes the newer package where both are installed."""
READER_HELP = (
    "default (the reader that ships with the library), the name of another shipped reader, a checkpoint, or rapidocr "
    "(PP-OCR, where installed)"
)
Crop = Path | np.ndarray
Read = Callable[[Sequence[Crop]], list[Prediction]]


def check_reader(name: str) -> None:
    """Raise UserError for a checkpoint that does not exist and for a package that is not installed."""
    if name in PACKAGES:
        peers.rapidocr_package(PACKAGES[name])
    elif not is_checkpoint(name):
        find_shipped(name)


def is_checkpoint(name: str) -> bool:
    """Whether a reader's name is that of a file or folder."""
    return Path(name).expanduser().exists()


def find_shipped(name: str) -> shipped.Shipped:
    """A reader that ships with the library, by its name. Raises UserError that says what --reader takes."""
    if name == DEFAULT:
        return shipped.default()
    known = {one.name: one for one in shipped.all_shipped()}
    if name not in known:
        names = ", ".join([DEFAULT, *known, *PACKAGES])
        raise UserError(f"--reader: {name} does not exist: give a checkpoint, or one of {names}")
    return known[name]


def describe_reader(name: str) -> str:
    """A reader's name for reports: the package and its version, or which reader ships as the default."""
    if name in PACKAGES:
        package = peers.rapidocr_package(PACKAGES[name])
        return f"PP-OCR ({package} {metadata.version(package)})"
    return f"the default reader ({find_shipped(name).name})" if name == DEFAULT else name


def reader_files(name: str | None) -> list[Path]:
    """The files that a reader's readings depend on; none for a package."""
    if name is None or name in PACKAGES:
        return []
    path = Path(name).expanduser() if is_checkpoint(name) else find_shipped(name).path
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def readable_characters(name: str | None, model: str | None = None, device: str = "cpu") -> str | None:
    """The characters that a reader can give; None where that is not known (PP-OCR has thousands)."""
    if name is None or name in PACKAGES:
        return None
    return open_checkpoint(name, model, device).charset


def open_checkpoint(name: str, model: str | None, device: str) -> Recognizer:
    """The recognizer of a checkpoint or of a shipped reader. Raises as `check_reader`."""
    if is_checkpoint(name):
        return open_recognizer(Path(name).expanduser(), model, device)
    one = find_shipped(name)
    one.check()
    return open_recognizer(one.path, None, device)


def open_reader(name: str, model: str | None, device: str) -> Read:
    """A function from crops (files or RGB uint8 `[h, w, 3]`) to predictions. Raises as `check_reader`."""
    if name not in PACKAGES:
        return open_checkpoint(name, model, device)
    engine = pp_ocr.Recogniser(peers.rapidocr_package(PACKAGES[name]))
    return lambda crops: [read_crop(engine, crop) for crop in crops]


def read_crop(engine: Callable[[np.ndarray], tuple[str, float]], crop: Crop) -> Prediction:
    """One crop through PP-OCR's recogniser alone; what it cannot read is an empty text."""
    return Prediction(*engine(decode_rgb(read_regular(crop)) if isinstance(crop, Path) else crop))
