"""SIGA's report: the standard one, with what its glyph attention has learned described in words."""

from __future__ import annotations

from pathlib import Path

from common.report.finished import Finished
from common.report.page import Report
from common.report.standard import standard_report

GLYPHS = """SIGA learns where each character is without character boxes. **Text mask**: a two-channel head, taught by
k-means masks of grey levels (`predmask`). **Glyph pseudo-labels**: the mask cut at the columns that the
sequence-aligned attention gives to each step; one colour a character, black is background. The two constraints on that
attention are `cor` (characters do not overlap) and `dif` (together they cover the mask).

The maps over the crop are the fine glyph attention, one a character, that these pseudo-labels teach (`low`, `middle`:
cross entropy and Dice at two scales). The readings come from the Share branch, the one that counts at test time."""
TERMS = [
    [
        "ours, trba, glyph1, iter1, glyph2, iter2, share",
        "cross entropies of the recognition heads; share is the reader",
    ],
    ["predmask", "text mask against the k-means mask"],
    ["cor, dif, correct", "orthogonality and coverage of the character attention, and their sum"],
    ["ce_low, dice_low, low; ce_middle, dice_middle, middle", "glyph maps against the pseudo-labels, two scales"],
]


def build(run_dir: Path, recipe: Finished) -> Report:
    """The report of a finished reproduction; `run_dir` holds `metrics.jsonl`."""

    def add_glyphs(report: Report) -> None:
        report.heading("What the pictures show", level=3).text(GLYPHS)
        report.table(["curve", "meaning"], TERMS)

    return standard_report(recipe, examples=24, extra_sections=[add_glyphs])
