"""Group "noise": Gaussian, shot, impulse and speckle noise on the [0, 1] scale. Specs: mgpstr, section 4."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from common.augment.operation import Operation, to_uint8
from common.augment.rng import Rng, normals

_UNIT = np.arange(256) / 255.0
_UNIT32 = _UNIT.astype(np.float32)


def _unit(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Image on [0, 1], in the precision of the drawn field."""
    return cv2.LUT(image, _UNIT if like.dtype == np.float64 else _UNIT32)


def gaussian_noise(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Add `field` (image's shape, [0, 1] scale)."""
    return to_uint8(_unit(image, field) + field)


def speckle_noise(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """x + x field."""
    unit = _unit(image, field)
    return to_uint8(unit + unit * field)


def shot_noise(image: np.ndarray, counts: np.ndarray, rate: float) -> np.ndarray:
    """Photon counts (Poisson of x rate) divided by the rate; `image` only gives the shape."""
    return to_uint8(counts / rate)


def impulse_noise(image: np.ndarray, salt: np.ndarray, pepper: np.ndarray) -> np.ndarray:
    """White where `salt`, black where `pepper` (both bool, image's shape)."""
    out = image.copy()
    out[salt] = 255
    out[pepper] = 0
    return out


def _draw_field(span: float):
    def draw(rng: Rng, low: float, image: np.ndarray) -> tuple:
        return (normals(rng, image.shape, rng.uniform(low, low + span)),)

    return draw


def _draw_counts(rng: Rng, low: float, image: np.ndarray) -> tuple:
    rate = rng.uniform(low, low + 7)
    return rng.poisson(cv2.LUT(image, _UNIT * rate)), rate


def _draw_impulses(rng: Rng, low: float, image: np.ndarray) -> tuple:
    """Salt and pepper with equal chance. The original's generator is a fresh one that leaves the shared stream alone;
    this one is fresh too, but seeded by the amount drawn, so that a resumed run repeats it.
    """
    amount = rng.uniform(low, low + 0.04)
    level = np.random.default_rng(int(amount * 2**53)).random(image.shape, dtype=np.float32)
    return level < amount / 2, level > 1 - amount / 2


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    gaussian = {"original": (0.08, 0.1, 0.12), "straug": (0.06, 0.09, 0.12)}
    return (
        Operation("GaussianNoise", _draw_field(0.03), gaussian_noise, gaussian, invalid=0),
        Operation("ShotNoise", _draw_counts, shot_noise, {"original": (13, 8, 3)}, invalid=2),
        Operation("ImpulseNoise", _draw_impulses, impulse_noise, {"original": (0.03, 0.07, 0.11)}, invalid=0),
        Operation("SpeckleNoise", _draw_field(0.05), speckle_noise, {"original": (0.15, 0.2, 0.25)}, invalid=0),
    )
