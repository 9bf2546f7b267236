"""TextSSR's report: what was painted, how well it is read, and what the words are worth to a reader."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from common.infer.pictures import enlarge
from common.metrics.protocols import PROTOCOL_36
from common.report.finished import Finished
from common.report.metrics import curves_of, read_metrics
from common.report.page import Cell, Report
from common.report.standard import standard_report
from projects.textssr.metrics import FIGURES, READ, load

SHEET = """Each pair: the crop before (left) and after painting the word below (`wanted > read`);
green where the reader agrees, case aside."""
THREE = """What the reader is given, for the same words: the real region (top), the same after the VAE alone, the
painted one; below each word the three readings. Green: the painted word is read right."""
GENERATED = """The first words that were kept and the first that were rejected (`wanted > read`), each next to the
original word of its region."""
LOSSES = {"loss_inside": "inside the text region", "loss_outside": "outside"}
PAINTED = "The same regions at each checkpoint: real crop, crop without the word, glyph, painting."
SAMPLES = {"vae": "Crops before and after the VAE.", "step1": PAINTED, "step2": PAINTED}
SMALL_SAMPLE = 100
"""Fewer words than this: a difference of a few points means nothing, and the report says so."""


def build(run_dir: Path, recipe: Finished) -> Report:
    """The report of a finished reproduction: the pictures first, then what every report has about the reader."""
    standard, out = standard_report(recipe, examples=12), recipe.out
    report = Report(standard.title, standard.subtitle)
    report.heading("Painted words")
    add_verdict(report, out)
    for folder in own_words(out):
        add_regions(report, folder)
    for folder in sorted(path.parent for path in out.glob("paint*/contact_sheet.png")):
        report.heading(folder.name, level=3).text(SHEET).image(load(folder / "contact_sheet.png"), folder.name)
        add_full(report, folder)
    add_data_set(report, out)
    add_training(report, out)
    return report.heading("The steps, and the reader trained with generated words").extend(standard)


def own_words(out: Path) -> list[Path]:
    """Folders of `infer.py` in which regions have their own words painted anew: there the real ones lie too."""
    return sorted(path for path in out.glob("paint*") if (path / "truth").is_dir())


def add_verdict(report: Report, out: Path) -> None:
    """The table of `evaluate.py` for every folder of painted words, and in words what it shows."""
    paths = sorted(out.glob("paint*/evaluation.json"))
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    own = {folder: found[folder.name] for folder in own_words(out) if folder.name in found}
    for folder, figures in own.items():
        report.text(f"{folder.name}: {verdict(figures)} {colours(folder)}".strip())
    rows = [[name, *(figures.get(figure) for figure in FIGURES)] for name, figures in found.items()]
    # evaluate.py says in words why a figure was not measured: once below the table, not in each cell
    absent = {f"{name} {cell}" for row in rows for name, cell in zip(FIGURES, row[1:]) if isinstance(cell, str)}
    report.table(
        ["run", *FIGURES],
        [[row[0], *(None if isinstance(cell, str) else cell for cell in row[1:])] for row in rows],
        "SeqAcc, word36, NED in %; SSIM 1 is identical. paint_word: one and the same word everywhere; the others: the "
        "regions' own words painted anew, so that real region, VAE and painting can be compared."
        + "".join(f" {reason}." for reason in sorted(absent)),
    )
    names = ["length", "words", *READ.values()]
    for folder, figures in own.items():
        report.table(
            names,
            [[entry.get(name) for name in names] for entry in figures["lengths"]],
            f"{folder.name} by the number of characters (36 characters, %).",
        )


def verdict(figures: dict) -> str:
    """What the model can and cannot paint, as far as the measured figures of its run say it (shares in %)."""
    painted, real, vae = (figures.get(READ[name]) for name in ("region", "truth", "vae"))
    if real is None or vae is None:
        return "The real regions were not read, so nothing can be said about what the reader misses by itself."
    parts = [
        f"The judge ({figures.get('reader', 'not named')}) gets **{real:.1f} %** of the {figures['words']} real "
        f"regions right, **{vae:.1f} %** after the VAE alone (encoded and decoded, nothing painted) and "
        f"**{painted:.1f} %** of the words that were painted."
    ]
    if real < 5:
        parts.append("**It reads hardly anything**, so nothing follows from its readings: judge by the pictures.")
        return " ".join(parts)
    if real < 50:
        parts.append("It misses most real words, so it is a weak judge of painted ones: look at the pictures.")
    if vae < 0.7 * real:
        parts.append("The VAE alone makes much of the text unreadable: no painting through it could be read better.")
    reached = painted / vae if vae else 0.0
    if painted < 2:
        parts.append("**This model cannot paint words that are read**; what it paints are at best traces of letters.")
    elif reached < 0.5:
        parts.append("The model paints some words so that they are read, most of them not.")
    elif reached < 0.9:
        parts.append("The model paints most words that the VAE can carry, and loses a part of them.")
    else:
        parts.append("Painted words are read about as well as anything that passed this VAE.")
    good = [entry for entry in figures["lengths"] if entry["word36"] >= 50 and entry["words"] >= 5]
    lengths = ", ".join(str(entry["length"]) for entry in good)
    parts.append(
        f"At least half of the painted words of these lengths are read right: {lengths} characters."
        if good
        else "There is no word length of which half of the painted words are read right."
    )
    if figures.get("SSIM") is not None:
        parts.append(f"Structural similarity of painted and real regions: {figures['SSIM']:.2f} (1 is identical).")
    if figures["words"] < SMALL_SAMPLE:
        parts.append(f"With {figures['words']} words these shares are rough.")
    return " ".join(parts)


def colours(folder: Path) -> str:
    """What becomes of the colours, by the mean saturation (0 grey, 1 pure) of the regions; "" without their files."""
    found = []
    for name in ("truth", "vae", "region"):
        files = sorted((folder / name).glob("*.png"))
        found.append([cv2.cvtColor(load(file), cv2.COLOR_RGB2HSV)[..., 1].mean() / 255 for file in files])
    if not all(found):
        return ""
    real, vae, painted = map(np.mean, found)
    told = f"Mean saturation: {real:.2f} real, {vae:.2f} after the VAE, {painted:.2f} painted"
    return f"{told}; **most of the colour is lost**." if vae < real / 2 else f"{told}."


def add_regions(report: Report, folder: Path, most: int = 16) -> None:
    """Real, reconstructed and painted regions of the first words with what was read in each."""
    path = folder / "predictions.csv"
    if not path.is_file() or not (folder / "vae").is_dir():
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:most]
    cells = []
    for row in rows:
        images = [enlarge(load(folder / name / row["file"]), 3) for name in ("truth", "vae", "region")]
        good = PROTOCOL_36.normalise(row["prediction"]) == PROTOCOL_36.normalise(row["text"])
        readings = " / ".join(row[name] or "(nothing)" for name in ("truth", "vae", "prediction"))
        cells.append(Cell(images, row["text"], [readings], good))
    report.heading(f"{folder.name}: real, through the VAE, painted", level=3).text(THREE).grid(cells, cell_width=180)


def add_full(report: Report, folder: Path, most: int = 8) -> None:
    """Whole pictures with the word pasted back."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    shown = [name for name in list(labels) if (folder / "full" / name).is_file()][:most]
    cells = [Cell([load(folder / "full" / name)], labels[name]) for name in shown]
    if cells:
        report.text("Whole pictures with the word named below pasted back into its region:").grid(cells)


def add_training(report: Report, out: Path) -> None:
    """The loss inside and outside the text region, and the last sheet of samples of every training."""
    charts, sheets = [], {}
    for name in ("vae", "step1", "step2"):
        curves = curves_of(read_metrics(out / name / "metrics.jsonl"))
        shown = [replace(curves[key], name=told) for key, told in LOSSES.items() if key in curves]
        if len(shown) > 1:
            charts.append((f"{name}: loss by place", shown))
        found = sorted((out / name / "samples").glob("*.png"))
        if found:
            sheets[name] = found[-1]
    if charts or sheets:
        report.heading("Training", level=3)
    if charts:
        report.curves(charts, log_y=True)
    for name, path in sheets.items():
        report.text(SAMPLES[name]).image(load(path), f"{name}, update {int(path.stem):,}")


def add_data_set(report: Report, out: Path) -> None:
    """How many generated words were kept, how many are read, and what they change for the reader."""
    manifest = out / "generated" / "manifest.jsonl"
    if not manifest.is_file():
        return
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    kept = sum(entry["accepted"] for entry in entries)
    read = [
        PROTOCOL_36.normalise(entry["prediction"]) == PROTOCOL_36.normalise(entry["label"])
        for entry in entries
        if "prediction" in entry
    ]
    report.heading("The generated data set", level=3).text(
        f"{kept:,} of {len(entries):,} painted words were kept ({100 * kept / max(len(entries), 1):.1f} %); the judge "
        f"reads {sum(read):,} of them right. Every attempt is listed in `generated/manifest.jsonl`."
    )
    sheet = out / "generated" / "contact_sheet.png"
    if sheet.is_file():
        report.text(GENERATED).image(load(sheet), "kept, rejected and original words")
    rows = []
    for name, folder in (("without", "eval_without"), ("with", "eval")):
        path = out / folder / "eval.json"
        if path.is_file():
            totals = json.loads(path.read_text(encoding="utf-8"))["totals"]["weighted"]["protocols"]["36"]
            rows.append([f"reader {name} generated words", totals["n"], totals["accuracy"]])
    if rows:
        report.table(["training data", "words", "accuracy, 36 characters (%)"], rows)
    if len(rows) == 2:
        gain = (rows[1][2] or 0.0) - (rows[0][2] or 0.0)
        report.text(
            f"Difference: {gain:+.1f} points for the same number of training steps, of one run each; the spread "
            "between runs was not measured."
        )
        if kept < SMALL_SAMPLE:
            report.text(
                f"**With {kept:,} words kept this difference says nothing about what generated words are worth**: so "
                "few can hardly teach a reader anything, and two runs may leave their first plateau at different times."
            )
