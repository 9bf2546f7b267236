"""DiG's contrastive view: two to five of ten changes in random order on the crop as decoded, then resize, colour
jitter, grey.

The published code uses imgaug; these are the same laws on OpenCV (spec dig, section 4). PiecewiseAffine bends
bilinearly between its points, where imgaug has two triangles per cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import cv2
import numpy as np

from common.augment.photometric import ColorJitter, grey
from common.augment.rng import Rng, distinct, integers
from common.data.decode import resize_bicubic

_RAMP = np.arange(256, dtype=np.float32)
JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


def linear_contrast(image: np.ndarray, rng: Rng) -> np.ndarray:
    """127 + a (v - 127) with a of U(0.5, 1)."""
    return cv2.LUT(image, (127 + rng.uniform(0.5, 1.0) * (_RAMP - 127)).astype(np.uint8))


def gaussian_blur(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Sigma of U(0.5, 1.5) pixels, 5x5 window."""
    return cv2.GaussianBlur(image, (5, 5), rng.uniform(0.5, 1.5))


def _crop(image: np.ndarray, rng: Rng, most: float, axis: int) -> np.ndarray:
    """Cut U(0, most) of the side off both ends of `axis`, and resize back."""
    side = image.shape[axis]
    first, last = round(rng.uniform(0, most) * side), round(rng.uniform(0, most) * side)
    last = max(side - last, first + 1)
    kept = image[first:last] if axis == 0 else image[:, first:last]
    return cv2.resize(kept, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)


def crop_rows(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Up to 30 % of the height off the top and off the bottom."""
    return _crop(image, rng, 0.3, 0)


def crop_columns(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Up to 10 % of the width off the left and off the right."""
    return _crop(image, rng, 0.1, 1)


def sharpen(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Blend of the image and its 3x3 Laplacian sharpening: share U(0, 0.5), lightness U(0, 0.5)."""
    share, lightness = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
    kernel = np.full((3, 3), -share, np.float32)
    kernel[1, 1] = (1 - share) + share * (8 + lightness)
    return cv2.filter2D(image, -1, kernel)


def rotate(image: np.ndarray, rng: Rng) -> np.ndarray:
    """U(-10, 10) degrees about the middle; size kept, black border."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-10, 10), 1.0)
    return cv2.warpAffine(image, matrix, (width, height))


@lru_cache(maxsize=512)
def _hats(length: int, count: int) -> np.ndarray:
    """float32 [length, count]: linear interpolation weights of every pixel between `count` even points from 0 to
    `length`.
    """
    at = np.arange(length, dtype=np.float32)[:, None] * (count - 1) / length
    return np.maximum(0, 1 - np.abs(at - np.arange(count, dtype=np.float32)))


def piecewise_affine(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Every point of a grid moves by N(0, s) of the side, s of U(0.03, 0.04); edge pixels replicated.

    The grid has 2, 3 or 4 rows and as many columns, drawn for each picture.
    """
    height, width = image.shape[:2]
    row_count, column_count = integers(rng, 2, 5), integers(rng, 2, 5)
    moves = rng.normal(0, rng.uniform(0.03, 0.04), (2, row_count, column_count))
    ys = np.linspace(0, 1, row_count)[:, None] + moves[0]
    xs = np.linspace(0, 1, column_count) + moves[1]
    ys = np.clip(ys * height, 0, height - 1).astype(np.float32)
    xs = np.clip(xs * width, 0, width - 1).astype(np.float32)
    rows, columns = _hats(height, row_count), _hats(width, column_count).T
    return cv2.remap(image, rows @ xs @ columns, rows @ ys @ columns, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def perspective(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Corners move inwards by |N(0, s)| of the side (below one half), s of U(0.05, 0.1); what they enclose fills the
    picture.
    """
    height, width = image.shape[:2]
    moves = np.abs(rng.normal(0, rng.uniform(0.05, 0.1), (4, 2))) % 0.5
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    inner = np.abs(corners - moves) * (width, height)
    matrix = cv2.getPerspectiveTransform(inner.astype(np.float32), (corners * (width, height)).astype(np.float32))
    return cv2.warpPerspective(image, matrix, (width, height))


def solarize(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Invert the values above a threshold of U(32, 128), or, half of the time, those below."""
    threshold, above = rng.uniform(32, 128), rng.uniform(0, 1) < 0.5
    chosen = (threshold <= _RAMP) == above
    return cv2.LUT(image, np.where(chosen, 255 - _RAMP, _RAMP).astype(np.uint8))


def grayscale(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Blend with the luma by U(0, 1)."""
    share = rng.uniform(0, 1)
    luma = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, 1 - share, luma, share, 0)


Change = Callable[[np.ndarray, Rng], np.ndarray]
_LIST: tuple[Change, ...] = (
    linear_contrast,
    gaussian_blur,
    crop_rows,
    crop_columns,
    sharpen,
    rotate,
    piecewise_affine,
    perspective,
    solarize,
    grayscale,
)
CHANGES: Mapping[str, Change] = {change.__name__: change for change in _LIST}
COLOR_CHANGES = ("linear_contrast", "gaussian_blur", "sharpen", "solarize", "grayscale")
"""The colour-only list of the published fine-tuning data set, which no flag there reaches."""


class ContrastiveView:
    """Callable (image uint8 HxWx3, rng, mask=None) -> uint8 of `size` (default 32x128), or (image, mask as it was).

    Two to five of the changes (never more than there are), jitter with probability 0.8, grey with 0.2.
    """

    def __init__(self, names: tuple[str, ...] = tuple(CHANGES), size: tuple[int, int] = (32, 128)):
        self.changes = [CHANGES[name] for name in names]
        self.size = size

    def __call__(self, image: np.ndarray, rng: Rng, mask: np.ndarray | None = None):
        image = np.ascontiguousarray(image)
        number = min(integers(rng, 2, 6), len(self.changes))
        for index in distinct(rng, len(self.changes), number):
            image = self.changes[index](image, rng)
        image = resize_bicubic(image, self.size)
        if rng.uniform(0, 1) < 0.8:
            image = JITTER(image, rng)
        if rng.uniform(0, 1) < 0.2:
            image = grey(image)
        return image if mask is None else (image, mask)
