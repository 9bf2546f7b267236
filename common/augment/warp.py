"""Group "warp": curve, distort and stretch by thin-plate splines. Specs: mgpstr, section 4; siga, section 4.2."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from common.augment import spline
from common.augment.operation import Operation, product
from common.augment.rng import Rng

SIDE = 224
"""Side of the square on which Curve and Rotate work, pixels."""


@lru_cache(maxsize=256)
def _row_weights(height: int, rows: int) -> np.ndarray:
    """Pillow's bicubic weights, float32 [rows, height]."""
    identity = Image.fromarray(np.eye(height, dtype=np.float32))
    return np.array(identity.resize((height, rows), Image.Resampling.BICUBIC))


def resize_bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pillow's bicubic (with antialiasing) resize of uint8 HxW or HxWx3, its vertical pass as one product.

    About one value in ten thousand differs from Pillow's fixed-point sum, by one level.
    """
    rows = image.shape[0]
    across = np.asarray(Image.fromarray(image).resize((width, rows), Image.Resampling.BICUBIC))
    total = product(_row_weights(rows, height), across.reshape(rows, -1).astype(np.float32))
    total += np.float32(0.5)
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8).reshape(height, width, *image.shape[2:])


def on_mask(transform):
    """The same change for a 0/1 mask: done on 0/255 and cut at one half."""

    def moved(mask: np.ndarray, *parameters) -> np.ndarray:
        return (transform(mask.astype(np.uint8) * 255, *parameters) >= 128).astype(mask.dtype)

    return moved


def bend(image: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Thin-plate warp that brings `sources` to `targets` ([n, 2] as (x, y) in pixels), black outside."""
    return spline.warp(image, targets, sources)


def curve_points(radius: float, thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """(targets, sources) of an arc of `radius` and `thickness` pixels on the 224 square."""
    w = h = SIDE
    w50, h50, w25, w75 = w / 2, h / 2, w / 4, 3 * w / 4
    x1 = (radius**2 - w50**2) ** 0.5
    h1 = radius - x1
    w2, hi = w50 * thickness / radius, x1 * thickness / radius
    sin, cos = ((1 - x1 / radius) / 2) ** 0.5, ((1 + x1 / radius) / 2) ** 0.5
    inner = radius - thickness
    w3, h3, w4, h4 = w50 - radius * sin, radius - radius * cos, w50 - inner * sin, radius - inner * cos
    h2, w5, h5 = h1 + hi, w2 / 2, h1 + hi / 2
    sources = [
        (0, 0),
        (w, 0),
        (w50, 0),
        (0, h),
        (w, h),
        (w25, 0),
        (w75, 0),
        (w50, h),
        (w25, h),
        (w75, h),
        (0, h50),
        (w, h50),
    ]
    targets = [
        (0, h1),
        (w, h1),
        (w50, 0),
        (w2, h2),
        (w - w2, h2),
        (w3, h3),
        (w - w3, h3),
        (w50, thickness),
        (w4, h4),
        (w - w4, h4),
    ]
    targets += [(w5, h5), (w - w5, h5)]
    return np.array(targets, np.float64), np.array(sources, np.float64)


def curve(image: np.ndarray, flipped: bool, radius: float, thickness: float) -> np.ndarray:
    """Bend onto an arc (upwards; downwards if `flipped`) on the 224 square, keep the half that shows it, resize
    back.
    """
    height, width = image.shape[:2]
    square = resize_bicubic(image, SIDE, SIDE)
    if flipped:
        square = square[::-1]
    targets, sources = curve_points(radius, thickness)
    # The spline is smooth on this scale: between points 2 pixels apart a straight line is as good.
    grid = spline.sampling_map(spline.solve(targets, sources), targets, SIDE // 2, SIDE, step=2)
    half = cv2.remap(np.ascontiguousarray(square), grid, None, cv2.INTER_LINEAR)
    return resize_bicubic(half[::-1] if flipped else half, width, height)


def _draw_curve(rng: Rng, low: float, image: np.ndarray) -> tuple:
    flipped = rng.uniform(0, 1) > 0.5
    radius = rng.uniform(low, low + 0.1) * SIDE
    return flipped, radius, rng.uniform(0.4, 0.5) * SIDE


def _draw_distort(rng: Rng, fraction: float, image: np.ndarray) -> tuple:
    """Every corner and third of both edges moves inwards (thirds also sideways)."""
    height, width = image.shape[:2]
    bounds = ((0, fraction), (-fraction, fraction), (-fraction, fraction), (-fraction, 0))
    sources, targets = [], []
    for y, down in ((0, (0, fraction)), (height, (-fraction, 0))):
        for x, sideways in zip((0, 0.33 * width, 0.66 * width, width), bounds, strict=True):
            sources.append((x, y))
            move = rng.uniform(*sideways) * 0.33 * width
            targets.append((x + move, y + rng.uniform(*down) * 0.5 * height))
    return np.array(targets, np.float64), np.array(sources, np.float64)


def _draw_stretch(rng: Rng, fraction: float, image: np.ndarray) -> tuple:
    """Four columns of points, each moved sideways as one."""
    height, width = image.shape[:2]
    bounds = ((0, fraction), (-fraction, fraction), (-fraction, fraction), (-fraction, 0))
    sources, targets = [], []
    for column, (x, sideways) in enumerate(zip((0, 0.33 * width, 0.66 * width, width), bounds, strict=True)):
        move = rng.uniform(*sideways) * 0.33 * width
        for y in (0, height, height / 2) if column in (0, 3) else (0, height):
            sources.append((x, y))
            targets.append((x + move, y))
    return np.array(targets, np.float64), np.array(sources, np.float64)


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    fractions = {"original": (0.2, 0.3, 0.4)}
    return (
        Operation("Curve", _draw_curve, curve, {"original": (1.1, 0.95, 0.8)}, invalid=0, mask=on_mask(curve)),
        Operation("Distort", _draw_distort, bend, fractions, invalid=2, mask=on_mask(bend)),
        Operation("Stretch", _draw_stretch, bend, fractions, invalid=2, mask=on_mask(bend)),
    )
