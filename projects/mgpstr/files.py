"""What the published scripts write: names and form of checkpoints, texts of the logs and the console."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.models.weights import add_prefix
from common.text.normalise import keep_only
from common.train.checkpoint import save_atomic, write_card
from common.train.log import DASHES, append, options_block, sample_table
from common.train.session import command_line
from projects.mgpstr.evaluate import COLUMNS, Evaluation
from projects.mgpstr.flags import Network

LOWER_36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def run_folder(saved_path: str, name: str, seed: int) -> Path:
    """`{saved_path}/{exp_name or model}-Seed{manualSeed}`."""
    return Path(saved_path) / f"{name}-Seed{seed}"


def step_of(checkpoint: str) -> int:
    """N of `iter_N.pth`, at which schedule and numbering of a run continue; 0 for any other name.

    The published code takes the last number of any name, and so the 128 of `mgp_str_base_patch4_32_128.pth`.
    """
    found = re.fullmatch(r"iter_(\d+)\.\w+", Path(checkpoint).name)
    return int(found[1]) if found else 0


def save_weights(path: Path, model: nn.Module, network: Network, card: Mapping[str, Any]) -> None:
    """Write the bare state dict with `module.` before its names, as published, and its metadata file."""
    save_atomic(path, add_prefix(model.state_dict()))
    write_card(path, f"mgpstr/{network.name}", network.build_options, **card)


def start_logs(
    folder: Path, values: Mapping[str, Any], about: Sequence[str], trained: int, warnings: Sequence[str]
) -> None:
    """log_dataset.txt and opt.txt, as published; additional lines stand after the published block.

    `values`: all flags; `about`: lines about data and start; `trained`: parameters that opt.txt counts.
    """
    append(folder / "log_dataset.txt", "".join(f"{line}\n" for line in about))
    append(folder / "opt.txt", f"{options_block(values)}Trainable network params num : {trained:,}")
    append(folder / "log_train.txt", "".join(f"{line}\n" for line in (command_line(), *warnings)))


def validation_block(
    step: int,
    steps: int,
    lr: float,
    train_loss: float,
    seconds: float,
    best: float,
    result: Evaluation,
    sensitive: bool,
) -> str:
    """Losses and time, four accuracies, the best so far, and five readings of the characters, as published.

    In sensitive mode the readings shown are lower-cased and reduced to 36 characters.
    """
    place = f"[{step}/{steps}] LR: {lr:.5f}, Train loss: {train_loss:.5f}, Valid loss: {result.loss:.5f}"
    accuracies = ", ".join(f"{column + '_accuracy':17s}: {result.accuracy(column):.3f}" for column in COLUMNS)
    lines = [f"{place}, Elapsed_time: {seconds:.5f}", accuracies, f"{'Best_accuracy':17s}: {best:.3f}"]
    return "\n".join([*lines, sample_table(shown(result.samples, sensitive))])


def shown(samples: Sequence[tuple[str, str, float]], sensitive: bool) -> list[tuple[str, str, float]]:
    """The readings as printed."""
    if not sensitive:
        return list(samples)
    return [(keep_only(label, LOWER_36, True), keep_only(text, LOWER_36, True), sure) for label, text, sure in samples]


def set_line(result: Evaluation, blanks: int = 1) -> str:
    """One set's accuracies; the published console has two blanks before the last column, the file one."""
    *heads, fused = [f"{column}_Acc {result.accuracy(column):.3f}" for column in COLUMNS]
    return "\t ".join(heads) + "\t" + " " * blanks + fused


def evaluation_log(results: Mapping[str, Evaluation], together: Evaluation, cost: str) -> tuple[str, str]:
    """(file, console) texts of an evaluation over the benchmark, as published.

    The published file has no line feed after a set's accuracies, so the dashes follow them on the same line.
    """
    totals = [f"{column}_total_Acc:{round(together.accuracy(column), 3)}" for column in COLUMNS]
    end = "\n".join(["accuracy: ", *totals, cost, *additional(results)]) + "\n"
    file, console = f"{DASHES}\n", f"{DASHES}\n"
    for result in results.values():
        file += f"{result.source}{set_line(result)}{DASHES}\n"
        console += f"{result.source}{set_line(result, blanks=2)}\n{DASHES}\n"
    return file + end, console + end


def additional(results: Mapping[str, Evaluation]) -> list[str]:
    """Lines that the published log does not have: the mean over sets, and samples that are in no figure."""
    mean = sum(result.accuracy("fused") for result in results.values()) / len(results)
    unreadable = ", ".join(f"{name} {len(result.bad)}" for name, result in results.items() if result.bad)
    return [f"mean of the sets, fused: {mean:.3f}", *([f"unreadable, not counted: {unreadable}"] if unreadable else [])]
