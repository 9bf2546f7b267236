"""What the report of a DiG reproduction adds: pre-trained against scratch, reconstructions, figures of the contrast."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.decode import resize_bicubic
from common.data.words import WordDataset, discover
from common.models.images import patchify, unpatchify
from common.report.charts import Curve
from common.report.metrics import curves_of, read_metrics
from common.report.page import Cell, Report
from common.report.standard import standard_report
from common.train.checkpoint import load, numbered_checkpoints
from projects.dig.data import normalise
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import MoCoViT, build_pretrainer

if TYPE_CHECKING:
    from common.report.finished import Finished

RUNS = {"finetune": "pre-trained", "scratch": "from scratch"}


def build(run_dir: Path, recipe: Finished) -> Report:
    """The report of `strlab reproduce dig`."""
    sections = [partial(compare, folder=recipe.out), partial(reconstructions, finished=recipe)]
    return standard_report(recipe, extra_sections=sections)


def compare(report: Report, folder: Path) -> None:
    """The paper's claim: both learning curves over the same number of images, and both final accuracies."""
    runs = {name: read_metrics(folder / name / "metrics.jsonl") for name in RUNS}
    if not all(runs.values()):
        return
    report.heading("What pre-training buys")
    report.text(
        "The same recogniser, data, flags and number of steps; only the encoder's first weights differ. Accuracy is "
        "that of the published metric on the validation words."
    )
    report.curves([(title, both(runs, name)) for title, name in TITLES.items()])
    rows = [[RUNS[name], *last_figures(rows)] for name, rows in runs.items()]
    report.table(["run", "best validation accuracy, %", "at step", "last training loss"], rows, verdict(rows))
    finals = {name: weighted_accuracy(folder / where / "eval.json") for name, where in EVALUATIONS.items()}
    if all(value is not None for value in finals.values()):
        lines = [f"{RUNS[name]} {value:.1f} %" for name, value in finals.items()]
        report.text(f"On the evaluation sets (36 characters, weighted): {', '.join(lines)}.")


TITLES = {"validation accuracy": "accuracy", "training loss": "loss", "validation loss": "val_loss"}
EVALUATIONS = {"finetune": "eval", "scratch": "eval-scratch"}


def both(runs: dict[str, list[dict]], name: str) -> list[Curve]:
    """One curve of each run."""
    found = {run: curves_of(rows).get(name) for run, rows in runs.items()}
    return [Curve(RUNS[run], curve.x, curve.y) for run, curve in found.items() if curve is not None]


def last_figures(rows: list[dict]) -> list[float]:
    """Best validation accuracy, its step, and the mean of the last ten training losses."""
    checked = [(row["accuracy"], row["step"]) for row in rows if "accuracy" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    best = max(checked, key=lambda pair: pair[0], default=(float("nan"), 0))
    return [*best, float(np.mean(losses[-10:]))]


def verdict(rows: list[list]) -> str:
    """Which run read more, in a sentence."""
    gain = rows[0][1] - rows[1][1]
    if abs(gain) < 1:
        return f"Here pre-training changes little ({gain:+.1f} points)."
    word = "helps" if gain > 0 else "does not help"
    return f"Here pre-training {word}: {gain:+.1f} points at the same budget."


def weighted_accuracy(path: Path) -> float | None:
    """The weighted accuracy of 36 characters in an `eval.json` of `strlab eval`, None without the file."""
    if not path.is_file():
        return None
    return json.loads(path.read_text("utf-8"))["totals"]["weighted"]["protocols"]["36"]["accuracy"]


def reconstructions(report: Report, finished: Finished, count: int = 12) -> None:
    """Masked input, prediction and target of validation words, by the last pre-training checkpoint."""
    path = last_checkpoint(finished.out / "pretrain")
    if path is None:
        return
    options = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
    model = open_pretrainer(path, options)
    if not model.has_pixel:
        return
    dataset = WordDataset(discover(finished.data / "validation"), drop_empty=False)
    chosen = np.random.default_rng(0).choice(len(dataset), min(count, len(dataset)), replace=False)
    size = tuple(options["options"]["image_size"])
    words = [(dataset.label(int(i)), resize_bicubic(dataset.image(int(i)), size)) for i in chosen]
    ratio = float(load(path)["args"].mask_ratio)
    report.heading("Writing: reconstructions")
    report.text(
        f"Words that pre-training has not seen: what the encoder was given ({ratio:.0%} of the patches hidden), what "
        "it wrote into the hidden patches, and the original. Predictions are means over what could stand there, hence "
        "soft."
    )
    pictures = reconstruct(model, np.stack([image for _, image in words]), ratio)
    report.grid([Cell(list(three), label) for (label, _), three in zip(words, pictures)])


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest epoch in a folder."""
    return next(iter(numbered_checkpoints(folder)), None)


def open_pretrainer(path: Path, card: dict) -> MoCoViT:
    """The pre-trainer of a checkpoint, by its metadata file."""
    options = {**card["options"], "image_size": tuple(card["options"]["image_size"])}
    model = build_pretrainer(card["model"].removeprefix("dig/"), **options)
    model.load_state_dict(load(path)["model"])
    return model.eval()


@torch.no_grad()
def reconstruct(model: MoCoViT, images: np.ndarray, ratio: float, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """(masked input, prediction, target) as uint8 `[H, W, 3]` of each of the images uint8 `[B, H, W, 3]`."""
    inputs = normalise(torch.from_numpy(images))
    masking = RandomMasking(model.encoder.grid, ratio, views=1)
    mask = torch.from_numpy(masking.batch(np.random.default_rng(seed), len(images)))[:, 0]
    patch = (model.encoder.patch,) * 2
    target = patchify((inputs + 1) / 2, patch)
    predicted = torch.where(mask[..., None], model.reconstruct(inputs, mask), target)
    hidden = torch.where(mask[..., None], torch.full_like(target, 0.5), target)
    return list(zip(*(as_pictures(part, patch, inputs.shape[2:]) for part in (hidden, predicted, target))))


def as_pictures(patches: torch.Tensor, patch: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Patch vectors in [0, 1] -> uint8 `[B, H, W, 3]`."""
    pixels = unpatchify(patches, patch, tuple(size)).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()
