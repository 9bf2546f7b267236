"""Group "process": point operations of PIL as 256-entry tables, and two enhancements. Specs: mgpstr, section 4."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from common.augment.operation import Operation, no_draw
from common.augment.rng import Rng, integers

_RAMP = np.arange(256, dtype=np.uint8)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the top `bits` bits of every value. `bits` 0 to 8."""
    return cv2.LUT(image, _RAMP & np.uint8(256 - (1 << (8 - bits)) & 255))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Invert values at or above `threshold` (0 to 256)."""
    return cv2.LUT(image, np.where(threshold > _RAMP, _RAMP, 255 - _RAMP))


def invert(image: np.ndarray) -> np.ndarray:
    """255 - image."""
    return cv2.bitwise_not(image)


def equalize(image: np.ndarray, enabled: bool = True) -> np.ndarray:
    """Histogram equalisation per channel by PIL's rule; the image itself where `enabled` is False."""
    return np.asarray(ImageOps.equalize(Image.fromarray(image))) if enabled else image


def auto_contrast(image: np.ndarray, enabled: bool = True) -> np.ndarray:
    """Stretch each channel to 0..255 by PIL's rule; the image itself where `enabled` is False."""
    return np.asarray(ImageOps.autocontrast(Image.fromarray(image))) if enabled else image


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """PIL's sharpness enhancement: below 1 smooths, above 1 sharpens."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """PIL's colour enhancement: 0 is grey, 1 the image."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def _draw_bits(rng: Rng, low: int, image: np.ndarray) -> tuple:
    return (integers(rng, low, low + 2),)


def _draw_threshold(rng: Rng, low: int, image: np.ndarray) -> tuple:
    return (integers(rng, low, low + 64),)


def _draw_factor(rng: Rng, low: float, image: np.ndarray) -> tuple:
    return (rng.uniform(low, low + 0.6),)


def _enabled(rng: Rng, level: bool, image: np.ndarray) -> tuple:
    return (level,)


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    # MGP-STR, ACDS-STR and SSM assign the result of these two to a misspelt name, so nothing happens there.
    works = {"original": (False,) * 3, "siga": (True,) * 3, "straug": (True,) * 3}
    factors = (0.1, 0.7, 1.3)
    return (
        Operation("Posterize", _draw_bits, posterize, {"original": (1, 3, 6), "straug": (6, 3, 1)}),
        Operation("Solarize", _draw_threshold, solarize, {"original": (64, 128, 192), "straug": (192, 128, 64)}),
        Operation("Invert", no_draw, invert),
        Operation("Equalize", _enabled, equalize, works, invalid=0),
        Operation("AutoContrast", _enabled, auto_contrast, works, invalid=0),
        Operation("Sharpness", _draw_factor, sharpness, {"original": factors}),
        Operation("Color", _draw_factor, color, {"original": factors, "straug": (0.1, 0.5, 0.9)}),
    )
