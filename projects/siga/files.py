"""Files of a run under their published names: where it starts, checkpoints, text logs and curves."""

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
import torch
from torch import nn

from common.data.loader import Batch, WordLoader
from common.errors import UserError
from common.models.pretrained import DEIT_BASE, load_encoder, start_from
from common.models.weights import ClassAxis, load_by_character, unwrapped
from common.text.charset import CHARSET_36, CHARSET_94, SIGA_36, SIGA_94
from common.train.checkpoint import git_commit, load, read_card, save_atomic, write_card
from common.train.distributed import Dist, unwrap
from common.train.log import DASHES, Meters, MetricsLog, ScalarWriter, append, options_block, sample_table
from common.train.loop import Clock, Step
from common.train.state import TrainingState, is_state, newest_state, refuse_changes
from projects.siga.evaluate import Evaluation, as_row
from projects.siga.model.base import SigaModel
from projects.siga.model.build import load_tps, load_weights, weights_in
from projects.siga.model.variants import Variant

CONSOLE = ["loss", "share", "predmask", "correct", "low", "middle"]
PUBLISHED_T = {  # the terms of which T's curves show the sum; the event file has _ for blanks
    "loss_our": ("ours",),
    "loss_TRBA": ("trba",),
    "loss_glyph": ("glyph1", "glyph2"),
    "loss_Iter": ("iter1", "iter2"),
    "loss_final": ("share",),
    "Pred_mask_loss": ("predmask",),
    "Correct Location": ("correct",),
    "Segmention_loss": ("low", "middle"),
}


# ---- names and content


def run_folder(name: str | None, variant: Variant, seed: int, root: Path) -> Path:
    """`{root}/{exp_name}`; without a name Seed{seed}-{model} (R, S) or {model} (T, which always adds -Seed{seed})."""
    if variant.family == "T":
        return root / f"{name or variant.name}-Seed{seed}"
    return root / (name or f"Seed{seed}-{variant.name}")


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


def published_content(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """A checkpoint as the paper's: `net` with `module.` before its names, `optimizer`, `iteration` (from 0)."""
    net = {f"module.{name}": value for name, value in unwrap(model).state_dict().items()}
    return {"net": net, "optimizer": optimizer.state_dict(), "iteration": step - 1}


@dataclass
class Weights:
    """Writes checkpoints in the published form, each with its metadata file. Called on rank 0.

    Attributes:
        folder: of the run.
        state: of the run; its `extra` has what the weights started from.
        card: registry name and build options.
    """

    folder: Path
    state: TrainingState
    card: tuple[str, Mapping[str, Any]]

    def __call__(self, name: str, clock: Clock, **extra: Any) -> None:
        """Write the weights of the clock's step."""
        state = self.state
        content = published_content(state.model, state.optimizer, clock.step)
        origin = {name: state.extra[name] for name in ("start", "warnings")}
        save_atomic(self.folder / name, content)
        write_card(self.folder / name, *self.card, step=clock.step, commit=git_commit(), **origin, **extra)


# ---- where a run starts


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


def starting_weights(
    model: SigaModel,
    tps: str,
    pretrained: str,
    download: bool,
    start: tuple[str, Any] | None = None,
    init: str = "",
    character: str = "",
) -> tuple[list[str], list[str]]:
    """Load `--init`, `--tps` and `--pretrained` into a fresh model and settle whether its rectification is trained.

    `start`: path and content of the checkpoint or training state that the run continues from; `character`: of the
    model. Returns lines for the log, and warnings.

    Raises:
        UserError: a file that does not fit, or a flag that this variant has no use for.
    """
    lines, warnings, variant = [], [], model.settings
    if init and start is None:
        start = (init, load(init))
        lines.append(initialise(model, *start, character))
    if tps == "auto":  # the published code loads ./TPS.pth into a fresh model
        here = start is None and variant.has_tps and variant.published and Path("TPS.pth").is_file()
        tps = "TPS.pth" if here else ""
    if tps not in ("", "none") and variant.family != "T":
        if not variant.has_tps:
            raise UserError(f"--tps: {variant.name} has no rectification; leave the flag out")
        load_tps(model, load(tps), what=tps)
        lines.append(f"TPS: weights from {tps}, frozen")
    elif variant.has_tps:
        lines.append(settle_tps(model, start))
    if variant.family != "T":
        if pretrained:
            raise UserError(f"--pretrained: {variant.name} is trained from scratch; only T starts from a ViT")
    elif start is None:
        begin = start_from(DEIT_BASE if variant.published else None, pretrained, download)
        loaded = f" ({load_encoder(model.mgp_str, load(begin.path), str(begin.path))})" if begin.path else ""
        lines.append(begin.line + loaded)
        warnings += [begin.warning] if begin.warning else []
    return lines, warnings


def initialise(model: SigaModel, path: str, content: Any, character: str) -> str:
    """`--init`: the weights of another run, perhaps of another charset or word length, as far as they fit.

    Rows of the classifiers and embeddings move to the index that their character has here, glyph channels stay at
    their position; a table of what is kept, new and dropped is printed. Returns a line for the log.

    Raises:
        UserError: the backbone does not fit, or the file's characters are not known.
    """
    tensors, t, own = weights_in(content, path), model.settings.family == "T", model.state_dict()
    special = ["[GO]", "[s]"] if t else ["[end]"]
    rows = {name: len(value) for name, value in unwrapped(tensors, own).items() if value.ndim}
    classes = next((count for name, count in rows.items() if name.endswith("generator.generator.weight")), 0)
    options = content.get("options") or read_card(Path(path)).get("options") or {}  # of a state, or next to the file
    published = (CHARSET_36, CHARSET_94) if t else (SIGA_36, SIGA_94)
    before = options.get("character") or next((c for c in published if len(c) + len(special) == classes), None)
    if before is None:
        raise UserError(
            f"--init {path}: which {max(classes - len(special), 0)} characters it reads is not known; put its metadata "
            f"file {Path(path).name}.json next to it"
        )
    theirs, ours = [*special, *before], [*special, *character]
    axes = [
        ClassAxis("*generator.weight", 0, theirs, ours),
        ClassAxis("*generator.bias", 0, theirs, ours),
        # the last row is R's and S's start symbol; T has it, too, without using it
        ClassAxis("*char_embeddings.weight", 0, [*theirs, "[start]"], [*ours, "[start]"]),
    ]
    for name in own:
        if "cls_Head_" in name and name in rows:  # channels: background and one for each position in the word
            positions = ([f"position {index}" for index in range(count)] for count in (rows[name], len(own[name])))
            axes.append(ClassAxis(name, 0, *positions))

    def needed(name: str) -> bool:
        backbone = ("FeatureExtraction." in name and "pos_embed" not in name) or ".blocks." in name
        return backbone or ".patch_embed." in name

    def without_constants(name: str) -> str | None:
        return None if "crossentropy.weight" in name else name  # S's class weights are the model's own

    report = load_by_character(model, tensors, axes, without_constants, required=needed, what=f"--init {path}")
    return f"start: {len(report.kept)} tensors of {path}, at step 0"


def settle_tps(model: SigaModel, start: tuple[str, Any] | None) -> str:
    """Train the rectification or freeze it, as the run did that is continued; returns a line for the log.

    Published optimizers do not have the TPS; those written here have it where it was trained. A file without an
    optimizer has trained weights for it, which stay as they are, as published.
    """
    if start is None:
        return "TPS: no weights given (--tps), so the rectification is trained with the rest"
    path, content = start
    try:
        optimized = sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    except (KeyError, TypeError, IndexError):
        optimized = 0
    trained = optimized == len(list(model.parameters()))
    model.freeze_tps(not trained)
    return f"TPS: weights from {path}, " + ("trained on, as there" if trained else "frozen")


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
    told = _published_progress(state, content, path)
    if state.step >= total:
        raise UserError(
            f"--num_iter: {path} is of step {state.step}, this run ends at {total}, so nothing is left to train; give "
            "more steps, or its weights without optimizer and step"
        )
    return told


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
    state.step = int(content["iteration"]) + 1
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

    def step(self, clock: Clock, done: Step) -> None:
        """Meters, console, metrics.jsonl and tensorboard after a step. The loop's `note`."""
        parts, self.lr = done.means(), done.lr
        self.meters.add(**parts)
        self.meters.count(done.images, done.waited)
        self.state.extra["loss_sum"] += float(parts["loss"])
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
            self.curves(clock.step - 1, parts, done)
        missing = self.batches.masks_missing
        if missing >= max(2 * self.masks_missing, 1):  # a line each time that the number has doubled
            self.masks_missing = missing
            print(
                f"masks: {missing} missing or unreadable by step {clock.step}, all-zero ones used; make them again "
                "with mask_create"
            )
            self.metrics.write(step=clock.step, event="masks", missing=missing)

    def curves(self, step: int, parts: Mapping[str, Any], done: Step) -> None:
        """Tensorboard: `lr` (R, S) or T's list of losses and its pictures; every term of the loss below `loss/`."""
        self.scalars.scalar("lr", done.lr, step)
        for name, value in parts.items():
            self.scalars.scalar(f"loss/{name}", value, step)
        if self.family == "T":
            for name, terms in PUBLISHED_T.items():
                self.scalars.scalar(name, sum(parts[term] for term in terms), step)
            if self.scalars.writer is not None:
                for name, picture in self.pictures(done.batches[0]).items():
                    self.scalars.image(name, picture, step)

    def evaluation(self, clock: Clock, result: Evaluation) -> None:
        """An evaluation in text files, tensorboard, metrics.jsonl and on the console (rank 0)."""
        step, extra = clock.step - 1, self.state.extra
        if self.family == "T":
            train_loss = extra["loss_sum"] / max(extra["loss_count"], 1)
            spent = time.time() - self.started
            text = evaluation_t(clock.step, clock.total, self.lr, train_loss, spent, extra["best_accuracy"], result)
            append(self.folder / "log_train.txt", text)
            self.scalars.scalar("accuracy", result.best_accuracy, step)
            print(text, end="")
        else:
            ratio_iteration = step // self.data_ratio
            append(self.folder / "result" / "log_all_evaluation.txt", evaluation_rs(ratio_iteration, result))
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
