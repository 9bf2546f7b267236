"""The font that glyph conditions are drawn with where none is given."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from common.errors import UserError


def default_font() -> Path:
    """DejaVu Sans as matplotlib carries it (free licence, covers Latin, Greek, Cyrillic).

    The published runs used AlibabaPuHuiTi-3-85-Bold.ttf, which cannot be shipped: give it with `font_path` for CJK.
    """
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise UserError(f"{path}: the default font is missing; give one with font_path or --font")
    return path
