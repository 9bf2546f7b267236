"""torchvision's ColorJitter and RandomGrayscale on uint8 arrays, with Pillow's pixels and numpy's generator."""

from __future__ import annotations

from dataclasses import dataclass

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


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter(image: np.ndarray, order: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """Apply brightness (0), contrast (1), saturation (2) factors and the hue (3) shift in `order`."""
    picture = Image.fromarray(image)
    for kind in order:
        picture = _shift_hue(picture, values[3]) if kind == 3 else _ENHANCERS[kind](picture).enhance(values[kind])
    return np.asarray(picture)


def _shift_hue(picture: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by `shift` of the circle; on 8-bit HSV, wrapping, as torchvision does."""
    channels = np.array(picture.convert("HSV"))
    channels[..., 0] += np.uint8(int(shift * 255) & 255)
    return Image.fromarray(channels, "HSV").convert("RGB")


def grey(image: np.ndarray) -> np.ndarray:
    """Luma (Pillow's) in all three channels."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
