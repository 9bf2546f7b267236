"""Which patches are hidden in pre-training (SimMIM's plain random masking)."""

from __future__ import annotations

import numpy as np


class RandomMasking:
    """Masks of a fixed number of tokens, `int(ratio * tokens)`, one for each view, drawn one after the other.

    Args:
        grid: rows and columns of patches; token index = row * columns + column.
        ratio: share hidden, in [0, 1).
        views: masks a call makes.
    """

    def __init__(self, grid: tuple[int, int], ratio: float, views: int = 2) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"mask ratio {ratio} is not in [0, 1)")
        self.tokens, self.views = grid[0] * grid[1], views
        self.hidden = int(ratio * self.tokens)

    def __call__(self, rng: np.random.RandomState | np.random.Generator) -> np.ndarray:
        """Float64 0/1 array `[views, tokens]`. A legacy `RandomState` gives the published sequence for its seed."""
        masks = np.zeros((self.views, self.tokens))
        for mask in masks:
            mask[self.tokens - self.hidden :] = 1
            rng.shuffle(mask)
        return masks

    def batch(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Masks of `count` images in one draw, bool `[count, views, tokens]`."""
        masks = np.zeros((count, self.views, self.tokens), dtype=bool)
        masks[..., self.tokens - self.hidden :] = True
        return rng.permuted(masks, axis=-1, out=masks)
