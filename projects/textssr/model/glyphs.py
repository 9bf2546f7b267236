"""Glyph conditions (TextSSR, section 3): character planes for spelling and order, a warped word for place and shape."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.errors import UserError
from projects.textssr.regions import Rectangle

INK = 127  # grey of the word's picture; white is paper


class GlyphRenderer:
    """Draws the two glyph images with one font; planes and word pictures are kept between calls.

    Args:
        font: a `.ttf`, `.otf` or `.ttc` file. Raises UserError if it cannot be opened.
        plane_size: side of a character plane and pixel size of the word's font.
        max_len: number of planes.
    """

    def __init__(self, font: str | Path, plane_size: int = 64, max_len: int = 25) -> None:
        self.path, self.plane_size, self.max_len = Path(font), plane_size, max_len
        try:
            self.plane_font = ImageFont.truetype(str(font), int(0.8 * plane_size))
            self.word_font = ImageFont.truetype(str(font), plane_size)
        except OSError as error:
            raise UserError(f"{font}: font: cannot be opened ({error}); give a .ttf or .otf file") from None
        self._plane = lru_cache(4096)(self._draw_plane)
        self._word = lru_cache(4096)(self._draw_word)

    def planes(self, text: str) -> np.ndarray:
        """`[max_len, S, S]` uint8: character i alone in plane i with grey 5 i (the ramp is the order); else white.

        Longer texts lose what follows the last plane.
        """
        planes = np.full((self.max_len, self.plane_size, self.plane_size), 255, dtype=np.uint8)
        for index, character in enumerate(text[: self.max_len]):
            planes[index] = self._plane(character, index * (128 // self.max_len))  # black first, lighter to the end
        return planes

    def _draw_plane(self, character: str, grey: int) -> np.ndarray:
        size = self.plane_size
        width, height = text_size(self.plane_font, character)
        canvas = Image.new("L", (size, size), 255)
        ImageDraw.Draw(canvas).text(((size - width) // 2, (size - height) // 2), character, grey, self.plane_font)
        return np.asarray(canvas)

    def _draw_word(self, text: str) -> np.ndarray:
        width, height = text_size(self.word_font, text)
        canvas = Image.new("RGB", (max(width, 1), max(height, 1)), (255, 255, 255))
        ImageDraw.Draw(canvas).text((0, 0), text, (INK, INK, INK), self.word_font)
        return np.asarray(canvas)

    def word(
        self, text: str, rectangle: Rectangle, resolution: int, *, clean: bool = False, tight: bool = False
    ) -> np.ndarray:
        """Ink `[R, R]` bool of the whole word, warped by perspective into the rectangle.

        As published only pixels that are exactly the ink's grey survive the warp, so thin strokes become dots; `clean`
        keeps every pixel nearer to ink than to paper. As published the line from the ascender to the lowest ink fills
        the rectangle; with `tight` the ink's own bounding box does, as polygons are drawn around ink.
        """
        picture = self._word(text)
        if tight and (inked := (picture[..., 0] < 255)).any():
            rows, columns = inked.any(1).nonzero()[0], inked.any(0).nonzero()[0]
            picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = picture.shape[:2]
        source = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
        target = rectangle.reading_corners().astype(np.float32)
        warp = cv2.getPerspectiveTransform(source, target)
        border = (255, 255, 255) if clean else (0, 0, 0)  # published black: it is not the ink's grey either
        warped = cv2.warpPerspective(picture, warp, (resolution, resolution), borderValue=border)
        if clean:
            return warped[..., 0] < (INK + 255) // 2
        return (warped == INK).any(-1)


def text_size(font: ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    """(width, height) as Pillow's `getsize` gave it: from the ascender line down, and between the ink's edges."""
    box = font.getbbox(text)
    return box[2] - box[0], box[3]


def glyph_image(ink: np.ndarray) -> np.ndarray:
    """`[R, R]` bool -> `[3, R, R]` float32 with 127/255 on ink and 1 elsewhere."""
    plane = np.where(ink, np.float32(INK / 255), np.float32(1))
    return np.broadcast_to(plane, (3, *plane.shape))
