"""Statistics of word sets as a page with plots: label lengths, characters, sizes, aspect ratios, sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.examine import REMARKS, UNUSABLE, Examination
from common.report.charts import Curve
from common.report.page import Report

MOST_CHARACTERS = 120  # in the table of characters


def write_page(file: Path, found: Sequence[Examination]) -> Path:
    """Write the page about all sets as `file` (HTML) and as Markdown next to it; returns the HTML file."""
    total = sum(one.highest for one in found)
    report = Report("Word sets", f"{len(found)} sets, {total:,} samples, from `strlab doctor`")
    report.heading("Overview").table(
        ["set", "samples", "faults", "one colour", "median size", "shortest", "longest", "characters"],
        [overview(one) for one in found],
    )
    curves = [(title, [curve for one in found if (curve := make(one)) is not None]) for title, make in PLOTS]
    report.heading("Distributions").curves([(title, some) for title, some in curves if some], x_label="")
    for one in found:
        if one.characters:
            report.heading(f"Characters of {one.path.name}", 3).text(characters(one))
        rows = [[kind, len(one.findings[kind])] for kind in (*UNUSABLE, *REMARKS) if one.findings.get(kind)]
        if rows:
            report.heading(f"Findings in {one.path.name}", 3).table(["finding", "samples"], rows)
    html, _ = report.write(file.parent, file.stem)
    return html


def overview(one: Examination) -> list[object]:
    """A row of the table of sets."""
    if one.fatal:
        return [str(one.path), one.fatal, "", "", "", "", "", ""]
    size = "{}x{}".format(*one.sizes[1]) if one.sizes else "–"
    lengths = (min(one.lengths), max(one.lengths)) if one.lengths else (None, None)
    flat = len(one.findings.get("one colour", ()))
    return [str(one.path), one.highest, one.faults, flat, size, *lengths, len(one.characters)]


def characters(one: Examination) -> str:
    """The characters of the labels with their counts, the most frequent first."""
    shown = ", ".join(f"`{character}` {count:,}" for character, count in one.characters.most_common(MOST_CHARACTERS))
    more = len(one.characters) - MOST_CHARACTERS
    return shown.replace("` `", "blank") + (f" and {more} more" if more > 0 else "")


def _lengths(one: Examination) -> Curve | None:
    if not one.lengths:
        return None
    total, longest = sum(one.lengths.values()), min(max(one.lengths), 40)
    return Curve(
        one.path.name, range(longest + 1), [100 * one.lengths[length] / total for length in range(longest + 1)]
    )


def _histogram(name: str, values: np.ndarray | None, bins: np.ndarray) -> Curve | None:
    """Share of the values in % over the middles of the bins; values outside count to the outer bins."""
    if values is None or not len(values):
        return None
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    return Curve(name, ((bins[1:] + bins[:-1]) / 2).tolist(), (100 * counts / len(values)).tolist())


def _heights(one: Examination) -> Curve | None:
    return _histogram(one.path.name, None if one.shapes is None else one.shapes[:, 1], np.linspace(0, 200, 41))


def _aspects(one: Examination) -> Curve | None:
    if one.shapes is None:
        return None
    return _histogram(one.path.name, one.shapes[:, 0] / np.maximum(one.shapes[:, 1], 1), np.linspace(0, 12, 49))


def _sharpness(one: Examination) -> Curve | None:
    if one.sharpness is None:
        return None
    return _histogram(one.path.name, np.log10(np.maximum(one.sharpness, 1)), np.linspace(0, 5, 41))


PLOTS = (
    ("Label length, % of words", _lengths),
    ("Height in pixels, % of words", _heights),
    ("Width / height, % of words", _aspects),
    ("Sharpness (log10 of the Laplacian's variance), % of words", _sharpness),
)
