"""The fine-tuning augmentation: RandAugment with the scene-text overrides of PARSeq (spec, section 4.2).

Three of sixteen operations, drawn without replacement, each applied with probability 0.5 at magnitude 5 of 10 without
noise; on the image as decoded, before the resize. What an operation uncovers is grey.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from common.augment.rng import Rng, distinct

LAYERS, PROBABILITY, MAGNITUDE = 3, 0.5, 5
FILL = (128, 128, 128)
_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

Change = Callable[[Image.Image, float, Rng], Image.Image]


def _signed(value: float, rng: Rng) -> float:
    return -value if rng.uniform(0, 1) > 0.5 else value


def _resampling(rng: Rng) -> Image.Resampling:
    return _RESAMPLING[int(rng.uniform(0, 1) < 0.5)]


def _affine(picture: Image.Image, coefficients: tuple[float, ...], rng: Rng) -> Image.Image:
    """output(x, y) = input(a x + b y + c, d x + e y + f), size kept."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients, resample=_resampling(rng), fillcolor=FILL
    )


def rotate(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """30 degrees times `level`, either way, on a canvas that holds all of it."""
    return picture.rotate(_signed(30 * level, rng), resample=_resampling(rng), expand=True, fillcolor=FILL)


def shear_x(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Slant by 0.9 times `level`, either way."""
    return _affine(picture, (1, _signed(0.9 * level, rng), 0, 0, 1, 0), rng)


def shear_y(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Shear the rows by 0.2 times `level`, either way."""
    return _affine(picture, (1, 0, 0, _signed(0.2 * level, rng), 1, 0), rng)


def translate_x(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Move by 0.1 times `level` of the width, either way."""
    return _affine(picture, (1, 0, _signed(0.1 * level, rng) * picture.width, 0, 1, 0), rng)


def translate_y(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Move by 0.3 times `level` of the height, either way."""
    return _affine(picture, (1, 0, 0, 0, 1, _signed(0.3 * level, rng) * picture.height), rng)


def _enhancing(enhancer: type) -> Change:
    def change(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
        return enhancer(picture).enhance(max(0.1, 1 + _signed(0.9 * level, rng)))

    return change


def posterize(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Keep 4 - int(4 `level`) bits, at least one."""
    return ImageOps.posterize(picture, max(4 - int(4 * level), 1))


def solarize(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Invert values from 256 - int(256 `level`) on."""
    return ImageOps.solarize(picture, 256 - min(int(256 * level), 256))


def solarize_add(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Add int(110 `level`) to values below 128."""
    added = min(128, int(110 * level))
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _at_most(picture: Image.Image, share: float, most: float) -> int:
    """`share` of the longer side, in 1 .. `most`, rounded."""
    return round(min(most, max(1, share * max(picture.size))))


def gaussian_blur(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Radius 2 % of the longer side, 1 to 4 `level` pixels."""
    return picture.filter(ImageFilter.GaussianBlur(_at_most(picture, 0.02, 4 * level)))


def poisson_noise(picture: Image.Image, level: float, rng: Rng) -> Image.Image:
    """Add Poisson counts of random sign, the same in all channels; mean 20 % of the longer side, 1 to 40 `level`,
    odd.
    """
    counts = rng.poisson(_at_most(picture, 0.2, 40 * level) | 1, (picture.height, picture.width, 1))
    signs = np.where(rng.uniform(0, 1, counts.shape) < 0.5, -1, 1)
    return Image.fromarray(np.clip(np.asarray(picture) + counts * signs, 0, 255).astype(np.uint8))


OPERATIONS: dict[str, Change] = {
    "AutoContrast": lambda picture, level, rng: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, level, rng: ImageOps.equalize(picture),
    "Invert": lambda picture, level, rng: ImageOps.invert(picture),
    "Rotate": rotate,
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": _enhancing(ImageEnhance.Color),
    "ContrastIncreasing": _enhancing(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhancing(ImageEnhance.Brightness),
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
    "GaussianBlur": gaussian_blur,
    "PoissonNoise": poisson_noise,
}


class SceneTextRandAugment:
    """Callable (image uint8 HxWx3, rng, mask=None) -> image (rotation grows it), or (image, mask as it was).

    `magnitude` of 10 scales the operations; `layers` of them are drawn, each applied with `probability`.
    """

    def __init__(self, magnitude: int = MAGNITUDE, layers: int = LAYERS, probability: float = PROBABILITY):
        self.level, self.layers, self.probability = magnitude / 10, layers, probability
        self.operations = list(OPERATIONS.values())

    def __call__(self, image: np.ndarray, rng: Rng, mask: np.ndarray | None = None):
        picture = Image.fromarray(np.ascontiguousarray(image))
        for index in distinct(rng, len(self.operations), self.layers):
            if rng.uniform(0, 1) <= self.probability:
                picture = self.operations[index](picture, self.level, rng)
        image = np.asarray(picture)
        return image if mask is None else (image, mask)
