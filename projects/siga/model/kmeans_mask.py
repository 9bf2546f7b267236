"""Text pseudo-masks: a two-cluster split of grey levels and a vote of the image's borders (section 3.1 of the paper).

The published tool runs scipy's k-means with 20 random starts on all pixels. In one dimension the clusters are two runs
of grey levels, so every state at which that iteration can come to rest is found from the 256-bin histogram at once, and
the best of them by the same measure (mean distance to the own centre) is taken: equal masks, no randomness.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_LEVELS = np.arange(256, dtype=np.float64)


def split_level(histogram: np.ndarray) -> int | None:
    """The highest grey level of the dark cluster, or None where fewer than two levels occur.

    `histogram` [256] counts. A split is a candidate if the middle between its two means separates its clusters (a
    resting point of Lloyd's iteration); among candidates the least mean distance to the nearest centre wins.
    """
    occupied = np.flatnonzero(histogram)
    if len(occupied) < 2:
        return None
    counts = histogram[occupied].astype(np.float64)
    # split k puts the occupied levels 0 … k into the dark cluster; means of both clusters for all k at once
    below, mass = np.cumsum(counts), np.cumsum(counts * occupied)
    dark_count, dark_mass = below[:-1], mass[:-1]
    dark = dark_mass / dark_count
    bright = (mass[-1] - dark_mass) / (below[-1] - dark_count)
    middle = (dark + bright) / 2
    # at rest, each level is nearer to the mean of its own cluster: the middle lies between the clusters
    resting = np.flatnonzero((occupied[:-1] <= middle) & (middle <= occupied[1:]))
    distance = np.minimum(np.abs(occupied - dark[resting, None]), np.abs(occupied - bright[resting, None])) @ counts
    return int(occupied[resting[np.argmin(distance)]])


def dominated_borders(code: np.ndarray) -> int:
    """How many of the four borders of a 0/1 image are, for more than half, ones."""
    height, width = code.shape
    rows = (code[0].sum() > width // 2, code[-1].sum() > width // 2)
    columns = (code[:, 0].sum() > height // 2, code[:, -1].sum() > height // 2)
    return int(sum(rows) + sum(columns))


def kmeans_mask(grey: np.ndarray) -> np.ndarray:
    """Grey image uint8 [h, w] -> text mask uint8 [h, w], 1 = text.

    The cluster that fills three or four borders is background. Where neither does (the published choice is random
    there), text is the cluster with fewer border pixels, on a tie the smaller cluster. A constant image has no text.
    """
    if grey.ndim != 2 or grey.dtype != np.uint8 or not grey.size:
        raise ValueError(f"kmeans_mask takes a non-empty uint8 [h, w] image, not {grey.dtype} {grey.shape}")
    level = split_level(np.bincount(grey.ravel(), minlength=256))
    if level is None:
        return np.zeros_like(grey)
    code = (grey > level).view(np.uint8)
    inverted = 1 - code
    if dominated_borders(code) >= 3:
        return inverted
    if dominated_borders(inverted) >= 3:
        return code
    inner = code[1:-1, 1:-1]  # the majority on the one-pixel frame is background
    ones, pixels = int(code.sum()) - int(inner.sum()), code.size - inner.size
    if 2 * ones != pixels:
        return code if 2 * ones < pixels else inverted
    return code if 2 * int(code.sum()) <= code.size else inverted


def text_mask(image: np.ndarray) -> np.ndarray:
    """`kmeans_mask` of an RGB image uint8 [h, w, 3], made grey as PIL does (ITU-R 601)."""
    return kmeans_mask(np.asarray(Image.fromarray(image).convert("L")))
