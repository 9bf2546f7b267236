"""ABINet's augmentation of word crops, image and mask together (SIGA R and S `--Aug`, DiG `--use_abi_aug`).

As published, the kind of geometry and the strength of the deterioration are drawn once, when a data set is built, from
the global generators of Python and NumPy: every image of that data set gets the same kind. `published_strengths`
replays those draws. `resample=True` draws them for each image instead (what the method seems to have meant).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from common.augment import cv_geometry as ops
from common.augment.photometric import ColorJitter
from common.augment.rng import Rng, asymmetric, normals, pick, symmetric

DEGREES, SCALES, SHEAR, DISTORTION = 45.0, (0.5, 2.0), (45.0, 15.0), 0.5
NOISE_VARIANCE, BLUR_SIZE, BLUR_DEGREES, RESCALE_FACTOR = 20.0, 6.0, 90.0, 4.0
JITTER = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)


@dataclass(frozen=True)
class Strength:
    """What is drawn once per run: kind of geometry, noise variance, blur size and angle, halvings, order of
    deteriorations.
    """

    geometry: str
    variance: int
    blur_size: int
    blur_angle: float
    halvings: int
    order: tuple[int, ...]


def published_strengths(seed: int, count: int = 1) -> list[Strength]:
    """The strengths of `count` data sets that the published code builds one after another after seeding with `seed`.

    Python's generator draws the kind and shuffles the deteriorations; NumPy's legacy generator draws the rest.
    """
    python, legacy = random.Random(seed), np.random.RandomState(seed)
    found = []
    for _ in range(count):
        share, order = python.random(), [0, 1, 2]
        python.shuffle(order)
        found.append(Strength(_kind(share), *_deterioration(legacy), tuple(order)))
    return found


def draw_strength(rng: Rng) -> Strength:
    """A strength by the published laws."""
    share = rng.uniform(0, 1)
    return Strength(_kind(share), *_deterioration(rng), tuple(int(i) for i in rng.permutation(3)))


def _kind(share: float) -> str:
    """Kind of geometry of a share in [0, 1); a third each, as the published thresholds have it."""
    return "rotation" if share < 0.33 else "affine" if share < 0.66 else "perspective"


def _deterioration(rng: Rng) -> tuple[int, int, float, int]:
    """Noise variance, blur size, blur angle and number of halvings."""
    return (
        max(int(asymmetric(rng, NOISE_VARIANCE)), 1),
        max(int(asymmetric(rng, BLUR_SIZE)), 1),
        rng.uniform(-BLUR_DEGREES, BLUR_DEGREES),
        round(rng.uniform(0, RESCALE_FACTOR)),
    )


class AbinetAugment:
    """Callable (image uint8 HxWx3, rng, mask=None) -> image, or (image, mask) if a mask is given.

    Geometry with probability 0.5, deterioration 0.25, colour jitter 0.25; the mask follows the geometry only. Sizes
    change. As published, the mask becomes float64 where geometry or deterioration is applied and keeps its type
    otherwise; the type decides how SIGA resizes it.

    Args:
        strength: of every image; None draws one for each image.
        geometry, deterioration, jitter: the probabilities.
    """

    def __init__(
        self,
        strength: Strength | None = None,
        geometry: float = 0.5,
        deterioration: float = 0.25,
        jitter: float = 0.25,
    ):
        self.strength = strength
        self.probabilities = geometry, deterioration, jitter

    def __call__(self, image: np.ndarray, rng: Rng, mask: np.ndarray | None = None):
        strength = draw_strength(rng) if self.strength is None else self.strength
        image = np.ascontiguousarray(image)
        if rng.uniform(0, 1) < self.probabilities[0]:
            image, mask = move(image, as_float(mask), strength.geometry, rng)
        if rng.uniform(0, 1) < self.probabilities[1]:
            image, mask = deteriorate(image, strength, rng), as_float(mask)
        if rng.uniform(0, 1) < self.probabilities[2]:
            image = JITTER(image, rng)
        return image if mask is None else (image, mask)


def as_float(mask: np.ndarray | None) -> np.ndarray | None:
    """A mask as float64, the type in which the published code warps it."""
    return None if mask is None else np.ascontiguousarray(mask, dtype=np.float64)


def move(image: np.ndarray, mask: np.ndarray | None, kind: str, rng: Rng) -> tuple[np.ndarray, np.ndarray | None]:
    """One geometric change of the `kind` (rotation, affine, perspective), the same for image and mask (None: no
    mask).
    """
    height, width = image.shape[:2]
    if kind == "rotation":
        call, parameters = ops.rotate, (symmetric(rng, DEGREES),)
    elif kind == "affine":
        angle, scale = symmetric(rng, DEGREES), rng.uniform(*SCALES)
        call, parameters = ops.shear_and_scale, (angle, scale, (symmetric(rng, SHEAR[0]), symmetric(rng, SHEAR[1])))
    else:
        offsets_h = asymmetric(rng, DISTORTION * height / 2, 4).astype(int).tolist()
        offsets_w = asymmetric(rng, DISTORTION * width / 2, 4).astype(int).tolist()
        call, parameters = ops.tilt, (offsets_h, offsets_w)
    interpolation = pick(rng, ops.INTERPOLATIONS)
    moved = call(image, *parameters, interpolation)
    return moved, None if mask is None else call(mask, *parameters, interpolation)


def deteriorate(image: np.ndarray, strength: Strength, rng: Rng) -> np.ndarray:
    """Noise, motion blur and loss of detail, in the order of `strength`."""
    for step in strength.order:
        if step == 0:
            field = normals(rng, image.shape, strength.variance**0.5)
            image = ops.add_noise(image, field)
        elif step == 1:
            image = ops.motion_blur(image, strength.blur_size, strength.blur_angle)
        elif strength.halvings:
            image = ops.rescale(image, strength.halvings, pick(rng, ops.INTERPOLATIONS), pick(rng, ops.INTERPOLATIONS))
    return image
