"""torchvision's ColorJitter and RandomGrayscale on uint8 arrays, with Pillow's pixels and numpy's generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from common.augment.rng import Rng


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation factors U(1 - x, 1 + x), hue shift U(-hue, hue) of the circle, in random
    order.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def draw(self, rng: Rng) -> tuple[np.ndarray, tuple[float, ...]]:
        """(order of the four changes, their values)."""
        order = rng.permutation(4)
        widths = (self.brightness, self.contrast, self.saturation)
        factors = tuple(rng.uniform(max(0.0, 1 - width), 1 + width) for width in widths)
        return order, (*factors, rng.uniform(-self.hue, self.hue))

    def __call__(self, image: np.ndarray, rng: Rng) -> np.ndarray:
        """uint8 HxWx3 -> uint8 HxWx3."""
        return jitter(image, *self.draw(rng))


_RAMP = np.arange(256, dtype=np.float32)


def _blend(image: np.ndarray, level: int, factor: float) -> np.ndarray:
    """Pillow's blend of the grey `level` (share 1 - factor) and the image, in its single precision, truncated."""
    table = np.float32(level) + np.float32(factor) * (_RAMP - np.float32(level))
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale by `factor`: 0 is black, 1 the image."""
    return _blend(image, 0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Move away from the mean luma by `factor`: 0 is grey, 1 the image."""
    luma = np.asarray(Image.fromarray(image).convert("L"))
    return _blend(image, int(cv2.mean(luma)[0] + 0.5), factor)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Move away from each pixel's luma by `factor`: 0 is grey, 1 the image."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by `shift` of the circle (-0.5 to 0.5); on Pillow's 8-bit HSV, wrapping, as torchvision does."""
    channels = np.array(Image.fromarray(image).convert("HSV"))
    channels[..., 0] += np.uint8(int(shift * 255) & 255)
    return np.asarray(Image.fromarray(channels, "HSV").convert("RGB"))


_CHANGES = (brightness, contrast, saturation, hue)


def jitter(image: np.ndarray, order: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """Apply brightness (0), contrast (1), saturation (2) factors and the hue (3) shift in `order`."""
    for kind in order:
        image = _CHANGES[kind](image, values[kind])
    return image


def grey(image: np.ndarray) -> np.ndarray:
    """Luma (Pillow's) in all three channels."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
