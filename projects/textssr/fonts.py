"""The font of the glyph conditions: which one, and which characters of the words it lacks."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTFont, TTLibError

from common.errors import UserError

PUBLISHED = "AlibabaPuHuiTi-3-85-Bold.ttf"
TOLERATED = 0.01
"""Share of words that may need a missing glyph: they are drawn as the font's box, as in the published runs."""


def default_font() -> Path:
    """The published runs' AlibabaPuHuiTi-3-85-Bold.ttf where it lies in the working folder, as there; else DejaVu Sans.

    The former cannot be shipped; the latter comes with matplotlib (free licence, Latin, Greek, Cyrillic; no Chinese).
    """
    if Path(PUBLISHED).is_file():
        return Path(PUBLISHED)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise UserError(f"{path}: the default font is missing; give one with font_path or --font")
    return path


@functools.lru_cache(8)
def known_characters(font: Path) -> frozenset[int]:
    """Code points that a font file has a glyph for. Raises UserError for a file that cannot say."""
    try:
        with TTFont(font, fontNumber=0, lazy=True) as opened:
            return frozenset(opened.getBestCmap() or ())
    except (OSError, TTLibError) as error:
        raise UserError(f"{font}: font: its characters cannot be listed ({error}); give a .ttf or .otf") from None


class Coverage:
    """Counts the words that a font lacks a glyph for, and collects the characters."""

    def __init__(self, font: Path, texts: Iterable[str] = ()) -> None:
        self.font, self.known = font, known_characters(font)
        self.words, self.lacking = 0, 0
        self.missing: set[str] = set()
        for text in texts:
            self.see(text)

    def see(self, text: str) -> None:
        """Count a word, and note those of its characters that the font lacks."""
        lost = {letter for letter in text if ord(letter) not in self.known and not "\ud800" <= letter <= "\udfff"}
        self.words += bool(text)
        self.lacking += bool(lost)
        self.missing |= lost

    def check(self, key: str, data: object) -> str | None:
        """A warning where few words of `data` need missing glyphs, None where none does.

        Raises UserError where more than TOLERATED do. Both name the characters; `key` is the flag or key of the font.
        """
        if not self.missing:
            return None
        shown = "".join(sorted(self.missing))
        shown = f"{shown[:40]!r}" + (f" and {len(shown) - 40} more" if len(shown) > 40 else "")
        told = f"{self.font}: {key}: no glyph for {shown}: {self.lacking} of {self.words} words of {data} need them"
        if self.lacking > TOLERATED * self.words:
            raise UserError(f"{told}, more than {TOLERATED:.0%}: give another font")
        return f"{told}; they are drawn as boxes"
