"""The text files that the published scripts write, in their form."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.train.log import DASHES, append, options_block, sample_table
from projects.siga.evaluate import Evaluation

HIDDEN = ("variant", "given")


def start(
    folder: Path,
    family: str,
    data: str,
    model: str,
    options: argparse.Namespace,
    trained: int,
    warnings: Sequence[str],
) -> None:
    """What the logs hold before the first step: R, S everything in log_train.txt; T log_dataset.txt, opt.txt."""
    block = options_block({key: value for key, value in vars(options).items() if key not in HIDDEN})
    if family == "T":
        append(folder / "log_dataset.txt", f"{DASHES}\n{data}\n{DASHES}\n")
        append(folder / "opt.txt", f"{block}Trainable network params num : {trained:,}")
        append(folder / "log_train.txt", "".join(f"{line}\n" for line in warnings))
    else:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        line = f"Command line input: CUDA_VISIBLE_DEVICES={devices} python {shlex.join(sys.argv)}"
        append(folder / "log_train.txt", f"{line}\n{DASHES}\n{data}\n{DASHES}\n{model}\n{block}")


def evaluation_rs(iteration: int, evaluation: Evaluation) -> str:
    """R's block in result/log_all_evaluation.txt. Fields are separated by blanks, in the last line by tabs, and every
    line ends with one, as published; the heads `language` and `final` never existed."""

    def heads(value: float, separator: str) -> str:
        values = {"Share_pred": value, "language": 0.0, "final": 0.0}
        return "".join(f"{name}: {number:0.3f}{separator}" for name, number in values.items())

    rows = [f"dataset: {name} accuracy: {heads(result.accuracy, ' ')}" for name, result in evaluation.sets.items()]
    total = "total_accuracy: " + heads(evaluation.accuracy, "\t")
    return "\n".join([DASHES, f"iteration: {iteration} ", *rows, total, ""])


def evaluation_t(
    iteration: int, total_steps: int, lr: float, train_loss: float, seconds: float, best: float, evaluation: Evaluation
) -> str:
    """T's block in log_train.txt: losses, five accuracies under the published names, the best one, five samples."""
    names = ("char_accuracy", "bpe_accuracy", "wp_accuracy", "fused_accuracy", "out_accuracy")
    values = [evaluation.heads.get(head, 0.0) for head in ("TRBA", "glyph", "Iter", "final", "out")]
    lines = [
        f"[{iteration}/{total_steps}] LR: {lr:0.5f}, Train loss: {train_loss:0.5f}, "
        f"Valid loss: {evaluation.loss:0.5f}, Elapsed_time: {seconds:0.5f}",
        ", ".join(f"{name:17s}: {value:0.3f}" for name, value in zip(names, values)) + " ",
        f"{'Best_accuracy':17s}: {best:0.3f}",
    ]
    return "\n".join([*lines, sample_table(evaluation.samples), ""])
