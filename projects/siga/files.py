"""What a run of SIGA reads and writes under the published names, in the order of a run: its folder, where it resumes,
the logs, the checkpoints."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.data.loader import Batch, WordLoader
from common.errors import UserError
from common.models.weights import add_prefix
from common.train.checkpoint import git_commit, load, save_atomic, write_card
from common.train.distributed import Dist, unwrap
from common.train.log import DASHES, Meters, MetricsLog, ScalarWriter, append, options_block, sample_table
from common.train.loop import Clock, Step
from common.train.state import TrainingState, is_state, newest_state, refuse_changes
from projects.siga.evaluate import Evaluation, as_row
from projects.siga.model.build import load_weights
from projects.siga.model.variants import Variant


def run_folder(name: str | None, variant: Variant, seed: int, root: Path) -> Path:
    """`{root}/{exp_name}`; without a name Seed{seed}-{model} (R, S) or {model} (T, which always adds -Seed{seed})."""
    if variant.family == "T":
        return root / f"{name or variant.name}-Seed{seed}"
    return root / (name or f"Seed{seed}-{variant.name}")


# ---- where a run resumes


def starting_point(folder: Path, resume: str | bool, saved_model: str, dist: Dist) -> tuple[str, Any] | None:
    """Path and content of the file that the run continues from, as `--resume` and `--saved_model` say; None: none.

    `--resume auto`: newest whole state of this run's folder, or `--saved_model`. `--resume FILE`: that state.
    `--resume yes` (or any other word, as published) and `--saved_model FILE`: that checkpoint.

    Raises:
        UserError: a file that is missing or damaged.
    """
    wish = str(resume or "")
    if wish == "auto" or (wish and wish.lower() in ("true", "yes", "1") and not saved_model):
        found = newest_state(folder, dist)
        if found is not None:
            return str(found[0]), found[1]
        wish = ""
    path = wish if wish and Path(wish).is_file() else saved_model
    if wish and not path:
        raise UserError(f"--resume: {wish}: no such file; give auto, a training state, or yes with --saved_model")
    return (path, load(path)) if path else None


def resume(
    state: TrainingState,
    start: tuple[str, Any] | None,
    changed: Callable[[Mapping[str, Any]], list[str]],
    allow_changes: bool,
    total: int,
    dist: Dist,
) -> str:
    """Put the run where its `starting_point` was: a training state exactly; of a checkpoint the weights and, where it
    has them, optimizer and step. Returns a line for the log.

    Args:
        state: of this run, with its model and optimizer.
        start: from `starting_point`.
        changed: the options of a state -> what differs now, a phrase each.
        allow_changes: continue nevertheless.
        total: steps of this run.
        dist: the process group.

    Raises:
        UserError: a checkpoint of another variant or charset, a state with other options, nothing left to train.
    """
    if start is None:
        return "fresh start"
    path, content = start
    if is_state(content):
        refuse_changes(path, changed(content.get("options", {})), allow_changes)
        state.resume(content, dist)
        return f"resumed from {path} at step {state.step}"
    load_weights(unwrap(state.model), content, path)
    line = _published_progress(state, content, path)
    if state.step >= total:
        raise UserError(
            f"--num_iter: {path} is of step {state.step}, this run ends at {total}, so nothing is left to train; give "
            "more steps, or its weights without optimizer and step"
        )
    return line


def _published_progress(state: TrainingState, content: Any, path: str) -> str:
    """Optimizer and step of a published checkpoint, if it has them and they fit."""
    if not isinstance(content, dict) or "iteration" not in content:
        name = Path(path).stem
        if name.startswith("iter_") and name[5:].isdigit():  # T: iter_{n}.pth is the checkpoint after n steps
            state.step = int(name[5:])
        return f"weights from {path}; the optimizer starts fresh, at step {state.step}"
    try:
        if ("betas" in content["optimizer"]["param_groups"][0]) != ("betas" in state.optimizer.defaults):
            raise ValueError("it is of another kind")
        state.optimizer.load_state_dict(content["optimizer"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        return f"weights from {path}; its optimizer does not fit ({error}) and starts fresh at step 0"
    state.step = int(content["iteration"]) + 1  # the file counts from 0 and has the step just done
    return f"weights, optimizer and step {state.step} from {path}; random draws and data order start fresh"


# ---- logs


def start_logs(
    folder: Path, family: str, data: str, model: str, options: Mapping[str, Any], trained: int, warnings: Sequence[str]
) -> None:
    """What the logs hold before the first step: R, S everything in log_train.txt; T log_dataset.txt, opt.txt."""
    block = options_block(options)
    if family == "T":
        append(folder / "log_dataset.txt", f"{DASHES}\n{data}\n{DASHES}\n")
        append(folder / "opt.txt", f"{block}Trainable network params num : {trained:,}")
        append(folder / "log_train.txt", "".join(f"{line}\n" for line in warnings))
    else:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        line = f"Command line input: CUDA_VISIBLE_DEVICES={devices} python {shlex.join(sys.argv)}"
        append(folder / "log_train.txt", f"{line}\n{DASHES}\n{data}\n{DASHES}\n{model}\n{block}")


CONSOLE = ["loss", "share", "predmask", "correct", "low", "middle"]
CURVES_T = {  # the terms of which T's published curves show the sum; the event file has _ for blanks
    "loss_our": ("ours",),
    "loss_TRBA": ("trba",),
    "loss_glyph": ("glyph1", "glyph2"),
    "loss_Iter": ("iter1", "iter2"),
    "loss_final": ("share",),
    "Pred_mask_loss": ("predmask",),
    "Correct Location": ("correct",),
    "Segmention_loss": ("low", "middle"),
}


@dataclass
class RunLog:
    """What a run reports while it trains: console, metrics.jsonl, tensorboard and the published text files.

    Attributes:
        folder, family: of the run.
        state: its `extra` has the best accuracy and the sum of losses since the last evaluation.
        scalars, metrics: on rank 0; on the others every call does nothing.
        dist: the process group.
        batches: the training loader, which counts missing masks.
        pictures: T's pictures of a batch.
        data_ratio, print_interval, log_interval: as the flags.
        ten_sets: `--benchmark_all_eval`, which shows three curves in one, as published.
    """

    folder: Path
    family: str
    state: TrainingState
    scalars: ScalarWriter
    metrics: MetricsLog
    dist: Dist
    batches: WordLoader
    pictures: Callable[[Batch], Mapping[str, np.ndarray]]
    data_ratio: int
    print_interval: int
    log_interval: int
    ten_sets: bool
    meters: Meters = field(default_factory=Meters)
    started: float = field(default_factory=time.time)
    masks_missing: int = 0
    lr: float = 0.0

    def note(self, clock: Clock, done: Step) -> None:
        """Meters, console, metrics.jsonl and tensorboard after a step. The loop's `note`."""
        means, self.lr = done.means(), done.lr
        self.meters.add(**means)
        self.meters.count(done.images, done.waited)
        self.state.extra["loss_sum"] += float(means["loss"])
        self.state.extra["loss_count"] += 1
        if clock.step % self.print_interval == 0 or clock.done:
            print(self.meters.line(clock.step, clock.total, CONSOLE))
            self.metrics.write(
                step=clock.step,
                lr=done.lr,
                images_per_second=round(self.meters.throughput * self.dist.world_size, 2),
                data_wait=round(self.meters.data_wait, 2),
                **{name: round(value, 6) for name, value in self.meters.means().items()},
            )
        if (clock.step - 1) % self.log_interval == 0 and self.dist.is_main:
            self.curves(clock.step - 1, means, done)
        missing = self.batches.masks_missing
        if missing >= max(2 * self.masks_missing, 1):  # a line each time that the number has doubled
            self.masks_missing = missing
            print(
                f"masks: {missing} missing or unreadable by step {clock.step}, all-zero ones used; make them again "
                "with mask_create"
            )
            self.metrics.write(step=clock.step, event="masks", missing=missing)

    def curves(self, step: int, means: Mapping[str, Any], done: Step) -> None:
        """Tensorboard: `lr` (R, S) or T's list of losses and its pictures; every term of the loss below `loss/`."""
        self.scalars.scalar("lr", done.lr, step)
        for name, value in means.items():
            self.scalars.scalar(f"loss/{name}", value, step)
        if self.family == "T":
            for name, terms in CURVES_T.items():
                self.scalars.scalar(name, sum(means[term] for term in terms), step)
            if self.scalars.writer is not None:
                for name, picture in self.pictures(done.batches[0]).items():
                    self.scalars.image(name, picture, step)

    def record(self, clock: Clock, result: Evaluation) -> None:
        """An evaluation in text files, tensorboard, metrics.jsonl and on the console (rank 0)."""
        step, extra = clock.step - 1, self.state.extra
        if self.family == "T":
            mean, spent = extra["loss_sum"] / max(extra["loss_count"], 1), time.time() - self.started
            text = validation_block(clock.step, clock.total, self.lr, mean, spent, extra["best_accuracy"], result)
            append(self.folder / "log_train.txt", text)
            self.scalars.scalar("accuracy", result.best_accuracy, step)
            print(text, end="")
        else:
            ratio_iteration = step // self.data_ratio
            append(self.folder / "result" / "log_all_evaluation.txt", evaluation_log(ratio_iteration, result))
            if self.ten_sets:
                heads = {"Share_pred": result.accuracy, "language": 0.0, "final": 0.0}
                self.scalars.scalars("total_accuracy", heads, ratio_iteration)
            else:
                self.scalars.scalar("total_accuracy", result.accuracy, ratio_iteration)
            print(f"accuracy-->{result.accuracy:.3f}")
            print(f"Iteration:{ratio_iteration}->time:{time.time() - self.started}")
        self.scalars.flush()
        self.metrics.write(step=clock.step, event="evaluation", **as_row(result))

    def pause(self) -> None:
        """After an evaluation: the mean training loss and the throughput begin anew."""
        self.state.extra["loss_sum"], self.state.extra["loss_count"] = 0.0, 0
        self.meters.pause()


def evaluation_log(iteration: int, evaluation: Evaluation) -> str:
    """R's and S's block in result/log_all_evaluation.txt. Fields are separated by blanks, in the last line by tabs, and
    every line ends with one, as published; the heads `language` and `final` never existed."""

    def heads(value: float, separator: str) -> str:
        values = {"Share_pred": value, "language": 0.0, "final": 0.0}
        return "".join(f"{name}: {number:0.3f}{separator}" for name, number in values.items())

    rows = [f"dataset: {name} accuracy: {heads(result.accuracy, ' ')}" for name, result in evaluation.sets.items()]
    total = "total_accuracy: " + heads(evaluation.accuracy, "\t")
    return "\n".join([DASHES, f"iteration: {iteration} ", *rows, total, ""])


def validation_block(
    step: int, steps: int, lr: float, train_loss: float, seconds: float, best: float, result: Evaluation
) -> str:
    """T's block in log_train.txt: losses, five accuracies, the best one, five samples.

    The columns have the names of MGP-STR's granularities, as published.
    """
    names = ("char_accuracy", "bpe_accuracy", "wp_accuracy", "fused_accuracy", "out_accuracy")
    values = [result.heads.get(head, 0.0) for head in ("TRBA", "glyph", "Iter", "final", "out")]
    lines = [
        f"[{step}/{steps}] LR: {lr:0.5f}, Train loss: {train_loss:0.5f}, Valid loss: {result.loss:0.5f}, "
        f"Elapsed_time: {seconds:0.5f}",
        ", ".join(f"{name:17s}: {value:0.3f}" for name, value in zip(names, values)) + " ",
        f"{'Best_accuracy':17s}: {best:0.3f}",
    ]
    return "\n".join([*lines, sample_table(result.samples), ""])


# ---- checkpoints


def published_name(family: str, clock: Clock, data_ratio: int) -> str | None:
    """Name of the numbered checkpoint that is due now, None if none is.

    R and S: `{ratio_iteration}.pth` each 20 000, the first step's included, and the last; T: `iter_{n}.pth` each
    100 000 and the last.
    """
    done = clock.step
    if family == "T":
        return f"iter_{done}.pth" if done % 100_000 == 0 or clock.done else None
    ratio = (done - 1) // data_ratio
    due = ratio % 20_000 == 0 and (done - 1) % data_ratio == 0
    return f"{ratio}.pth" if due or clock.done else None


def save_weights(path: Path, state: TrainingState, step: int, card: tuple[str, Mapping[str, Any]], **more: Any) -> None:
    """Write a checkpoint in the paper's form and its metadata file, on rank 0.

    `net` has `module.` before its names, `iteration` counts from 0; `card`: registry name and build options; `more`:
    further entries of the metadata file, to which what the weights started from is added.
    """
    net = add_prefix(unwrap(state.model).state_dict())
    save_atomic(path, {"net": net, "optimizer": state.optimizer.state_dict(), "iteration": step - 1})
    origin = {name: state.extra[name] for name in ("start", "warnings")}
    write_card(path, *card, step=step, commit=git_commit(), **origin, **more)
