"""The report of a reproduction, as far as it is the same for every paper.

A project's `report.py` usually calls `standard_report` and adds its own pictures:

    def build(run_dir: Path, recipe: Finished) -> Report:
        return standard_report(recipe, examples=16, extra_sections=[my_section])
"""

from __future__ import annotations

import csv
import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.sources import open_words
from common.data.words import discover
from common.errors import UserError
from common.infer import environment
from common.infer.pictures import as_picture, attention_strip, enlarge
from common.infer.shipped import sha256
from common.metrics.confusions import confusions
from common.report.finished import Finished, PublishedRow
from common.report.metrics import charts_of, curves_of, find_metrics
from common.report.page import Cell, Report

if TYPE_CHECKING:
    from common.infer.recognizer import Recognizer

PROTOCOLS = ("36", "62", "94")
MOST_ERRORS = 400  # rows of the table of errors
MOST_HASHED = 100_000  # labels of a set
EXPLAIN = (
    "**36**: digits and letters without case, everything else removed from both sides; **62**: the same with case; "
    "**94**: all printable ASCII characters, with case. A word whose label is empty after this is not counted (n). All "
    "figures in %. 1-NED (under 36) and confidence are means. Weighted totals count samples, unweighted ones sets."
)
STAND_INS = (
    " The sets called `synth-…` are **rendered stand-ins** for the public sets: what is read of them cannot be "
    "compared with any published figure."
)


def standard_report(
    finished: Finished, examples: int = 24, extra_sections: Sequence[Callable[[Report], object]] = ()
) -> Report:
    """Everything that DESIGN asks of a report, for any project.

    Args:
        finished: what `strlab reproduce` has run.
        examples: crops in the grid.
        extra_sections: functions that add a project's own blocks, after the examples.
    """
    evaluation = finished.evaluation
    report = Report(finished.title, f"scale `{finished.scale}`: {finished.note}")
    add_summary(report, finished)
    if evaluation:
        add_accuracy(report, finished)
    add_curves(report, finished.run_dir if finished.run_dir.is_dir() else finished.out)
    if evaluation and finished.checkpoint is not None:
        rows = read_predictions(finished.out / "eval" / "predictions.csv")
        add_examples(report, finished, rows, examples)
        for section in extra_sections:
            section(report)
        add_errors(report, finished, rows)
    else:
        for section in extra_sections:
            section(report)
    add_provenance(report, finished)
    return report


def add_summary(report: Report, finished: Finished) -> None:
    """The first paragraph: what was trained on what, how long it took, how well it reads."""
    total = sum(step.seconds for step in finished.steps)
    lines = [f"Data: {data_words(finished)}.", f"Time of all steps: {total / 60:.1f} minutes."]
    evaluation = finished.evaluation
    if evaluation:
        words = evaluation["totals"]["weighted"]["protocols"]["36"]
        read = f"**{words['accuracy'] or 0.0:.1f} %** of {words['n']:,} evaluation words are read right"
        lines.insert(0, f"{read} (36 characters, weighted by samples), by `{evaluation['model']}`.")
    report.text(" ".join(lines))
    for warning in warnings_of(finished):
        report.text(f"**{warning}**")
    rows = [[step.name, f"{step.seconds / 60:.1f}", f"`{typed(step.command)}`"] for step in finished.steps]
    report.table(["step", "minutes", "command"], rows)


def warnings_of(finished: Finished) -> list[str]:
    """What the training warned of, from the metadata file of the evaluated checkpoint."""
    from common.infer.recognizer import read_card  # loads torch; so below

    if finished.checkpoint is None or not finished.checkpoint.exists():
        return []
    return [str(warning) for warning in read_card(finished.checkpoint).get("warnings") or []]


def data_words(finished: Finished) -> str:
    """Where the data came from, in a phrase."""
    if finished.own_data:
        return f"the folder given with --data (`{finished.data.name}`)"
    return f"the embedded synthetic corpus, rendered by `{typed(finished.steps[0].command)}`"


def add_accuracy(report: Report, finished: Finished) -> None:
    """Accuracy per set under the three protocols, and the paper's figures: next to the measured ones where the data is
    the user's own, in a separate table where the sets are rendered stand-ins."""
    evaluation = finished.evaluation
    paper = finished.published_rows if finished.own_data else ()
    report.heading("Accuracy")
    report.text(EXPLAIN + ("" if finished.own_data else STAND_INS))
    header = ["set", "n", "36", "95 % interval", "62", "94", "1-NED", "confidence", "not read"]
    header += [f"paper: {row.name}" for row in paper]
    rows: list[list[Any]] = []
    for entry in [*evaluation["sets"], *evaluation["totals"].values()]:
        of = entry["protocols"]
        first, *others = (of[name]["accuracy"] for name in PROTOCOLS)
        low, high = of["36"].get("low"), of["36"].get("high")
        ends = None if low is None else f"{low:.1f} to {high:.1f}"
        skipped = entry["unreadable"] + entry["missing"] if "missing" in entry else None
        published = [published_figure(row, entry["name"]) for row in paper]
        figures = [first, ends, *others, of["36"]["ned"], entry["confidence"], skipped]
        rows.append([entry["name"], of["36"]["n"], *figures, *published])
    report.table(header, rows, strong=[len(rows) - 2, len(rows) - 1])
    if finished.published_rows:
        facts = finished.published
        report.text(
            f"The paper's figures: trained on {facts.get('data', 'the data it names')}; protocol: "
            f"{facts.get('protocol', 'as published')}; source: {facts.get('source', 'the paper')}."
        )
    if finished.published_rows and not finished.own_data:
        names = list(dict.fromkeys(name for row in finished.published_rows for name in row.accuracy))
        table = [[row.name, *(row.accuracy.get(name) for name in names)] for row in finished.published_rows]
        report.heading("Published, on the public sets", level=3).table(["model", *names], table)


def published_figure(row: PublishedRow, name: str) -> float | None:
    """The paper's figure of a set, in %, by the last part of its folder's name in any case; None without one."""
    known = {key.casefold(): figure for key, figure in row.accuracy.items()}
    return known.get(name.rsplit("/", 1)[-1].casefold())


def add_curves(report: Report, folder: Path) -> None:
    """Loss, accuracy, learning rate and speed of every run below a folder."""
    runs = {name: rows for name, rows in find_metrics(folder).items() if rows}
    if not runs:
        return
    report.heading("Training")
    for name, rows in runs.items():
        if len(runs) > 1:
            report.heading(name or "run", level=3)
        report.curves(charts_of(curves_of(rows)))
        speed = [row["images_per_second"] for row in rows if isinstance(row.get("images_per_second"), (int, float))]
        waits = [row["data_wait"] for row in rows if isinstance(row.get("data_wait"), (int, float))]
        if speed:
            wait = f"; waiting for data: {np.median(waits):.0f} % of the time" if waits else ""
            report.text(f"Median throughput: {np.median(speed):.1f} images a second{wait}.")


def read_predictions(path: Path) -> list[dict[str, str]]:
    """The rows of `predictions.csv` as `strlab eval` wrote them."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_examples(report: Report, finished: Finished, rows: list[dict[str, str]], count: int) -> None:
    """A grid of crops with prediction, truth, confidence, attention per character, and the reader's own pictures."""
    if not rows:
        return
    rng = np.random.default_rng(0)
    chosen = [rows[i] for i in sorted(rng.choice(len(rows), min(count, len(rows)), replace=False))]
    cells = cells_of(open_for(finished), chosen, set_folders(finished.evaluation), attention=True)
    told = (
        "Crops drawn at random from the evaluation sets: the prediction in green (right) or red (36-character "
        "protocol), the truth and the confidence below it."
    )
    if any(len(cell.images) > 1 for cell in cells):
        told += " Under the crop: where each character was looked for, in reading order."
    report.heading("Examples").text(told)
    report.grid(cells)


def open_for(finished: Finished) -> Recognizer:
    """The recognizer of the checkpoint that the recipe has evaluated."""
    from common.infer.recognizer import open_recognizer  # loads torch

    return open_recognizer(finished.checkpoint, finished.model or None)


def set_folders(evaluation: Mapping[str, Any]) -> dict[str, Path]:
    """Folder of each evaluated LMDB by its name."""
    return {entry["name"]: Path(entry["path"]) for entry in evaluation["sets"]}


def cells_of(
    recognizer: Recognizer, rows: Sequence[dict[str, str]], folders: Mapping[str, Path], attention: bool
) -> list[Cell]:
    """Grid cells of some rows of `predictions.csv`; the crops are read again for their attention and pictures."""
    import torch

    opened = {name: open_words(folders[name]) for name in {row["set"] for row in rows}}
    crops = [recognizer.prepare(opened[row["set"]].image_bytes(int(row["index"]))) for row in rows]
    predictions = recognizer(crops, attention=attention)
    extras: dict[str, np.ndarray] = {}
    if attention and hasattr(recognizer.reader, "extras") and crops:
        with torch.inference_mode():
            extras = recognizer.reader.extras(torch.from_numpy(np.stack(crops)).to(recognizer.reader.device))
    cells, marks = [], {"1": True, "0": False, "": None}
    for i, (row, crop, prediction) in enumerate(zip(rows, crops, predictions)):
        images = [enlarge(crop, 3)]
        if prediction.attention is not None and prediction.text:
            maps = prediction.attention[: max(1, len(prediction.text))]
            images.append(attention_strip(enlarge(crop, 2), maps, columns=2))
        lines = [f"truth `{row['label']}`, confidence {100 * float(row['confidence']):.1f} %, {row['set']}"]
        for pictures in extras.values():
            images.append(enlarge(as_picture(pictures[i]), max(1, crop.shape[1] * 2 // pictures[i].shape[1])))
        if extras:
            lines.append("below: " + ", ".join(extras))
        cells.append(Cell(images, row["prediction"] or "(nothing)", lines, marks[row["correct_36"]]))
    return cells


def add_errors(report: Report, finished: Finished, rows: list[dict[str, str]]) -> None:
    """The worst errors (sure and far from the truth) and the confused characters."""
    wrong = [row for row in rows if row["correct_36"] == "0"]
    if not wrong:
        return
    report.heading("Worst errors").text(
        f"{len(wrong):,} of {len(rows):,} words are wrong under the 36-character protocol. "
        "First those that the reader was sure of."
    )
    sure = sorted(wrong, key=lambda row: (-float(row["confidence"]), row["set"], int(row["index"])))[:12]
    report.grid(cells_of(open_for(finished), sure, set_folders(finished.evaluation), attention=False))
    far = sorted(wrong, key=lambda row: (float(row["ned"]), row["set"], int(row["index"])))[:MOST_ERRORS]
    report.heading("All errors" if len(far) == len(wrong) else f"The {MOST_ERRORS} worst errors", level=3).table(
        ["set", "number", "truth", "read", "1-NED %", "confidence %"],
        [
            [row["set"], int(row["index"]) + 1, row["label"], row["prediction"], 100 * float(row["ned"]),
             100 * float(row["confidence"])]
            for row in far
        ],
        "Farthest from the truth first; a click on a column sorts by it.",
    )  # fmt: skip
    counts = confusions((row["label"].lower(), row["prediction"].lower()) for row in wrong).most_common(24)
    report.heading("Confusions").table(
        ["true", "read", "times"],
        [[true or "(nothing)", read or "(nothing)", n] for (true, read), n in counts],
        "Differing characters of a shortest edit path between truth and prediction, without case; (nothing) read means "
        "that a character was missed, true (nothing) that one was invented.",
    )


def add_provenance(report: Report, finished: Finished) -> None:
    """Options, commit, versions, machine and the data's LMDBs."""
    from common.infer.recognizer import read_card  # loads torch

    report.heading("How it was made")
    card = read_card(finished.checkpoint) if finished.checkpoint is not None and finished.checkpoint.exists() else {}
    if card:
        report.heading("Options", level=3).table(
            ["option", "value"], [[name, str(value)] for name, value in flat(card)]
        )
    if finished.checkpoint is not None and finished.checkpoint.exists():
        files = sorted(p for p in [finished.checkpoint, *finished.checkpoint.rglob("*")] if p.is_file())
        rows = [[short(file, finished.out), file.stat().st_size, sha256(file)] for file in files[:20]]
        report.heading("Checkpoint", level=3).table(["file", "bytes", "sha256"], rows)
    report.heading("Software and machine", level=3)
    report.table(["what", "value"], [[name, value] for name, value in environment.describe().items()])
    sets = data_sets(finished.data)
    if sets:
        report.heading("Data", level=3).table(["folder", "words", "sha256 of its labels"], sets)


def short(path: Path, out: Path) -> str:
    """A path from the output folder, where it lies below it; else its last two parts."""
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else "/".join(path.parts[-2:])


def labels_hash(path: Path) -> str:
    """A hash of a set's labels in order, which distinguishes two sets of equal size; "" for a set without labels."""
    digest, words = hashlib.sha256(), open_words(path)
    try:
        for index in range(min(len(words), MOST_HASHED)):
            digest.update(words.label(index).encode() + b"\0")
    except (KeyError, UnicodeDecodeError, UserError):
        return ""
    return digest.hexdigest()[:16] + ("" if len(words) <= MOST_HASHED else f" (first {MOST_HASHED:,})")


def flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested mapping as (dotted name, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            pairs.extend(flat(value, f"{prefix}{name}."))
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def data_sets(root: Path) -> list[list[Any]]:
    """Folder and number of words of every LMDB below a root."""
    try:
        return [
            [path.relative_to(root).as_posix(), len(open_words(path)), labels_hash(path)]
            for path in discover(root, None)
        ]
    except UserError:
        return []  # a recipe of a method that reads no word LMDBs


def typed(command: Sequence[str]) -> str:
    """A command as a person types it: a program of an environment by its name, without the folders of one machine."""
    if not command or not Path(command[0]).is_absolute():
        return shlex.join(command)
    name = Path(command[0]).name
    return shlex.join(["python" if re.fullmatch(r"python3?[.\d]*", name) else name, *command[1:]])
