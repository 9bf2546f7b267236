"""Group "blur": Gaussian, defocus, motion, glass and zoom blur. Specs: mgpstr, section 4; siga, section 4.2; ssm,
section 4.1.

The motion blur follows ImageMagick's definition without ImageMagick, the glass blur's pixel loop is one gather.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from common.augment.operation import Operation, only_level, product, to_uint8
from common.augment.rng import Rng, integers, pick

_UNIT = np.arange(256) / 255.0
_SIGMAS = (0.5, 1.0, 2.0)


@lru_cache(maxsize=256)
def _bell(radius: int, sigma: float, dtype: str) -> np.ndarray:
    """Normalised Gaussian weights of 2 radius + 1 taps."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1, dtype=dtype) / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of `sigma` pixels; window 2 (int(min side / 2) // 4) + 1 (9 at 32x128), mirrored border, rounded."""
    radius = int(min(image.shape[:2]) / 2) // 4
    if not radius:
        return image
    bell = _bell(radius, sigma, "float32")
    blurred = cv2.sepFilter2D(image, cv2.CV_32F, bell, bell, borderType=cv2.BORDER_REFLECT_101)
    return np.rint(blurred, out=blurred).astype(np.uint8)


@lru_cache(maxsize=16)
def disk(radius: int) -> tuple[np.ndarray, float]:
    """Filled disk (0/1, side 2 radius + 1) and the weight of one of its pixels in single precision."""
    axis = np.arange(-radius, radius + 1) ** 2
    inside = (axis[:, None] + axis <= radius**2).astype(np.float32)
    return inside, float(np.float32(1) / np.float32(inside.sum()))


def defocus_blur(image: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a disk of `radius` pixels, mirrored border, truncated. The published 3x3 smoothing of the disk's edge
    (sigma 0.1) has side weights of 2e-22 and is skipped."""
    inside, weight = disk(radius)
    total = cv2.filter2D(image, cv2.CV_32F, inside, borderType=cv2.BORDER_REFLECT_101)
    # Whole sums, whatever the filter's own arithmetic; double precision decides the truncation as the originals' does.
    return (np.rint(total).astype(np.float64) * weight).clip(0, 255).astype(np.uint8)


def motion_taps(radius: float, sigma: float, angle: float) -> list[tuple[int, int, float]]:
    """ImageMagick's motion kernel: (dx, dy, weight) of a one-sided Gaussian line in direction `angle` degrees."""
    count = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2.0 * sigma**2))
    weights /= weights.sum()
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Taps below 1e-5 together move no pixel by a hundredth of a level.
    kept = [(i, float(weight)) for i, weight in enumerate(weights) if weight > 1e-5]
    return [(math.ceil(i * cos - 0.5), math.ceil(i * sin - 0.5), weight) for i, weight in kept]


def motion_blur(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Motion blur of ImageMagick's `radius` and `sigma` along `angle` degrees; edge pixels replicated, truncated.

    `image` is uint8 HxW or HxWx3."""
    taps = motion_taps(radius, sigma, angle)
    reach = max(max(abs(dx), abs(dy)) for dx, dy, _ in taps)
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE).astype(np.float32)
    # The addend undoes single-precision residue just below an integer, before the truncation.
    total = np.full(image.shape, 1e-3, np.float32)
    for dx, dy, weight in taps:
        window = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        cv2.scaleAdd(window, weight, total, dst=total)
    return total.astype(np.uint8)


@lru_cache(maxsize=8)
def _rotated_line(size: int, angle: float) -> np.ndarray:
    """A line of `size` (made odd) pixels through the middle, rotated by `angle` degrees, weights summing to 1."""
    size += 1 - size % 2
    line = np.zeros((size, size), np.uint8)
    line[:, size // 2] = 128
    turn = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), -angle, 1.0)
    line = cv2.warpAffine(line, turn, (size, size)).astype(np.float32)
    return line / line.sum()


def line_blur(image: np.ndarray, size: int, angle: float) -> np.ndarray:
    """Motion blur as SSM has it (imgaug's): even weights along a line of `size` pixels at `angle` degrees."""
    return cv2.filter2D(image, -1, _rotated_line(size, angle))


def _motion(image: np.ndarray, level: tuple, angle: float) -> np.ndarray:
    return line_blur(image, level[0], angle) if len(level) == 1 else motion_blur(image, *level, angle)


def glass_blur(image: np.ndarray, sigma: float, steps: np.ndarray) -> np.ndarray:
    """Gaussian, neighbour copies, Gaussian. `steps` int8 [passes, H - shift - 1, W - shift - 1, 2] holds (dx, dy) <=
    0 per pixel from the last row and column backwards.

    The original walks backwards through the pixels and swaps through views of one array, so every pixel only copies a
    neighbour up or left that is still untouched: one gather per pass.
    """
    image = _soft(image, sigma)
    height, width = image.shape[:2]
    rows, columns = steps.shape[1:3]
    base = np.arange(height * width, dtype=np.intp).reshape(height, width)
    for step in steps[:, ::-1, ::-1]:
        source = base.copy()
        source[height - rows :, width - columns :] += step[..., 1].astype(np.intp) * width + step[..., 0]
        image = image.reshape(-1, 3).take(source.ravel(), axis=0).reshape(image.shape)
    return _soft(image, sigma)


def _soft(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian in double precision with replicated border, truncated (scikit-image's filter on [0, 1])."""
    bell = _bell(int(4 * sigma + 0.5), sigma, "float64")
    return to_uint8(cv2.sepFilter2D(cv2.LUT(image, _UNIT), cv2.CV_64F, bell, bell, borderType=cv2.BORDER_REPLICATE))


Box = tuple[float, float, float, float]


@lru_cache(maxsize=64)
def zooms(height: int, width: int, stop: float, step: float) -> tuple[tuple[np.ndarray | None, tuple[Box, ...]], ...]:
    """The zooms by arange(1, stop, step), grouped by their height: (vertical resampling matrix [H, H], boxes of source
    columns). None for the matrix where rows stay as they are.
    """
    groups: dict[int, list[Box]] = {}
    for factor in np.arange(1, stop, step):
        wide, high = int(width * factor), int(height * factor)
        left = (wide - width) // 2
        box = (left * width / wide, 0.0, (left + width) * width / wide, float(height))
        groups.setdefault(high, []).append(box)
    return tuple((_zoom_rows(height, high), tuple(boxes)) for high, boxes in groups.items())


def _zoom_rows(height: int, high: int) -> np.ndarray | None:
    """Pillow's bicubic weights [H, H] of the middle `height` rows of a picture enlarged to `high` rows."""
    if high == height:
        return None
    top = (high - height) // 2
    box = (0, top * height / high, height, (top + height) * height / high)
    identity = Image.fromarray(np.eye(height, dtype=np.float32))
    return np.array(identity.resize((height, height), Image.Resampling.BICUBIC, box=box))


def zoom_blur(image: np.ndarray, stop: float, step: float) -> np.ndarray:
    """Mean of the image and its bicubic zooms by arange(1, stop, step), truncated.

    Zooms of equal height share one vertical pass over their sum, so single pixels may differ by one level from the
    mean of zooms that were each rounded.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    total, count = image.astype(np.float32), 1
    for rows, boxes in zooms(height, width, stop, step):
        parts = np.zeros(image.shape, np.float32)
        for box in boxes:
            whole = box[0] == 0 and box[2] == width
            zoomed = picture if whole else picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
            cv2.accumulate(np.asarray(zoomed), parts)
        count += len(boxes)
        if rows is None:
            total += parts
        else:
            part = product(rows, parts.reshape(height, -1)).reshape(image.shape)
            total += np.clip(part, 0, 255 * len(boxes), out=part)
    total /= count
    # The small addend undoes residue just below an integer, before the truncation.
    total += np.float32(1e-3)
    return total.astype(np.uint8)


def _draw_sigma(rng: Rng, sigma: float | None, image: np.ndarray) -> tuple:
    """The originals test the magnitude against a two-element kernel size, so magnitude 2 draws its sigma."""
    return (pick(rng, _SIGMAS) if sigma is None else sigma,)


def _draw_direction(rng: Rng, level: tuple, image: np.ndarray) -> tuple:
    return level, (pick(rng, (-45, 45)) if len(level) == 1 else rng.uniform(-45, 45))


def _draw_steps(rng: Rng, level: tuple[float, int, int], image: np.ndarray) -> tuple:
    sigma, shift, passes = level
    height, width = image.shape[:2]
    size = (passes, height - shift - 1, width - shift - 1, 2)
    if isinstance(rng, np.random.RandomState):
        return sigma, integers(rng, -shift, shift, size).astype(np.int8)
    return sigma, rng.integers(-shift, shift, size, dtype=np.int8)


def _draw_zoom(rng: Rng, level: tuple[float, float], image: np.ndarray) -> tuple:
    return level


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    motion = {"original": ((10, 3), (12, 4), (14, 5)), "ssm": ((16,),) * 3}
    glass = {"original": ((0.7, 1, 2), (0.75, 1, 2), (0.8, 1, 2)), "straug": ((0.45, 1, 1), (0.6, 1, 2), (0.75, 1, 2))}
    zoom = {"original": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02))}
    return (
        Operation("GaussianBlur", _draw_sigma, gaussian_blur, {"original": (0.5, 1.0, None), "straug": _SIGMAS}),
        Operation("DefocusBlur", only_level, defocus_blur, {"original": (2, 3, 4)}),
        Operation("MotionBlur", _draw_direction, _motion, motion),
        Operation("GlassBlur", _draw_steps, glass_blur, glass),
        Operation("ZoomBlur", _draw_zoom, zoom_blur, zoom),
    )
