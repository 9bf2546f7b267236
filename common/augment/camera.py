"""Group "camera": contrast, brightness, JPEG artefacts and coarse pixels. Specs: mgpstr, section 4; siga, section
4.2.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from common.augment.operation import Operation, only_level, spread

_UNIT = np.arange(256) / 255.0


def contrast(image: np.ndarray, scale: float) -> np.ndarray:
    """Shrink every channel towards its mean: clip((x - mean) scale + mean), truncated to uint8."""
    # Each value maps to one value, so a table per channel does what the published arithmetic does per pixel.
    means = np.array(cv2.mean(image)[:3]) / 255.0
    table = np.clip((_UNIT[:, None] - means) * scale + means, 0, 1) * 255
    return cv2.LUT(image, table.astype(np.uint8)[:, None, :])


def brightness(image: np.ndarray, shift: float) -> np.ndarray:
    """Add `shift` (of [0, 1]) to V of HSV, clipped; hue and saturation stay, so all three channels scale by V'/V."""
    value = cv2.max(cv2.max(image[..., 0], image[..., 1]), image[..., 2])
    target = np.clip(_UNIT + shift, 0, 1) * 255
    gain = np.zeros(256, np.float32)
    gain[1:] = target[1:] / np.arange(1, 256)
    bright = cv2.multiply(image, spread(cv2.LUT(value, gain)), dtype=cv2.CV_32F)
    # The small addend undoes residue such as 101.9999 before the truncation.
    bright += np.float32(1e-4)
    out = bright.astype(np.uint8)
    if not value.all():
        out[value == 0] = int(target[0])
    return out


def jpeg_compression(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode to JPEG at `quality` and decode; OpenCV's pixels are Pillow's (both libjpeg, 4:2:0)."""
    coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def pixelate(image: np.ndarray, scale: float) -> np.ndarray:
    """Box-filter down to `scale` of each side (truncated) and up again."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def pixelate_mask(mask: np.ndarray, scale: float) -> np.ndarray:
    """The same on a 0/1 mask; the box mean is rounded, so a block is text if half of it is."""
    height, width = mask.shape
    small = Image.fromarray(mask.astype(np.int32)).resize(
        (int(width * scale), int(height * scale)), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)).astype(mask.dtype)


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    return (
        Operation("Contrast", only_level, contrast, {"original": (0.4, 0.3, 0.2)}),
        Operation("Brightness", only_level, brightness, {"original": (0.1, 0.2, 0.3)}),
        Operation("JpegCompression", only_level, jpeg_compression, {"original": (25, 18, 15)}),
        Operation("Pixelate", only_level, pixelate, {"original": (0.6, 0.5, 0.4)}, mask=pixelate_mask),
    )
