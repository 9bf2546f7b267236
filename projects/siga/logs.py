"""The text files that the published scripts write, in their form."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.train.text_log import DASHES, append, options_block, sample_table
from projects.siga.validate import Evaluation

HIDDEN = ("variant", "given")


def start(
    folder: Path, family: str, command: str, data: str, model: str, options: argparse.Namespace, trained: int
) -> None:
    """What stands in the logs before the first step: R, S everything in log_train.txt; T log_dataset.txt, opt.txt."""
    block = options_block({key: value for key, value in vars(options).items() if key not in HIDDEN})
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
        f"[{iteration}/{total_steps}] LR: {lr:0.5f}, Train loss: {train_loss:0.5f}, "
        f"Valid loss: {evaluation.loss:0.5f}, Elapsed_time: {seconds:0.5f}",
        ", ".join(f"{name:17s}: {value:0.3f}" for name, value in zip(names, values)),
        f"{'Best_accuracy':17s}: {best:0.3f}",
    ]
    return "\n".join([*lines, sample_table(evaluation.samples), ""])
