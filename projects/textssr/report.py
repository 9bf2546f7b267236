"""TextSSR's report: what was painted, how well it is read, and what the words are worth to a reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.infer.report import Cell, Report
from common.infer.summary import standard_report
from common.reproduce import Finished
from projects.textssr.evaluate import PERCEPTUAL, load

HONEST = """The models of the smoke and cpu scales are hundreds of times smaller than the paper's, begin with random
weights instead of Stable Diffusion, see 64 pixels instead of 256 and train for minutes instead of weeks. What to
expect: the ground goes on roughly, letters follow the word glyph more than the style of their neighbours, thin
strokes and small letters smear. The gpu scale and the published weights are the ones to judge the method by. The
readings are those of a small reader, which errs on real crops too."""
SHEET = """Each pair: the crop before (left) and after painting the word below (`wanted > read`);
green where the reader agrees, case aside."""


def build(run_dir: Path, recipe: Finished) -> Report:
    """The report of a finished reproduction."""
    report = standard_report(recipe, examples=12)
    out = recipe.out
    report.heading("Painted words").text(HONEST)
    add_figures(report, out)
    for folder in sorted(path.parent for path in out.glob("paint*/contact_sheet.png")):
        report.heading(folder.name, level=3).text(SHEET).image(load(folder / "contact_sheet.png"), folder.name)
        add_full(report, folder)
    add_data_set(report, out)
    return report


def add_figures(report: Report, out: Path) -> None:
    """The table of `evaluate.py` for every folder of painted words."""
    rows = []
    names = ["words", "SeqAcc", "word36", "NED", "NED36", "SSIM", *PERCEPTUAL]
    for path in sorted(out.glob("paint*/evaluation.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        rows.append([path.parent.name, *(figures.get(name) for name in names)])
    if rows:
        report.table(["run", *names], rows, "SeqAcc, word36, NED in %; SSIM 1 is identical.")


def add_full(report: Report, folder: Path, most: int = 8) -> None:
    """Whole pictures with the word pasted back."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    shown = [name for name in list(labels) if (folder / "full" / name).is_file()][:most]
    cells = [Cell([load(folder / "full" / name)], labels[name]) for name in shown]
    if cells:
        report.grid(cells)


def add_data_set(report: Report, out: Path) -> None:
    """How many generated words the filter kept, and what they change for the reader."""
    manifest = out / "words" / "manifest.jsonl"
    if not manifest.is_file():
        return
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    kept = sum(entry["accepted"] for entry in entries)
    report.heading("The generated data set", level=3).text(
        f"{kept:,} of {len(entries):,} painted words were kept "
        f"({100 * kept / max(len(entries), 1):.1f} %); every attempt is listed in `words/manifest.jsonl`."
    )
    rows = []
    for name in ("without", "with"):
        path = out / f"eval_{name}" / "eval.json"
        if path.is_file():
            totals = json.loads(path.read_text(encoding="utf-8"))["totals"]["weighted"]["protocols"]["36"]
            rows.append([f"reader {name} generated words", totals["n"], totals["accuracy"]])
    if rows:
        report.table(["training data", "words", "accuracy, 36 characters (%)"], rows)
        gain = np.diff([row[2] or 0.0 for row in rows])
        if len(gain):
            report.text(
                f"Difference: {gain[0]:+.1f} points, of one run each; the spread between runs was not measured."
            )
