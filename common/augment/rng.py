"""Drawing from either kind of numpy generator, so that one operation serves parity tests and resumable training.

`np.random.RandomState` replays the published draws one by one (the originals use numpy's legacy global generator);
`np.random.Generator` is what the data loader seeds per sample. The functions here hide the two spellings.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_WARM_UP = 16  # OpenCV's first number after seeding is far from random
Rng = np.random.Generator | np.random.RandomState


def integers(rng: Rng, low, high, size=None):
    """Integers of [low, high), `high` excluded; a Python int where `size` is None and the bounds are scalars."""
    drawn = (
        rng.randint(low, high, size=size)
        if isinstance(rng, np.random.RandomState)
        else rng.integers(low, high, size=size)
    )
    return int(drawn) if np.ndim(drawn) == 0 else drawn


def uniforms(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """U(0, 1) of `shape`; single precision from a Generator, where nothing has to be replayed bit by bit."""
    return rng.random_sample(shape) if isinstance(rng, np.random.RandomState) else rng.random(shape, dtype=np.float32)


def normals(rng: Rng, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """N(0, scale) of `shape`. From a Generator, where nothing has to be replayed bit by bit: single precision, by
    OpenCV's quicker generator, seeded with one draw.
    """
    if isinstance(rng, np.random.RandomState):
        return rng.normal(size=shape, scale=scale)
    size = int(np.prod(shape))
    field = np.empty(size + _WARM_UP, np.float32)
    cv2.setRNGSeed(int(rng.integers(1 << 31)))
    cv2.randn(field, 0.0, float(scale))
    return field[_WARM_UP:].reshape(shape)


def pick(rng: Rng, options: Sequence):
    """One of `options`, uniformly."""
    return options[integers(rng, 0, len(options))]


def distinct(rng: Rng, total: int, count: int) -> np.ndarray:
    """`count` different numbers below `total`: the head of a permutation (what choice without replacement draws)."""
    return rng.permutation(total)[:count]


def asymmetric(rng: Rng, magnitude: float, size=None):
    """ABINet's one-sided law: magnitude * Beta(1, 4), most often small. Range [0, magnitude]."""
    return rng.beta(1, 4, size=size) * magnitude


def symmetric(rng: Rng, magnitude: float, size=None):
    """ABINet's two-sided law: 2 magnitude (Beta(4, 4) - 1/2). Range [-magnitude, magnitude]."""
    return (rng.beta(4, 4, size=size) - 0.5) * 2 * magnitude
