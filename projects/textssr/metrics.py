"""How well generated words can be read: exact match, edit similarity as published comparisons have it, crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.decode import BadImage, decode_rgb
from common.errors import UserError
from common.files import read_regular
from common.metrics.accuracy import edit_distance

OCR_HEIGHT, OCR_WIDTH = 48, 320
PERCEPTUAL = {
    "FID": ("pytorch_fid", "pt_inception-2015-12-05-6726825d.pth"),
    "LPIPS": ("lpips", "alexnet-owt-7be5be79.pth"),
}
READ = {"region": "word36", "truth": "word36 real", "vae": "word36 VAE"}
"""Folders that are read, and what the share of right words there is called."""
FIGURES = ["words", "SeqAcc", *READ.values(), "NED", "NED36", "SSIM", "FD reader", *PERCEPTUAL]


def load(path: Path) -> np.ndarray:
    """RGB uint8 of a file. Raises UserError for one that is no picture."""
    try:
        return decode_rgb(read_regular(path))
    except (OSError, BadImage) as error:
        raise UserError(f"{path}: not a picture ({error}): run infer.py again") from None


def similarity(prediction: str, label: str) -> float:
    """1 - distance / (longer length + 1e-5), as AnyText's evaluation has it; 1 for two empty strings."""
    longer = max(len(prediction), len(label))
    return 1.0 - edit_distance(prediction, label) / (longer + 1e-5)


def sequence_accuracy(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Share of words read exactly, nothing folded; NaN without words."""
    exact = [prediction == label for prediction, label in zip(predictions, labels, strict=True)]
    return sum(exact) / len(exact) if exact else math.nan


def mean_similarity(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Mean of `similarity`; NaN without words."""
    values = [similarity(prediction, label) for prediction, label in zip(predictions, labels, strict=True)]
    return sum(values) / len(values) if values else math.nan


def ocr_crop(crop: Tensor) -> Tensor:
    """`[3, h, w]` float, any range -> `[48, 320, 3]` as PP-OCR style readers of published comparisons take it.

    Crops taller than 1.2 widths are turned counter-clockwise; the height becomes 48, the width at most 320, zeros on
    the right.
    """
    if crop.shape[1] > 1.2 * crop.shape[2]:
        crop = torch.rot90(crop, 1, (1, 2))
    width = min(math.ceil(OCR_HEIGHT * crop.shape[2] / crop.shape[1]), OCR_WIDTH)
    small = F.interpolate(crop[None], (OCR_HEIGHT, width), mode="bilinear", align_corners=True)[0]
    return F.pad(small, (0, OCR_WIDTH - width)).permute(1, 2, 0)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of the normal distributions with the moments of two sets of features `[N, D]`, `[M, D]`.

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)); small sets make it too large, so compare sets of one size.
    """
    difference = first.mean(0) - second.mean(0)
    covariances = [np.cov(features.astype(np.float64), rowvar=False) for features in (first, second)]
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1])  # of the product of two covariances: real, >= 0
    root = np.sqrt(eigenvalues.real.clip(0)).sum()
    return float(difference @ difference + sum(np.trace(covariance) for covariance in covariances) - 2 * root)
