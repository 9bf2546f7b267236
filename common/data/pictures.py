"""Pictures as a person would see them, for reading and converting: transparency lies on a ground that contrasts with
the ink, and deep greys are scaled by their own range.

Training and evaluation of LMDBs use `common.data.decode`, which gives the pixels that the published loaders see.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from common.data.decode import MAX_PIXELS, BadImage, decode_jpeg, load, open_picture

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # grey with more than 8 bits


def decode_shown(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an encoded image as a viewer shows them: uint8 [H, W, 3], RGB, C-contiguous.

    Equal to `decode_rgb` for pictures of 8 bits without transparency. Raises `BadImage` and nothing else.
    """
    fast = decode_jpeg(data, max_pixels)
    return fast if fast is not None else shown(open_picture(data, max_pixels))


def shown(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as uint8 RGB [H, W, 3]; see `decode_shown`. Raises `BadImage`."""
    if image.mode in DEEP_MODES:
        return scaled_grey(np.asarray(load(image, "F" if image.mode == "F" else "I")))
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return np.array(load(image, "RGB"))
    pixels = np.asarray(load(image, "RGBA"))
    return composited(pixels[..., :3], pixels[..., 3])


def composited(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`rgb` uint8 [H, W, 3] under its coverage `alpha` uint8 [H, W] on white where the ink is dark, else on black.

    The ink is the mean colour weighted by the coverage. Where nothing is covered, the colours alone are returned.
    """
    if not alpha.any() or bool((alpha == 255).all()):
        return np.ascontiguousarray(rgb)
    step = max(1, min(alpha.shape) // 256)  # a sample will do to tell dark ink from light
    sample = alpha[::step, ::step] if alpha[::step, ::step].any() else alpha
    colours = rgb[::step, ::step] if sample is not alpha else rgb
    ink = np.average(colours.reshape(-1, 3), axis=0, weights=sample.ravel())
    ground = (255, 255, 255) if float(ink @ LUMA) < 128 else (0, 0, 0)
    covered, coverage = Image.fromarray(np.ascontiguousarray(rgb)), Image.fromarray(np.ascontiguousarray(alpha))
    return np.array(Image.composite(covered, Image.new("RGB", covered.size, ground), coverage))


def scaled_grey(values: np.ndarray) -> np.ndarray:
    """Grey values of any number type [H, W] as uint8 RGB [H, W, 3]: their smallest becomes 0, their largest 255.

    Values that are not finite count as the smallest. A picture of one value becomes a middle grey.
    """
    grey = values.astype(np.float64)
    finite = np.isfinite(grey)
    if not finite.any():
        raise BadImage("no pixel has a finite value")
    low, high = grey[finite].min(), grey[finite].max()
    grey = np.where(finite, grey, low)
    scaled = np.full(grey.shape, 128.0) if high == low else (grey - low) * (255 / (high - low))
    return np.repeat(scaled.round().astype(np.uint8)[..., None], 3, axis=2)


def one_colour(image: np.ndarray, spread: int = 3) -> bool:
    """Whether a picture uint8 [H, W, 3] is of one colour: no channel varies by more than `spread`, so no word is in
    it.
    """
    pixels = image.reshape(-1, image.shape[-1])
    return bool((pixels.max(0).astype(int) - pixels.min(0) <= spread).all())
