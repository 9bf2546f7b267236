"""What an operation of the STR RandAugment family is: a draw of parameters, and a deterministic change of pixels.

The split lets the same pixels be reproduced from stored parameters, the mask be moved with the image, and several
geometric operations be merged into one warp (see `fast`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from common.augment.rng import Rng, integers

PRESETS = ("original", "siga", "ssm", "straug")
"""`original`: MGP-STR and ACDS-STR as published; `siga`, `ssm`: the same with those papers' few differences;
`straug`: the values and repairs of PyPI `straug` 0.1.2."""


@dataclass(frozen=True)
class Operation:
    """One operation.

    `draw(rng, level, image)` returns the tuple of parameters, in the published order of draws; `apply(image,
    *parameters)` changes pixels (uint8 HxWx3 -> uint8 HxWx3) and `mask(mask, *parameters)` a 0/1 mask uint8 HxW, None
    where masks stay. `levels` gives per preset the values of magnitude 0, 1, 2; presets not named use `original`.
    `invalid` is the index taken for a magnitude outside the list, None for a random one.
    """

    name: str
    draw: Callable[[Rng, object, np.ndarray], tuple]
    apply: Callable[..., np.ndarray]
    levels: Mapping[str, Sequence] = field(default_factory=lambda: {"original": (None, None, None)})
    invalid: int | None = None
    mask: Callable[..., np.ndarray] | None = None

    def level(self, rng: Rng, magnitude: int, preset: str) -> object:
        """Value of `magnitude` under `preset`; draws an index where the original does so for an invalid magnitude."""
        values = self.levels.get(preset, self.levels["original"])
        if 0 <= magnitude < len(values):
            return values[magnitude]
        if values[0] is None:
            return None
        return values[self.invalid if self.invalid is not None else integers(rng, 0, len(values))]

    def sample(self, rng: Rng, magnitude: int, image: np.ndarray, preset: str = "original") -> tuple:
        """Parameters for `image` at `magnitude` (0, 1, 2; others as published)."""
        return self.draw(rng, self.level(rng, magnitude, preset), image)

    def __call__(
        self, image: np.ndarray, rng: Rng, magnitude: int = -1, probability: float = 1.0, preset: str = "original",
        mask: np.ndarray | None = None,
    ):  # fmt: skip
        """Apply with `probability` (one draw is always made). Returns the image, or (image, mask) if a mask is
        given.
        """
        if rng.uniform(0, 1) <= probability:
            parameters = self.sample(rng, magnitude, image, preset)
            image = self.apply(image, *parameters)
            if mask is not None and self.mask is not None:
                mask = self.mask(mask, *parameters)
        return image if mask is None else (image, mask)


def no_draw(rng: Rng, level: object, image: np.ndarray) -> tuple:
    """Parameters of an operation that draws none."""
    return ()


def only_level(rng: Rng, level: object, image: np.ndarray) -> tuple:
    """Parameters of an operation whose strength is its level."""
    return (level,)


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Matrix product of two float matrices (or matrix and vector) by PyTorch, whose loader workers keep to one thread
    each; numpy's own would start as many as there are cores in every worker.
    """
    return torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy()


def spread(plane: np.ndarray) -> np.ndarray:
    """HxW -> HxWx3. numpy's broadcasting over a last axis of three is slower than the arithmetic it saves."""
    return cv2.merge((plane, plane, plane))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] floats -> uint8, clipped and truncated (never rounded), as all originals do. Changes its argument."""
    np.multiply(image, 255, out=image)
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8)
