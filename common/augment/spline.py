"""Thin-plate splines: the map that carries given target points to source points, evaluated at every output pixel.

OpenCV's own transformer is only in its contrib build; this is the same interpolating spline (kernel r^2 log r^2,
affine part, no regularisation), solved directly.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np


def solve(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Coefficients [n + 3, 2] of the spline f with f(targets[i]) = sources[i]; both [n, 2] as (x, y) in pixels."""
    count = len(targets)
    system = np.zeros((count + 3, count + 3))
    squared = ((targets[:, None] - targets[None]) ** 2).sum(axis=2)
    system[:count, :count] = squared * np.log(np.maximum(squared, 1e-12))  # the kernel r^2 log r^2
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = targets
    system[count + 1 :, :count] = targets.T
    values = np.zeros((count + 3, 2))
    values[:count] = sources
    return np.linalg.solve(system, values)


@lru_cache(maxsize=64)
def block_centres(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (float32) of the centres of step x step blocks, with one block more around the picture."""
    centre = (step - 1) / 2
    xs = np.arange(-step, width + step, step, dtype=np.float32) + centre
    ys = np.arange(-step, height + step, step, dtype=np.float32) + centre
    return xs, ys


def evaluate(coefficients: np.ndarray, targets: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """The spline at all (xs[j], ys[i]): float32 [len(ys), len(xs), 2]. Coordinates in the targets' pixels."""
    across = (xs - targets[:, :1].astype(np.float32)) ** 2
    down = (ys - targets[:, 1:].astype(np.float32)) ** 2
    squared = (down[:, :, None] + across[:, None, :]).reshape(len(targets), -1)
    squared += np.float32(1e-12)
    basis = cv2.log(squared)
    basis *= squared
    weights = coefficients.astype(np.float32)
    count = len(targets)
    bent = (weights[:count].T @ basis).reshape(2, len(ys), len(xs))
    bent += weights[count][:, None, None] + np.multiply.outer(weights[count + 1], xs)[:, None]
    bent += np.multiply.outer(weights[count + 2], ys)[:, :, None]
    return cv2.merge((bent[0], bent[1]))


def refine(grid: np.ndarray, height: int, width: int, step: int) -> np.ndarray:
    """Values at `block_centres` -> values at every pixel of the picture, by straight lines."""
    full = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(full[step : step + height, step : step + width])


def sampling_map(coefficients: np.ndarray, targets: np.ndarray, height: int, width: int, step: int = 1) -> np.ndarray:
    """float32 [height, width, 2]: for every output pixel the (x, y) of the input it shows.

    `step` > 1 evaluates the spline once per step x step block and interpolates between block centres.
    """
    if step == 1:
        return evaluate(coefficients, targets, np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return refine(evaluate(coefficients, targets, *block_centres(height, width, step)), height, width, step)


def warp(image: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Image as bent by the spline: what is at `sources` comes to `targets`. Bilinear, black outside."""
    grid = sampling_map(solve(targets, sources), targets, *image.shape[:2])
    return cv2.remap(image, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
