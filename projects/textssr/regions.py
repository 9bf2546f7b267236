"""The text region (TextSSR, section 3): the square crop around a polygon, its mask, the rectangle of the word."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""


class BadRegion(ValueError):
    """An annotation that cannot be used: the message says why."""


LARGEST = 1e6
"""Pixels: no picture reaches a coordinate beyond it."""


def polygon_points(polygon: Sequence) -> np.ndarray:
    """`[N, 2]` float64 of an annotated polygon. Raises BadRegion for anything but three or more [x, y] of numbers."""
    try:
        points = np.asarray(polygon)
    except ValueError:  # rows of different lengths
        points = np.empty(0)
    usable = points.ndim == 2 and points.shape[1] == 2 and len(points) >= 3 and points.dtype.kind in "iuf"
    if not usable or not (np.abs(points.astype(np.float64)) <= LARGEST).all():
        raise BadRegion("the polygon is not a list of at least three [x, y]")
    return points.astype(np.float64)


@dataclass(frozen=True)
class Rectangle:
    """Minimum-area rectangle in OpenCV 4.5's convention: `angle` in (0, 90] degrees, an upright box has angle 90.

    With u = (cos a, sin a) and v = (-sin a, cos a), `size` = (extent along u, extent along v).
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    angle: float

    def corners(self) -> np.ndarray:
        """`[4, 2]` float64: c -+ s0/2 u +- s1/2 v, beginning with (-, +), then (-, -), (+, -), (+, +)."""
        radians = math.radians(self.angle)
        u = np.array([math.cos(radians), math.sin(radians)])
        v = np.array([-math.sin(radians), math.cos(radians)])
        along, across = self.size[0] / 2 * u, self.size[1] / 2 * v
        centre = np.array(self.centre)
        return np.stack(
            [centre - along + across, centre - along - across, centre + along - across, centre + along + across]
        )

    def reading_corners(self) -> np.ndarray:
        """The corners in reading order: flat words start at the first, words steeper than 1.5 : 1 at the second."""
        corners = self.corners()
        return corners if self.size[0] <= 1.5 * self.size[1] else np.roll(corners, -1, axis=0)


def minimum_rectangle(points: np.ndarray) -> Rectangle:
    """`points` `[N, 2]` (x, y) -> their rectangle. OpenCV 5 turned its angles by 90 degrees; both end in (0, 90]."""
    if len(points) == 0:
        raise BadRegion("the mask of the region is empty")
    centre, (width, height), angle = cv2.minAreaRect(points.astype(np.float32))
    if angle <= -90 + 1e-9:
        angle += 180
    elif angle <= 0:
        width, height, angle = height, width, angle + 90
    return Rectangle(tuple(centre), (width, height), angle)


def content_box(image: np.ndarray) -> Box:
    """Bounding box of what is not pure white in `[H, W, 3]` RGB uint8 (training pictures carry white padding)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    rows, columns = (grey != 255).any(1).nonzero()[0], (grey != 255).any(0).nonzero()[0]
    if not len(rows):
        raise BadRegion("the picture is entirely white")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def square_crop(content: Box, polygon: np.ndarray, rng: random.Random, *, exact: bool = False) -> Box:
    """A square around the polygon `[N, 2]`, placed at random so that it holds it, inside `content`.

    Draws x, then y; an axis shorter than the square is taken whole and makes no draw. The published upper end of the
    draw is one pixel too far; `exact` corrects it. Raises BadRegion for a polygon outside or without extent.
    """
    left, top, right, bottom = content
    points = np.asarray(polygon, dtype=np.float64).astype(np.int64)
    x0, x1 = (int(np.clip(value, left, right)) for value in (points[:, 0].min(), points[:, 0].max()))
    y0, y1 = (int(np.clip(value, top, bottom)) for value in (points[:, 1].min(), points[:, 1].max()))
    side = max(x1 - x0, y1 - y0)
    if side <= 0:
        raise BadRegion("the polygon is outside the picture or has no extent")
    over = 0 if exact else 1

    def place(low: int, high: int, start: int, stop: int) -> tuple[int, int]:
        if high - low < side:
            return low, high
        first, last = max(low, stop - side), min(high - side, start) + over
        begin = rng.randint(first, last)
        return begin, begin + side

    sx0, sx1 = place(left, right, x0, x1)
    sy0, sy1 = place(top, bottom, y0, y1)
    return sx0, sy0, sx1, sy1


def resize(planes: np.ndarray, resolution: int) -> torch.Tensor:
    """`[C, h, w]` float32 -> `[C, R, R]`, bilinear without antialiasing, as the pinned torchvision resized tensors."""
    tensor = torch.from_numpy(np.ascontiguousarray(planes))[None]
    return F.interpolate(tensor, (resolution, resolution), mode="bilinear", align_corners=False)[0]


def crop_image(image: np.ndarray, box: Box, resolution: int) -> torch.Tensor:
    """The crop of `[H, W, 3]` RGB uint8 as `[3, R, R]` in [-1, 1]."""
    left, top, right, bottom = box
    crop = image[top:bottom, left:right]
    if not crop.size:  # the published draw may end one pixel too far
        raise BadRegion("the crop is outside the picture: a region of one pixel at its edge")
    crop = crop.transpose(2, 0, 1).astype(np.float32) / 255
    return (resize(crop, resolution) - 0.5) / 0.5


def region_mask(size: tuple[int, int], polygon: np.ndarray, box: Box, resolution: int) -> torch.Tensor:
    """`[1, R, R]` of 1 (keep) and 0 (the polygon, outline included); `size` is the picture's (width, height)."""
    canvas = Image.new("L", size, 255)
    vertices = [(int(x), int(y)) for x, y in polygon]
    ImageDraw.Draw(canvas).polygon(vertices, fill=0)
    left, top, right, bottom = box
    crop = np.asarray(canvas)[top:bottom, left:right].astype(np.float32) / 255
    return (resize(crop[None], resolution) >= 0.5).float()


def mask_rectangle(mask: torch.Tensor) -> Rectangle:
    """Rectangle of the zeros of `[1, R, R]`."""
    rows, columns = (mask[0].numpy() == 0).nonzero()
    return minimum_rectangle(np.stack([columns, rows], axis=1))
