"""Masks of "character core areas" from character boxes (ACDS-STR, spec section 3).

A box is two points in pixels of the stored picture, usually the top-left and bottom-right corners of one character.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from common.errors import UserError

Box = tuple[float, float, float, float, str]
SHRINK = 0.5


def core_rectangle(box: Sequence[float], scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2), both ends inside, of the middle half of a box after scaling; all steps truncate as published.

    The first point serves as the origin even where it is not the smaller one.
    """
    x1, y1, x2, y2 = (int(value * scale[axis % 2]) for axis, value in enumerate(box[:4]))
    width, height = abs(x2 - x1), abs(y2 - y1)
    core_w, core_h = int(SHRINK * width), int(SHRINK * height)
    left, top = int(x1 + width / 2 - core_w / 2), int(y1 + height / 2 - core_h / 2)
    return left, top, left + core_w, top + core_h


def mask_from_boxes(
    boxes: Iterable[Sequence[float]], width: int, height: int, size: tuple[int, int] = (32, 128)
) -> np.ndarray:
    """Boxes of a picture of `width` x `height` pixels -> uint8 mask [H, W] of 0 and 1 for the resized picture.

    What lies outside the picture is cut off.
    """
    mask = np.zeros(size, dtype=np.uint8)
    scale = (1 / (width / size[1]), 1 / (height / size[0]))
    for box in boxes:
        left, top, right, bottom = core_rectangle(box, scale)
        if right >= 0 and bottom >= 0:
            mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = 1
    return mask


def parse_boxes(data: bytes | None, where: str) -> list[Box]:
    """Read the value of a `boxes-%09d` key: JSON `[[x1, y1, x2, y2, character], …]`.

    Raises `UserError` beginning with `where` if it is missing, malformed or has numbers that are not finite.
    """
    if data is None:
        raise UserError(
            f"{where}: no character boxes; `strlab data convert acds` makes them; or leave out --is_mask_supervision"
        )
    try:
        boxes = [
            (float(x1), float(y1), float(x2), float(y2), str(character))
            for x1, y1, x2, y2, character in json.loads(data)
        ]
        if not math.isfinite(sum(sum(box[:4]) for box in boxes)):
            raise ValueError("a number is not finite")
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: boxes must be JSON [[x1, y1, x2, y2, character], …] ({error})") from None
    return boxes


def check_boxes(boxes: Sequence[Box], width: int, height: int, tolerance: float = 0.1) -> str:
    """What is wrong with the boxes of a picture: a flat box, or one that leaves it by more than `tolerance`.

    "" if nothing is.
    """
    for x1, y1, x2, y2, character in boxes:
        if not np.isfinite([x1, y1, x2, y2]).all():
            return f"box of {character!r} is not finite"
        if x1 == x2 or y1 == y2:
            return f"box of {character!r} is flat"
        if min(x1, x2) < -tolerance * width or max(x1, x2) > (1 + tolerance) * width:
            return f"box of {character!r} lies outside the picture's width of {width}"
        if min(y1, y2) < -tolerance * height or max(y1, y2) > (1 + tolerance) * height:
            return f"box of {character!r} lies outside the picture's height of {height}"
    return ""
