"""The text files that the published scripts write, in their form."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from projects.siga.validate import Evaluation

DASHES = "-" * 80
TABLE_HEAD = f"{'Ground Truth':25s} | {'Prediction':25s} | Confidence Score & T/F"


def append(path: Path, text: str) -> None:
    """Append text; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def options_block(options: argparse.Namespace) -> str:
    """`------------ Options -------------`, a `key: value` line each, and a dashed line."""
    hidden = ("variant", "given")
    lines = [f"{key}: {value}" for key, value in vars(options).items() if key not in hidden]
    return "\n".join(["------------ Options -------------", *lines, "-------------------------------------", ""])


def start(folder: Path, family: str, command: str, data: str, model: str, options: argparse.Namespace, trained: int) -> None:
    """What stands in the logs before the first step: R, S everything in log_train.txt; T log_dataset.txt and opt.txt."""
    block = options_block(options)
    if family == "T":
        append(folder / "log_dataset.txt", f"{DASHES}\n{data}\n{DASHES}\n")
        append(folder / "opt.txt", f"{block}Trainable network params num : {trained:,}")
        append(folder / "log_train.txt", f"{command}\n")
    else:
        append(folder / "log_train.txt", f"{command}\n{data}\n{model}\n{block}\n")


def evaluation_rs(iteration: int, evaluation: Evaluation) -> str:
    """R's block in result/log_all_evaluation.txt, fields set apart by tabs; the last two heads never existed."""

    def heads(value: float) -> str:
        return f"Share_pred: {value:0.3f}\tlanguage: 0.000\tfinal: 0.000"

    rows = [f"dataset: {name}\taccuracy: {heads(result.accuracy)}" for name, result in evaluation.sets.items()]
    total = f"total_accuracy: {heads(evaluation.accuracy)}"
    return "\n".join([DASHES, f"iteration: {iteration}", *rows, total, ""])


def evaluation_t(
    iteration: int, total_steps: int, lr: float, train_loss: float, seconds: float, best: float, evaluation: Evaluation
) -> str:
    """T's block in log_train.txt: losses, five accuracies under the published names, the best one, five samples."""
    names = ("char_accuracy", "bpe_accuracy", "wp_accuracy", "fused_accuracy", "out_accuracy")
    values = [evaluation.heads.get(head, 0.0) for head in ("TRBA", "glyph", "Iter", "final", "out")]
    lines = [
        f"[{iteration}/{total_steps}] LR: {lr:0.5f}, Train loss: {train_loss:0.5f}, Valid loss: {evaluation.loss:0.5f}, "
        f"Elapsed_time: {seconds:0.5f}",
        ", ".join(f"{name:17s}: {value:0.3f}" for name, value in zip(names, values)),
        f"{'Best_accuracy':17s}: {best:0.3f}",
    ]
    return "\n".join([*lines, sample_table(evaluation.samples), ""])


def sample_table(samples: Sequence[tuple[str, str, float]]) -> str:
    """Truth, prediction and confidence of a few samples."""
    rows = [f"{truth:25s} | {read:25s} | {sure:0.4f}\t{truth == read}" for truth, read, sure in samples]
    return "\n".join([DASHES, TABLE_HEAD, DASHES, *rows, DASHES])
