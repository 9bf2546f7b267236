"""The packages that carry PP-OCR, whose detector finds words and whose recogniser is compared with ours."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

PACKAGES = ("rapidocr", "rapidocr_onnxruntime")
"""Modules of RapidOCR, the newer one (3.x) first. Their models come with them; nothing is downloaded."""


def installed(wanted: str | None = None) -> str:
    """The module that can be used: `wanted`, or the first of PACKAGES; "" for none. Nothing is imported."""
    if importlib.util.find_spec("onnxruntime") is None:  # rapidocr 3 does not require it by itself
        return ""
    return next((name for name in ((wanted,) if wanted else PACKAGES) if importlib.util.find_spec(name)), "")


def engine(package: str) -> Any:
    """The RapidOCR object of one of PACKAGES, which prints errors only."""
    quiet = {"params": {"Global.log_level": "error"}} if package == "rapidocr" else {}
    return importlib.import_module(package).RapidOCR(**quiet)


class Recogniser:
    """PP-OCR's recogniser alone, of one of PACKAGES.

    Calls take RGB uint8 `[h, w, 3]` and give (text, confidence) of one crop, ("", 0.0) where nothing is read; blanks
    are kept.
    """

    def __init__(self, package: str) -> None:
        self.engine = engine(package)

    def __call__(self, image: np.ndarray) -> tuple[str, float]:
        result = self.engine(np.ascontiguousarray(image[:, :, ::-1]), use_det=False, use_cls=False, use_rec=True)
        if hasattr(result, "txts"):  # 3.x
            return (str(result.txts[0]), float(result.scores[0])) if result.txts else ("", 0.0)
        found = result[0]
        return (str(found[0][0]), float(found[0][1])) if found else ("", 0.0)
