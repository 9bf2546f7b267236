"""Sets a word in a face: one anti-aliased line of glyphs with the ink rectangle of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.data.synth.fonts import Face, coverage

SIZES = (24, 38, 60)  # pixels per em at which glyphs are rasterised once; lines are scaled down from the next one
_MARGIN = 2


@dataclass(frozen=True)
class Glyph:
    """One character as rasterised: 8-bit coverage, offset of its corner from the pen on the baseline, pen advance."""

    alpha: np.ndarray
    left: int
    top: int
    advance: float


class GlyphCache:
    """Rasters of one face at one size, made when first asked for."""

    def __init__(self, face: Face, size: int):
        self.font = face.open(size)
        self._glyphs: dict[str, Glyph] = {}

    def glyph(self, character: str) -> Glyph:
        """The raster of a character."""
        found = self._glyphs.get(character)
        if found is None:
            alpha, left, top = coverage(self.font, character)
            alpha, dx, dy = _trim(alpha)
            found = Glyph(alpha, left + dx, top + dy, self.font.getlength(character))
            self._glyphs[character] = found
        return found


def _trim(alpha: np.ndarray) -> tuple[np.ndarray, int, int]:
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if rows.size == 0:
        return np.zeros((1, 1), np.uint8), 0, 0
    part = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(part), int(columns[0]), int(rows[0])


def set_block(
    lines: list[str], cache: GlyphCache, spacing: float, centred: bool, gap: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Several lines one below the other, as `set_line` draws each; the letters' boxes are in the order of the text.

    centred: or else left-aligned. gap: between lines, as a share of the height of the tallest.
    """
    drawn = [set_line(line, cache, spacing) for line in lines]
    between = max(1, round(gap * max(line.shape[0] for line, _ in drawn))) - 2 * _MARGIN
    width = max(line.shape[1] for line, _ in drawn)
    height = sum(line.shape[0] for line, _ in drawn) + between * (len(drawn) - 1)
    block, placed, top = np.zeros((height, width), np.uint8), [], 0
    for line, boxes in drawn:
        left = (width - line.shape[1]) // 2 if centred else 0
        part = block[top : top + line.shape[0], left : left + line.shape[1]]
        np.maximum(part, line, out=part)
        placed.append(boxes + np.array([left, top, left, top], np.float32))
        top += line.shape[0] + between
    return block, np.concatenate(placed)


def set_line(
    text: str, cache: GlyphCache, spacing: float = 0.0, lifts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `text` on one baseline, without kerning: the fonts hold theirs in tables that need a shaping library.

    spacing: extra pixels after each letter. lifts: pixels that each letter is raised, or None.
    Returns the line, uint8 [h, w] coverage 0..255 with a margin of 2 pixels, and boxes, float32 [n, 4] x1 y1 x2 y2 of
    each letter's ink (x2, y2 exclusive).
    """
    glyphs, boxes, pen = [], np.empty((len(text), 4), np.float32), 0.0
    for i, character in enumerate(text):
        glyph = cache.glyph(character)
        x, y = round(pen) + glyph.left, glyph.top - (0 if lifts is None else round(float(lifts[i])))
        boxes[i] = x, y, x + glyph.alpha.shape[1], y + glyph.alpha.shape[0]
        glyphs.append(glyph)
        pen += glyph.advance + spacing
    corner = boxes[:, :2].min(0) - _MARGIN
    boxes -= np.tile(corner, 2)
    width, height = (boxes[:, 2:].max(0) + _MARGIN).astype(int)
    line = np.zeros((height, width), np.uint8)
    for glyph, (x1, y1, x2, y2) in zip(glyphs, boxes.astype(int)):
        part = line[y1:y2, x1:x2]
        np.maximum(part, glyph.alpha, out=part)  # letters of a script may overlap
    return line, boxes
