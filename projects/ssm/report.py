"""SSM's report: the standard one, with superimposed inputs, both separated images, and the run from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from common.data.words import WordDataset, discover
from common.infer.pictures import enlarge
from common.report.charts import Curve
from common.report.finished import Finished
from common.report.metrics import read_metrics
from common.report.page import Cell, Report
from common.report.standard import standard_report
from common.train.checkpoint import last_number, load
from projects.ssm.model.pretrainer import SSMPretrainer, build_pretrainer
from projects.ssm.pretrain.collate import superimpose

SHOWN = 8
RUNS = (("finetune", "pre-trained", "eval"), ("scratch", "scratch", "eval-scratch"))
"""Folder of the run, what its encoder started from, folder of its evaluation."""
CURVES = {"val_accuracy": "validation accuracy", "loss": "training loss"}
FLIPS = {1: "flipped left-right", 2: "flipped upside down", 3: "turned by 180 degrees"}
EXPLAIN = """The network sees only the first picture of each column, the mean of a crop and its flip. Prompted for the
original and for the flip it draws the third and the fifth picture; the truth is above each of them."""


def build(run_dir: Path, recipe: Finished) -> Report:
    """The report of a finished reproduction."""

    def add_separation(report: Report) -> None:
        found = sorted((recipe.out / "pretrain").glob("checkpoint-*.pth"), key=lambda path: last_number(path.name))
        if not found:
            return
        report.heading("Superimposition and separation", level=3).text(EXPLAIN)
        model = open_pretrainer(found[-1])
        report.grid(pictures(model, crops(recipe.data, model.img_size)))

    def add_comparison(report: Report) -> None:
        runs = {start: read_metrics(recipe.out / name / "metrics.jsonl") for name, start, _ in RUNS}
        if not all(runs.values()):
            return
        report.heading("From the pre-trained encoder and from scratch", level=3)
        report.text(
            "Same recogniser, data, number of steps and seed. Validation words; at the end the evaluation sets."
        )
        report.curves([(title, joined(runs, key)) for key, title in CURVES.items()])
        columns = ["start", "step", "val_accuracy", "1 - NED", "val_loss", "evaluation, 36 characters"]
        report.table(columns, comparison(runs, recipe.out))

    return standard_report(recipe, examples=24, extra_sections=[add_separation, add_comparison])


def open_pretrainer(path: Path) -> SSMPretrainer:
    """The pre-trainer of a checkpoint, by its metadata file."""
    card = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
    model = build_pretrainer(card["model"].rpartition("/")[2], **card["options"])
    model.load_state_dict(load(path)["model"])
    return model.eval()


def crops(data: Path, size: tuple[int, int]) -> torch.Tensor:
    """The first validation images, uint8 `[SHOWN, H, W, 3]`."""
    root = data / "validation" if (data / "validation").is_dir() else data
    words = WordDataset(discover(root)[:1], image_size=tuple(size), labels=False)
    return torch.from_numpy(np.stack([words[index].image for index in range(min(SHOWN, len(words)))]))


@torch.no_grad()
def pictures(model: SSMPretrainer, images: torch.Tensor) -> list[Cell]:
    """For every crop: mixture, both truths, both separated images."""
    directions = np.arange(len(images)) % 3 + 1
    views = superimpose(images, images, directions)
    original, inverted = model.separate(views.student_mix, torch.stack([views.positive, views.negative]))
    columns = {
        "superimposed": views.student_mix, "original": views.student, "separated original": original,
        "flipped": views.student_flipped, "separated flip": inverted,
    }  # fmt: skip
    cells = []
    for row in range(len(images)):
        shown = [(batch[row].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy() for batch in columns.values()]
        cells.append(Cell([enlarge(picture, 2) for picture in shown], FLIPS[directions[row]], list(columns)))
    return cells


def joined(runs: dict[str, list[dict]], key: str) -> list[Curve]:
    """One figure of all runs."""
    points = {start: [(row["step"], row[key]) for row in rows if key in row] for start, rows in runs.items()}
    return [Curve(start, *zip(*found)) for start, found in points.items() if found]


def comparison(runs: dict[str, list[dict]], out: Path) -> list[list[object]]:
    """The last validation of every fine-tuning run, and what it reads of the evaluation sets (%, weighted)."""
    table: list[list[object]] = []
    for _, start, evaluation in RUNS:
        done = [row for row in runs[start] if "val_accuracy" in row]
        file = out / evaluation / "eval.json"
        read: object = "not measured"
        if file.is_file():
            totals = json.loads(file.read_text("utf-8"))["totals"]["weighted"]
            read = round(totals["protocols"]["36"]["accuracy"], 2)
        if done:
            figures = [round(float(done[-1][key]), 3) for key in ("val_accuracy", "val_NED", "val_loss")]
            table.append([start, done[-1]["step"], *figures, read])
    return table
