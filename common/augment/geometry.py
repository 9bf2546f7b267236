"""Group "geometry": rotate, perspective and shrink. Specs: mgpstr, section 4; siga, section 4.2."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from common.augment import spline
from common.augment.operation import Operation
from common.augment.rng import Rng
from common.augment.warp import SIDE, on_mask, resize_bicubic


def rotate(image: np.ndarray, angle: float, expand: bool = True) -> np.ndarray:
    """Rotate by `angle` degrees (counter-clockwise) on the 224 square, growing the canvas if `expand`, and resize
    back.
    """
    height, width = image.shape[:2]
    square = Image.fromarray(resize_bicubic(image, SIDE, SIDE))
    turned = square.rotate(angle, resample=Image.Resampling.BICUBIC, expand=expand)
    return resize_bicubic(np.asarray(turned), width, height)


def perspective(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warp by a 3x3 matrix, bilinear, black outside."""
    return cv2.warpPerspective(image, matrix, (image.shape[1], image.shape[0]))


def perspective_matrix(height: int, width: int, right: bool, top: float, bottom: float) -> np.ndarray:
    """3x3 matrix that brings one side (`right` or left) to the rows `top`..`bottom`, pixels."""
    source = np.float32([[0, 0], [width, 0], [0, height], [width, height]])
    target = source.copy()
    side = [1, 3] if right else [0, 2]
    target[side, 1] = top, bottom
    return cv2.getPerspectiveTransform(source, target)


def shift(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """output(x, y) = input(x + dx, y + dy), nearest, black outside."""
    picture = Image.fromarray(image)
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy)))


def shrink(image: np.ndarray, targets: np.ndarray, sources: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Thin-plate warp of `sources` to `targets`, then a shift by (dx, dy) pixels."""
    return shift(spline.warp(image, targets, sources), dx, dy)


def _draw_angle(rng: Rng, level: tuple[float, float], image: np.ndarray) -> tuple:
    most, span = level
    angle = rng.uniform(most - span, most)
    return (-angle if rng.uniform(0, 1) < 0.5 else angle,)


def _draw_perspective(rng: Rng, low: float, image: np.ndarray) -> tuple:
    height, width = image.shape[:2]
    right = rng.uniform(0, 1) > 0.5
    top = rng.uniform(low, low + 0.1) * height
    bottom = rng.uniform(1 - low - 0.1, 1 - low) * height
    return (perspective_matrix(height, width, right, top, bottom),)


def _draw_shrink(rng: Rng, fraction: float, image: np.ndarray) -> tuple:
    """Outer columns come in by x, all points by y; then a shift of at most as much along one axis."""
    height, width = image.shape[:2]
    x = rng.uniform(fraction - 0.1, fraction) * 0.33 * width
    y = rng.uniform(fraction - 0.1, fraction) * 0.5 * height
    columns = ((0, x), (0.33 * width, 0.33 * width), (0.66 * width, 0.66 * width), (width, width - x))
    sources = [(column, edge) for column, _ in columns for edge in (0, height)]
    targets = [(column, edge) for _, column in columns for edge in (y, height - y)]
    along_x = rng.uniform(0, 1) < 0.5
    rng.uniform(0, 1)  # the translation is an operation of its own, which draws its probability
    by = rng.uniform(0, x if along_x else y)
    by = -by if rng.uniform(0, 1) > 0.5 else by
    return np.array(targets, np.float64), np.array(sources, np.float64), by * along_x, by * (not along_x)


def _rotate_inside(image: np.ndarray, angle: float) -> np.ndarray:
    return rotate(image, angle, expand=False)


_ANGLES = {"original": ((10, 10), (20, 10), (30, 10)), "straug": ((15, 20), (30, 20), (45, 20))}
ROTATE_INSIDE = Operation("RotateInside", _draw_angle, _rotate_inside, _ANGLES, invalid=1, mask=on_mask(_rotate_inside))
"""Rotate without growing the canvas: what follows a Curve in the selective recipe."""


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    lows = {"original": (0.1, 0.2, 0.3), "straug": (0.05, 0.1, 0.15)}
    return (
        Operation("Rotate", _draw_angle, rotate, _ANGLES, invalid=1, mask=on_mask(rotate)),
        Operation("Perspective", _draw_perspective, perspective, lows, invalid=2, mask=on_mask(perspective)),
        # SIGA shifts the mask by a draw of its own, so it no longer lies on the text; here both move alike.
        Operation("Shrink", _draw_shrink, shrink, {"original": (0.2, 0.3, 0.4)}, invalid=0, mask=on_mask(shrink)),
    )
