"""`--fast_aug`: the operations and parameters of the STR RandAugment family with cheaper pixels.

Consecutive geometric operations become one sampling map and one bilinear warp, without the 224-square detours; the
few slow pixel operations have cheaper stand-ins. What is drawn (operations, magnitudes, angles, points) stays the
same; Poisson counts come from a rounded Gaussian of the same mean and variance, and fog from a plasma without its two
finest levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import cv2
import numpy as np

from common.augment import spline, warp, weather
from common.augment.operation import Operation, to_uint8
from common.augment.rng import Rng, normals

_UNIT32 = (np.arange(256) / 255.0).astype(np.float32)
_OUTSIDE = -1e4
_STEP = 4


@lru_cache(maxsize=64)
def _pixels(height: int, width: int) -> np.ndarray:
    """float32 [3, H W]: x, y and 1 of every pixel."""
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([xs.ravel(), ys.ravel(), np.ones(height * width, np.float32)])


def _linear_map(height: int, width: int, matrix: np.ndarray) -> np.ndarray:
    """Sampling map [H, W, 2] of a 2x3 or 3x3 matrix from output to input pixels."""
    points = matrix.astype(np.float32) @ _pixels(height, width)
    if len(points) == 3:
        points = points[:2] / points[2]
    return np.ascontiguousarray(points.T).reshape(height, width, 2)


def rotate_map(height: int, width: int, angle: float, expand: bool = True) -> np.ndarray:
    """Rotate: stretch to the square, turn, squeeze back, as one affine map. Angle in degrees."""
    side = warp.SIDE
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    canvas = side * (abs(cos) + abs(sin)) if expand else side
    ax, ay = canvas / width, canvas / height
    bx, by = width / side, height / side
    # Pixel centres: output -> canvas about its middle -> turned -> input.
    linear = np.array([[cos * ax * bx, -sin * ay * bx], [sin * ax * by, cos * ay * by]])
    middle = np.array([width / 2 - 0.5, height / 2 - 0.5])
    return _linear_map(height, width, np.column_stack([linear, middle - linear @ middle]))


def perspective_map(height: int, width: int, matrix: np.ndarray) -> np.ndarray:
    """Perspective: the inverse of its forward matrix."""
    return _linear_map(height, width, np.linalg.inv(matrix))


def bend_map(height: int, width: int, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Distort and Stretch: the spline at every fourth pixel, straight lines between."""
    return spline.sampling_map(spline.solve(targets, sources), targets, height, width, _STEP)


def shrink_map(height: int, width: int, targets: np.ndarray, sources: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Shrink: the spline seen from pixels shifted by whole steps, as the published nearest-neighbour shift does."""
    return bend_map(height, width, targets - (math.floor(dx + 0.5), math.floor(dy + 0.5)), sources)


def curve_map(height: int, width: int, flipped: bool, radius: float, thickness: float) -> np.ndarray:
    """Curve: the spline of the 224 square's half, in coordinates of the small picture."""
    side = warp.SIDE
    targets, sources = warp.curve_points(radius, thickness)
    # Rescaling the points would change the radial kernel, so the spline stays in the square and only the pixels where
    # it is evaluated are those of the small picture, whose rows span the upper half of the square.
    xs, ys = spline.block_centres(height, width, _STEP)
    square_x, square_y = (
        ((xs + 0.5) * side / width - 0.5).astype(np.float32),
        ((ys + 0.5) * side / (2 * height) - 0.5).astype(np.float32),
    )
    grid = spline.refine(
        spline.evaluate(spline.solve(targets, sources), targets, square_x, square_y), height, width, _STEP
    )
    grid = (grid + np.float32(0.5)) * np.array([width / side, height / side], np.float32) - np.float32(0.5)
    if flipped:
        grid = grid[::-1].copy()
        grid[..., 1] = height - 1 - grid[..., 1]
    return grid


MAPS: dict[str, Callable[..., np.ndarray]] = {
    "Curve": curve_map,
    "Distort": bend_map,
    "Stretch": bend_map,
    "Rotate": rotate_map,
    "RotateInside": partial(rotate_map, expand=False),
    "Perspective": perspective_map,
    "Shrink": shrink_map,
}


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One map for sampling by `first` and then by `second`; what lies outside stays outside."""
    border = (_OUTSIDE, _OUTSIDE)
    return cv2.remap(first, second, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border)


def _draw_counts(rng: Rng, low: float, image: np.ndarray) -> tuple:
    rate = rng.uniform(low, low + 7)
    return normals(rng, image.shape, 1.0), rate


def shot_noise(image: np.ndarray, field: np.ndarray, rate: float) -> np.ndarray:
    """Rounded Gaussian of the Poisson's mean and variance, over the rate."""
    mean = cv2.LUT(image, _UNIT32 * np.float32(rate))
    field = np.asarray(field, np.float32) * cv2.LUT(image, np.sqrt(_UNIT32 * np.float32(rate)))
    return to_uint8(np.rint(mean + field) / np.float32(rate))


def _draw_fog(rng: Rng, level: tuple[float, float], image: np.ndarray) -> tuple:
    strength, decay = level
    height, width = image.shape[:2]
    coarse = weather.plasma(rng, decay, weather.PLASMA_SIDE // 4)
    rows, columns = min(-(-height // 4) + 1, len(coarse)), min(-(-width // 4) + 1, len(coarse))
    cloud = cv2.resize(
        coarse[:rows, :columns].astype(np.float32), (4 * columns, 4 * rows), interpolation=cv2.INTER_LINEAR
    )
    if cloud.shape[0] < height or cloud.shape[1] < width:
        cloud = cv2.resize(cloud, (width, height))
    return strength, cloud[:height, :width]


def zoom_blur(image: np.ndarray, stop: float, step: float) -> np.ndarray:
    """Mean of the image and at most eight of its zooms, bilinear, about the middle."""
    height, width = image.shape[:2]
    factors = np.arange(1, stop, step)
    factors = np.linspace(1, factors[-1], min(len(factors), 8))
    total = image.astype(np.uint16) * 2
    for factor in factors[1:]:
        margin_x, margin_y = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
        matrix = np.array([[1 / factor, 0, margin_x], [0, 1 / factor, margin_y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        total += cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return (total // (len(factors) + 1)).astype(np.uint8)


DRAWS: dict[str, Callable[[Rng, object, np.ndarray], tuple]] = {"ShotNoise": _draw_counts, "Fog": _draw_fog}
PIXELS: dict[str, Callable[..., np.ndarray]] = {"ShotNoise": shot_noise, "ZoomBlur": zoom_blur}


def apply_plan(
    steps: Iterator[tuple[Operation, int]], image: np.ndarray, rng: Rng, mask: np.ndarray | None, preset: str
):
    """Apply (operation, magnitude) pairs; consecutive geometric ones in a single warp. Returns image, or (image,
    mask).
    """
    pending: np.ndarray | None = None
    for operation, magnitude in steps:
        rng.uniform(0, 1)  # the operation's own probability draw
        draw = DRAWS.get(operation.name, operation.draw)
        parameters = draw(rng, operation.level(rng, magnitude, preset), image)
        if operation.name in MAPS:
            grid = MAPS[operation.name](*image.shape[:2], *parameters)
            pending = grid if pending is None else compose(pending, grid)
            continue
        image, mask, pending = *_warp(image, mask, pending), None
        image = PIXELS.get(operation.name, operation.apply)(image, *parameters)
        if mask is not None and operation.mask is not None:
            mask = operation.mask(mask, *parameters)
    image, mask = _warp(image, mask, pending)
    return image if mask is None else (image, mask)


def _warp(image: np.ndarray, mask: np.ndarray | None, grid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (bilinear) and mask (nearest) sampled by `grid`; black outside. No grid: as they are."""
    if grid is None:
        return image, mask
    image = cv2.remap(image, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    if mask is not None:
        mask = cv2.remap(mask, grid, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return image, mask
