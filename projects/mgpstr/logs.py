"""The text that the published training writes to log_train.txt and the console."""

from __future__ import annotations

from collections.abc import Sequence

from common.text.normalise import keep_only
from common.train.text_log import sample_table
from projects.mgpstr.validate import COLUMNS, Evaluation

LOWER_36 = "0123456789abcdefghijklmnopqrstuvwxyz"


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


def set_line(result: Evaluation) -> str:
    """One set's accuracies in log_all_evaluation.txt, and how many of its samples are not in them."""
    columns = [f"{column}_Acc {result.accuracy(column):.3f}" for column in COLUMNS]
    return "\t ".join([*columns, *([f"unreadable {len(result.bad)}"] if result.bad else [])])
