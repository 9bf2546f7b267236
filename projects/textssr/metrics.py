"""How well generated words can be read: exact match, edit similarity as published comparisons have it, crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.metrics.accuracy import edit_distance

OCR_HEIGHT, OCR_WIDTH = 48, 320


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
