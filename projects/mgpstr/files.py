"""What the published scripts write: names and form of checkpoints, texts of the logs and the console."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.data.bad import FILE_NAME, BadSamples
from common.errors import UserError
from common.files import write_text
from common.models.weights import add_prefix
from common.text.normalise import keep_only
from common.train.checkpoint import save_atomic, write_card, write_json
from common.train.log import DASHES, append, options_block, sample_table
from common.train.session import command_line
from projects.mgpstr.evaluate import COLUMNS, Evaluation, total
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
    """The readings in the form in which they are printed."""
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


def checkpoints(model_dir: str, wanted: str | None) -> list[Path]:
    """The files to evaluate. Raises `UserError` for a missing file and a folder without `iter_N.pth` in the range."""
    if not model_dir:
        raise UserError("--model_dir: not given; name a checkpoint, or a folder with iter_N.pth files")
    given = Path(model_dir)
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UserError(f"--model_dir: {given} does not exist")
    low, high = bounds(wanted)
    steps = {int(found[1]): path for path in given.iterdir() if (found := re.fullmatch(r"iter_(\d+)\.\w+", path.name))}
    chosen = [steps[step] for step in sorted(steps, reverse=True) if low <= step <= high]
    if not chosen:
        raise UserError(f"--model_dir: {given}: no iter_N.pth file with {low} <= N <= {high}; name a checkpoint file")
    return chosen


def bounds(text: str | None) -> tuple[int, int]:
    """`--range a-b` as numbers. Raises `UserError`."""
    if text is None:
        return 0, 10**12
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"--range: {text!r}: give the first and the last step as 100000-300000")
    return int(parts[0]), int(parts[1])


def write_results(folder: Path, results: dict[str, Evaluation], checkpoint: Path, millions: float, each: bool) -> str:
    """The published log file, evaluation.json, errors.tsv and, if need be, bad_samples.csv; returns what is printed.

    `millions` of parameters; `each`: the sets stand for themselves (`--benchmark_all_eval`).
    """
    together = total(results)
    pace = 1000 * together.seconds / max(together.words, 1)
    cost = f"averaged_infer_time: {pace:.3f}\t# parameters: {millions:.3f}"
    if each:
        file, text = evaluation_log(results, together, cost)
        append(folder / "log_all_evaluation.txt", file)
    else:
        source = "".join(result.source for result in results.values())
        text = f"{source}{together.accuracy('char'):0.3f}\n"
        append(folder / "log_evaluation.txt", text)
        text += "\n".join([set_line(together), cost, *additional(results)])
    heads = {
        name: {"words": one.words, "unreadable": len(one.bad), **one.accuracies, "won": dict(one.won)}
        for name, one in results.items()
    }
    summary = {"checkpoint": str(checkpoint), "sets": heads, "total": together.accuracies}
    write_json(folder / "evaluation.json", summary)
    listed = folder / FILE_NAME
    listed.unlink(missing_ok=True)
    BadSamples(len(together.bad), 1.0, listed).add(together.bad)
    header = "\t".join(["label", *COLUMNS, "confidence"])
    write_text(folder / "errors.tsv", "\n".join([header, *("\t".join(row) for row in together.errors)]) + "\n")
    return text


def table(rows: list[tuple[Evaluation, Path]]) -> str:
    """Accuracies of several checkpoints, the best fused first."""
    ordered = sorted(rows, key=lambda row: -row[0].accuracy("fused"))
    head = "  ".join(f"{column + '_acc':>10s}" for column in COLUMNS)
    lines = ["  ".join(f"{one.accuracy(column):10.3f}" for column in COLUMNS) + f"  {path}" for one, path in ordered]
    return "\n".join([f"{head}  model", *lines])
