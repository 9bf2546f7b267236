"""Blocks of the text logs that the descendants of CLOVA's benchmark write: options, and a table of a few readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DASHES = "-" * 80
TABLE_HEAD = f"{'Ground Truth':25s} | {'Prediction':25s} | Confidence Score & T/F"


def append(path: Path, text: str) -> None:
    """Append text; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def options_block(options: Mapping[str, Any]) -> str:
    """`------------ Options -------------`, a `key: value` line each, a dashed line, a line feed."""
    lines = [f"{key}: {value}" for key, value in options.items()]
    return "\n".join(["------------ Options -------------", *lines, "-------------------------------------", ""])


def sample_table(samples: Sequence[tuple[str, str, float]]) -> str:
    """Truth, prediction, confidence and whether both are equal, framed by dashes, without a line feed at the end."""
    rows = [f"{truth:25s} | {read:25s} | {sure:0.4f}\t{truth == read}" for truth, read, sure in samples]
    return "\n".join([DASHES, TABLE_HEAD, DASHES, *rows, DASHES])
