"""What a training does between its steps: evaluate, keep the best, write published checkpoints and training states;
and `EpochRun`, the parts of a run that counts in epochs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from common.data.bad import BadSamples
from common.data.loader import WordLoader
from common.errors import UserError
from common.models.weights import load_strict
from common.train.checkpoint import (
    clear_unfinished,
    first_readable,
    load,
    numbered_checkpoints,
    save_atomic,
    write_card,
)
from common.train.distributed import Dist, unwrap, wrap
from common.train.log import EpochLog, MetricsLog, ScalarWriter, append, continue_on_full_disk, truncate_log
from common.train.loop import Clock, Engine, Job, Loop, Method, Step
from common.train.optim import Precision
from common.train.session import check_room, settle_amp, state_bytes
from common.train.state import Stateful, TrainingState, is_state, plain, refuse_changes, save_state, share_bad

Result = TypeVar("Result")


def every(steps: int, last: bool = True, first: bool = False) -> Callable[[Clock], bool]:
    """Due after each `steps` steps (0: never), and after the last and the first one where that is asked for."""

    def due(clock: Clock) -> bool:
        return bool(steps and clock.step % steps == 0) or (last and clock.done) or (first and clock.step == 1)

    return due


def each_epoch(epochs: int = 1, last: bool = True) -> Callable[[Clock], bool]:
    """Due at the end of each `epochs` epochs, and after the last step where that is asked for. The epoch that has just
    ended is `clock.epoch - 1`."""

    def due(clock: Clock) -> bool:
        ended = clock.inside == 0 and clock.epoch % epochs == 0
        return ended or (last and clock.done)

    return due


def save_published(
    path: Path, content: Callable[[], Any], dist: Dist, card: tuple[str, Mapping[str, Any]], **extra: Any
) -> None:
    """Write a checkpoint in the published form and its metadata file next to it. Collective; rank 0 writes.

    Args:
        path: under its published name.
        content: makes what is stored; called on rank 0 alone.
        dist: the process group.
        card: registry name and build options, so that the shared tools can open the file.
        extra: further entries of the metadata file (step, accuracy, commit).

    Raises:
        DiskFull, UserError: on all ranks, where rank 0 cannot write.
    """
    with dist.failing_together():
        if dist.is_main:
            save_atomic(path, content())
            write_card(path, card[0], card[1], **extra)


@dataclass
class States:
    """Writes the training states of a run, together with the list of bad samples of all ranks. A `Job`'s `do`.

    Attributes:
        state: everything an exact continuation needs; its `step` follows the clock.
        folder: of the run.
        name: of the file; `{step:09d}` in it gives each step a file of its own.
        keep: numbered states that stay; 0: all.
        on_full: "stop", or "continue" without a state where the disk is full.
    """

    state: TrainingState
    folder: Path
    dist: Dist
    bad: BadSamples
    name: str = "training_state-{step:09d}.pth"
    keep: int = 2
    on_full: str = "stop"
    written: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        continue_on_full_disk(self.on_full == "continue")

    def __call__(self, clock: Clock) -> None:
        """Write the state of the clock's step, once. Collective."""
        if self.written == clock.step:
            return
        share_bad(self.bad, self.dist)
        self.state.step = self.written = clock.step
        save_state(self.state, self.folder, self.dist, self.keep, self.on_full, self.name)


@dataclass
class Evaluate(Generic[Result]):
    """Measure the model, keep the best checkpoint, write the logs. A `Job`'s `do`.

    Attributes:
        measure: evaluates the model. Collective.
        accuracy: the figure of a result that decides what is best.
        state: its `extra[best_key]` holds the best figure so far.
        keep_best: writes the checkpoint of a strictly better result; on rank 0.
        record: writes console lines and logs of (clock, result); on rank 0, after the checkpoint.
        bad: unreadable training samples of all ranks are put together at this point.
    """

    measure: Callable[[], Result]
    accuracy: Callable[[Result], float]
    state: TrainingState
    dist: Dist
    keep_best: Callable[[Clock, Result], object]
    record: Callable[[Clock, Result], object]
    bad: BadSamples | None = None
    best_key: str = "best_accuracy"

    def __call__(self, clock: Clock) -> Result:
        """Evaluate now. Collective."""
        if self.bad is not None:
            share_bad(self.bad, self.dist)
        result = self.measure()
        best = self.state.extra[self.best_key]
        better = self.dist.broadcast(self.accuracy(result) > best if self.dist.is_main else None)
        if better:
            self.state.extra[self.best_key] = self.dist.broadcast(self.accuracy(result) if self.dist.is_main else None)
        with self.dist.failing_together():
            if self.dist.is_main:
                if better:
                    self.keep_best(clock, result)
                self.record(clock, result)
        return result


@dataclass
class EpochFiles:
    """Files of a run that counts in epochs as BEiT and MAE do: `checkpoint-<epoch>.pth`, `log.txt`, the exact state.

    Attributes:
        folder: `--output_dir`.
        clock, state: of the run.
        card: registry name and build options, for the metadata file next to every checkpoint.
        weights_of: (content of a checkpoint, its name) -> the model's tensors, in any published spelling.
        bad: the list of unreadable samples, which a resumed run continues.
        last_state: name of the exact state.
    """

    folder: Path
    dist: Dist
    clock: Clock
    state: TrainingState
    card: tuple[str, Mapping[str, Any]]
    weights_of: Callable[[Any, str], dict[str, Tensor]]
    bad: BadSamples
    last_state: str = "training_state.pth"

    def published_form(self, epoch: int | str) -> dict[str, Any]:
        """What the published code stores."""
        state, parts = self.state, self.state.parts
        form = {
            "model": unwrap(state.model).state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "epoch": epoch,
            "scaler": parts["scaler"].state_dict(),
            "args": argparse.Namespace(**plain(state.options)),
        }
        if "ema" in parts:
            form["model_ema"] = parts["ema"].state_dict()["values"]
        return form

    def checkpoint(self, name: str, epoch: int | str) -> None:
        """Write `checkpoint-<name>.pth`. Collective."""
        with self.dist.failing_together():
            if self.dist.is_main:
                self.write(name, epoch)

    def write(self, name: str, epoch: int | str) -> None:
        """Write `checkpoint-<name>.pth` and its metadata file, on rank 0 alone (for `Evaluate.keep_best`)."""
        path = self.folder / f"checkpoint-{name}.pth"
        save_atomic(path, self.published_form(epoch))
        write_card(path, self.card[0], self.card[1], step=self.clock.step)

    def line(self, epoch: int, entry: Mapping[str, Any]) -> None:
        """One line of log.txt, on rank 0."""
        if self.dist.is_main:
            append(self.folder / "log.txt", json.dumps({**plain(entry), "epoch": epoch}) + "\n")

    def resume(
        self,
        file: str,
        auto: bool,
        start_epoch: int = 0,
        changed: Callable[[Mapping[str, Any]], list[str]] = lambda before: [],
        allow_changes: bool = False,
    ) -> None:
        """Continue from `file`, or from what is in the folder with `auto`, or start at `start_epoch`.

        Args:
            changed: options of a state -> what differs now and decides the result (`Table.changed`).
            allow_changes: print these instead of refusing them (`--allow_changes`).

        Raises:
            UserError: the file does not fit the run, or options differ; no file of a folder that has some can be read.
        """
        clock = self.clock
        clock.step = start_epoch * clock.per_epoch
        found = (Path(file), load(file)) if file else None
        if found is None and auto:
            if self.dist.is_main:
                clear_unfinished(self.folder)
            found = first_readable([self.folder / self.last_state, *numbered_checkpoints(self.folder)])
        if found is not None:
            path, content = found
            if is_state(content):
                refuse_changes(path, changed(content["options"]), allow_changes)
                self._from_state(path, content)
            else:
                self._from_checkpoint(path, content)
            if clock.step:
                self.bad.recall()
            print(f"Resume from {path}: epoch {clock.epoch}, step {clock.inside} of {clock.per_epoch}", flush=True)
        if self.dist.is_main:
            truncate_log(self.folder / "log.txt", clock.epoch)

    def _from_state(self, path: Path, content: dict[str, Any]) -> None:
        """Exactly: weights, optimizer, scaler, averages, random draws and position in the epoch."""
        per_epoch = content["extra"].get("per_epoch")
        if per_epoch != self.clock.per_epoch:
            raise UserError(
                f"{path}: steps of an epoch were {per_epoch}, now they are {self.clock.per_epoch}; give the "
                "data, batch size and processes of that run, or --resume one of its checkpoints"
            )
        self.clock.step = self.state.resume(content, self.dist).step

    def _from_checkpoint(self, path: Path, content: Any) -> None:
        """From the end of an epoch: weights, optimizer, scaler and averages (random draws start fresh)."""
        state = self.state
        load_strict(unwrap(state.model), self.weights_of(content, str(path)), what=str(path))
        if "optimizer" in content and isinstance(content.get("epoch"), int):
            try:
                state.optimizer.load_state_dict(content["optimizer"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: optimizer: it does not fit this model's groups ({error}); to start a new run from these "
                    "weights use --finetune, or give the options of the run"
                ) from None
            self.clock.step = (content["epoch"] + 1) * self.clock.per_epoch
            state.parts["scaler"].load_state_dict(content.get("scaler") or {})
        ema = state.parts.get("ema")
        if ema is not None and "model_ema" in content:
            ema.load_state_dict({**ema.state_dict(), "values": content["model_ema"]})


class EpochOptions(Protocol):
    """What `EpochRun` reads of a script's options; the flags of the same names describe the fields."""

    output_dir: str
    log_dir: str | None
    epochs: int
    resume: str
    auto_resume: bool
    allow_changes: bool
    start_epoch: int
    state_steps: int
    max_steps: int
    amp: str
    compile: bool


class EpochRun:
    """A run that counts in epochs: model and optimizer of all processes, its files, and where it resumes.

    Args:
        o: the options.
        values: of all flags, for the published checkpoints and the state.
        changed: options of a state -> what differs now and decides the result (`Table.changed`).
        loader, per_epoch: what `common.data.loader.epoch_loader` returns.
        model: on the run's device; it is compiled and wrapped here.
        optimizer: over its parameters.
        log: the meters of the console.
        card, weights_of: see `EpochFiles`.
        parts, extra, data: of the state, in addition to those that every run has.
        wrapping: further arguments of `common.train.distributed.wrap`.

    Raises:
        UserError: no room on the disk; what is to be resumed cannot be read or does not fit.
    """

    def __init__(
        self,
        o: EpochOptions,
        values: Mapping[str, Any],
        changed: Callable[[Mapping[str, Any]], list[str]],
        dist: Dist,
        loader: WordLoader,
        per_epoch: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        log: EpochLog,
        card: tuple[str, Mapping[str, Any]],
        weights_of: Callable[[Any, str], dict[str, Tensor]],
        *,
        parts: Mapping[str, Stateful] | None = None,
        extra: Mapping[str, Any] | None = None,
        data: str = "",
        **wrapping: Any,
    ) -> None:
        self.dist, self.folder, self.loader, self.log = dist, Path(o.output_dir), loader, log
        self.clock, self.state_steps = Clock(o.epochs * per_epoch, per_epoch, stop_at=o.max_steps), o.state_steps
        self.precision = Precision(settle_amp(o.amp, dist.device), dist.device)
        self.model = wrap(torch.compile(model) if o.compile else model, dist, **wrapping)
        self.engine = Engine(self.model, optimizer, self.precision, dist)
        self.state = TrainingState(
            self.model, optimizer, {"scaler": self.precision, "log": log, **(parts or {})}, dict(values),
            extra={**(extra or {}), "per_epoch": per_epoch}, data=data,
        )  # fmt: skip
        self.files = EpochFiles(self.folder, dist, self.clock, self.state, card, weights_of, loader.bad)
        self.states = States(self.state, self.folder, dist, loader.bad, self.files.last_state)
        with dist.failing_together():
            if dist.is_main:
                check_room(self.folder, 2 * state_bytes(model))
        self.files.resume(o.resume, o.auto_resume, o.start_epoch, changed, o.allow_changes)
        # opened last: a resumed run cuts its logs back to the step at which it resumes
        self.board = ScalarWriter(o.log_dir if dist.is_main else None)
        self.metrics = MetricsLog(self.folder / "metrics.jsonl" if dist.is_main else None, self.clock.step or None)

    def loop(
        self,
        method: Method,
        note: Callable[[Clock, Step], None],
        jobs: list[Job],
        *,
        max_norm: float | None = None,
        accumulate: int = 1,
        save: bool = True,
    ) -> Loop:
        """The loop with the script's jobs, and after them the state: as often as `--state_steps` says and, with `save`,
        after each epoch. See `Loop` for the arguments."""
        regular = Job(every(self.state_steps, last=False), self.states)
        ended = Job(each_epoch(), self.states if save else lambda clock: share_bad(self.loader.bad, self.dist))
        return Loop(
            method, self.clock, self.loader, self.engine, max_norm, accumulate, note, [*jobs, regular, ended],
            leave=self.states, folder=self.folder,
        )  # fmt: skip

    def averages(self) -> dict[str, float]:
        """`train_<meter>` of the epoch that has just ended, means over all ranks. Collective."""
        return {f"train_{name}": value for name, value in self.log.averages(self.dist).items()}

    def end_epoch(self, entry: Mapping[str, Any]) -> None:
        """Write the line of log.txt for the epoch that has just ended."""
        self.files.line(self.clock.epoch - 1, entry)
        self.board.flush()
