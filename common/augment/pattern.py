"""Group "pattern": black grids over the word. Specs: mgpstr, section 4. A pattern depends on nothing random but its
stripe and line widths, so each is drawn once per process and then masked in.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from common.augment.operation import Operation
from common.augment.rng import Rng, integers

_WIDEST = 4


@lru_cache(maxsize=256)
def _ink(kind: str, height: int, width: int, stripe: int, line: int) -> np.ndarray:
    """uint8 HxWx3, 0 where the pattern `kind` draws and 255 elsewhere."""
    picture = Image.new("L", (width, height), 255)
    pencil = ImageDraw.Draw(picture)
    if kind in ("rectangle", "ellipse"):
        _concentric(pencil, kind, height, width, stripe, line)
    else:
        side = width if kind == "vertical" else height
        for i in range(1, side // (line + stripe) + 1):
            at = stripe * i + line * (i - 1)
            ends = [(at, 0), (at, height)] if kind == "vertical" else [(0, at), (width, at)]
            pencil.line(ends, width=line, fill=0)
    ink = np.repeat(np.asarray(picture)[:, :, None], 3, axis=2)
    ink.flags.writeable = False
    return ink


def _concentric(pencil: ImageDraw.ImageDraw, kind: str, height: int, width: int, stripe: int, line: int) -> None:
    """Outlines about the centre, with the aspect ratio of the picture."""
    middle_x, middle_y = width // 2, height // 2
    for i in range(1, middle_y // (line + stripe) + (4 if kind == "ellipse" else 1)):
        half = stripe * i + line * (i - 1)
        box = [middle_x - half * width // height, middle_y - half, middle_x + half * width / height, middle_y + half]
        if kind == "ellipse":
            pencil.ellipse(box, outline=0, width=line)
        else:
            pencil.rectangle(box, outline=0, width=line)


def draw_pattern(image: np.ndarray, *pieces: tuple[str, int, int]) -> np.ndarray:
    """Draw every (kind, stripe, line) of `pieces` in black; kinds: vertical, horizontal, rectangle, ellipse. Widths
    in pixels.
    """
    for kind, stripe, line in pieces:
        image = cv2.bitwise_and(image, _ink(kind, *image.shape[:2], stripe, line))
    return image


def _piece(rng: Rng, kind: str, magnitude: int) -> tuple[str, int, int]:
    """Widths of one pattern; a magnitude out of range draws both, but concentric outlines never draw."""
    if 0 <= magnitude < _WIDEST or kind in ("rectangle", "ellipse"):
        return kind, max(3 - magnitude, 0), 1
    line = integers(rng, 1, _WIDEST)
    return kind, integers(rng, 1, _WIDEST), line


def _drawing(*kinds: str, extra_draw: bool = False):
    def draw(rng: Rng, magnitude: int, image: np.ndarray) -> tuple:
        pieces = []
        for kind in kinds:
            if extra_draw:  # composed operations call the simple ones, and those draw their own probability
                rng.uniform(0, 1)
            pieces.append(_piece(rng, kind, magnitude))
        return tuple(pieces)

    return draw


class _PatternOperation(Operation):
    def level(self, rng: Rng, magnitude: int, preset: str) -> int:
        """The magnitude itself: widths are computed from it."""
        return magnitude


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    return (
        _PatternOperation("VGrid", _drawing("vertical"), draw_pattern),
        _PatternOperation("HGrid", _drawing("horizontal"), draw_pattern),
        _PatternOperation("Grid", _drawing("vertical", "horizontal", extra_draw=True), draw_pattern),
        _PatternOperation("RectGrid", _drawing("rectangle"), draw_pattern),
        _PatternOperation("EllipseGrid", _drawing("ellipse", extra_draw=True), draw_pattern),
    )
