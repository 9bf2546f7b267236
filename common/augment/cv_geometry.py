"""ABINet's geometric and deteriorating operations on OpenCV, with given parameters (SIGA R and S, DiG fine-tuning).

Each works on uint8 HxWx3 and, for geometry, on a mask HxW as well; the canvas may change size. Specs: siga, section
4.1; dig, section 4. `interpolation` is an OpenCV flag; area interpolation of a warp is OpenCV's linear one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    size = max(size[0], 1), max(size[1], 1)
    call = cv2.warpPerspective if len(matrix) == 3 else cv2.warpAffine
    return call(image, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def rotation(height: int, width: int, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Forward 2x3 matrix of a rotation by `angle` degrees about the middle, and the (width, height) that holds all of
    it.
    """
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    new_width, new_height = int(height * sin + width * cos), int(height * cos + width * sin)
    matrix[0, 2] += (new_width - width) / 2
    matrix[1, 2] += (new_height - height) / 2
    return matrix, (new_width, new_height)


def inverse_affine(height: int, width: int, angle: float, scale: float, shear: Sequence[float]) -> np.ndarray:
    """Inverse of rotation, shear (degrees) and scale about the middle."""
    turn, sx, sy = math.radians(angle), math.radians(shear[0]), math.radians(shear[1])
    a = math.cos(turn - sy) / math.cos(sy)
    b = -math.cos(turn - sy) * math.tan(sx) / math.cos(sy) - math.sin(turn)
    c = math.sin(turn - sy) / math.cos(sy)
    d = -math.sin(turn - sy) * math.tan(sx) / math.cos(sy) + math.cos(turn)
    matrix = np.array([[d, -b, 0.0], [-c, a, 0.0]]) / scale
    centre = np.array([width / 2, height / 2])
    matrix[:, 2] = centre - matrix[:, :2] @ centre
    return matrix


def _extent(points: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """(min x, min y, max x, max y) of the truncated corners of the smallest rectangle around the points."""
    corners = cv2.boxPoints(cv2.minAreaRect(np.array(points, np.int32))).astype(int)
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def affine(
    height: int, width: int, angle: float, scale: float, shear: Sequence[float], translate: Sequence[float] = (0, 0)
) -> tuple[np.ndarray, tuple[int, int]]:
    """2x3 matrix and (width, height) of the published affine: an inverse matrix, used as the forward one.

    `angle` and `shear` in degrees, `translate` in pixels (0 in the papers).
    """
    matrix = inverse_affine(height, width, angle, scale, shear)
    ends = [
        (int(matrix[0] @ (x, y, 1)), int(matrix[1] @ (x, y, 1)))
        for x, y in ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1))
    ]
    left, top, right, bottom = _extent(ends)
    size = [right - left, bottom - top]
    matrix[0, 2] += (size[0] - width) / 2
    matrix[1, 2] += (size[1] - height) / 2
    for axis in (0, 1):
        size[axis] += int(abs(translate[axis]))
        matrix[axis, 2] += max(-translate[axis], 0)
    return matrix, (size[0], size[1])


def perspective(
    height: int, width: int, offsets_h: Sequence[int], offsets_w: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """3x3 matrix, (width, height) and the (x, y) from which the result is cropped; corners (top left, top right,
    bottom right, bottom left) move inwards by the offsets, pixels.
    """
    right, bottom = width - 1, height - 1
    source = [(0, 0), (right, 0), (right, bottom), (0, bottom)]
    target = [
        (offsets_w[0], offsets_h[0]), (right - offsets_w[1], offsets_h[1]),
        (right - offsets_w[2], bottom - offsets_h[2]), (offsets_w[3], bottom - offsets_h[3]),
    ]  # fmt: skip
    matrix = cv2.getPerspectiveTransform(np.float32(source), np.float32(target))
    min_x, min_y, max_x, max_y = _extent(target)
    return matrix, (max_x, max_y), (max(min_x, 0), max(min_y, 0))


def rotate(image: np.ndarray, angle: float, interpolation: int) -> np.ndarray:
    """Rotate by `angle` degrees on a canvas that holds all of it; border replicated."""
    return _warp(image, *rotation(*image.shape[:2], angle), interpolation)


def shear_and_scale(
    image: np.ndarray,
    angle: float,
    scale: float,
    shear: Sequence[float],
    interpolation: int,
    translate: Sequence[float] = (0, 0),
) -> np.ndarray:
    """The published affine (see `affine`); border replicated."""
    return _warp(image, *affine(*image.shape[:2], angle, scale, shear, translate), interpolation)


def tilt(image: np.ndarray, offsets_h: Sequence[int], offsets_w: Sequence[int], interpolation: int) -> np.ndarray:
    """The published perspective (see `perspective`); border replicated, cropped to what is covered."""
    matrix, size, (x, y) = perspective(*image.shape[:2], offsets_h, offsets_w)
    return _warp(image, matrix, size, interpolation)[y:, x:]


def add_noise(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Add `field` (grey levels), clip, truncate. Anything but three channels is returned as it is."""
    if image.ndim != 3 or image.shape[2] != 3:
        return image
    return np.clip(image + field, 0, 255).astype(np.uint8)


def motion_blur(image: np.ndarray, size: int, angle: float) -> np.ndarray:
    """Mean along a line of `size` pixels at `angle` degrees."""
    line = np.zeros((size, size))
    line[size // 2] = 1
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), angle, 1)
    return cv2.filter2D(image, -1, cv2.warpAffine(line, turn, (size, size)) / size)


def rescale(image: np.ndarray, factor: int, down: int, up: int) -> np.ndarray:
    """Lose detail: to 512x128, `factor` times half of each side, back; `down` and `up` are the two resizes'
    interpolations.
    """
    if factor == 0:
        return image
    small = cv2.resize(image, (512, 128), interpolation=down)
    for _ in range(factor):
        small = cv2.pyrDown(small)
    return cv2.resize(small, (image.shape[1], image.shape[0]), interpolation=up)
