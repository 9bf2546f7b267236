"""What both scripts train with: loader, optimizer, precision, logs, states and published files of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.data.bad import FILE_NAME
from common.data.loader import epoch_loader
from common.data.words import WordDataset
from common.flags import Table
from common.models.weights import load_strict
from common.train.distributed import Dist, wrap
from common.train.jobs import EpochFiles, States, each_epoch, every
from common.train.log import EpochLog, MetricsLog, ScalarWriter
from common.train.loop import Clock, Engine, Job, Loop, Method, Step
from common.train.optim import Ema, Precision
from common.train.session import check_room, settle_amp, state_bytes
from common.train.state import TrainingState, share_bad
from projects.dig.files import state_of
from projects.dig.flags import RunOptions
from projects.dig.optim import build_optimizer, step_tables

STATE = "training_state.pth"
STOPPED = "stopped after saving its state; run the same command to resume"


class Run:
    """One training run of either script.

    Args:
        o: the options.
        values: every flag's value, for the published checkpoints and the state.
        table: of the script's flags: which of them may differ where the run resumes.
        model: on the run's device.
        groups: optimizer groups of its parameters.
        card: registry name and build options, written next to every checkpoint.
        accumulate: micro-batches of a step.
        ema: an averaged copy that is part of the state.
        wrapping: further arguments of `common.train.distributed.wrap`.
    """

    def __init__(
        self,
        o: RunOptions,
        values: dict[str, Any],
        table: Table,
        dist: Dist,
        dataset: WordDataset,
        model: nn.Module,
        groups: list[dict[str, Any]],
        *,
        card: tuple[str, dict[str, Any]],
        accumulate: int = 1,
        ema: Ema | None = None,
        **wrapping: Any,
    ) -> None:
        self.o, self.dist, self.accumulate, self.folder = o, dist, accumulate, Path(o.output_dir)
        self.loader, per_epoch = epoch_loader(
            dataset, o.batch_size, seed=o.seed, rank=dist.rank, world_size=dist.world_size, workers=o.num_workers,
            accumulate=accumulate, accumulate_flag="--update_freq", bad_share=o.bad_share,
            bad_list=self.folder / FILE_NAME if dist.is_main else None,
            pin_memory=o.pin_mem and dist.device.type == "cuda",
        )  # fmt: skip
        self.clock = Clock(o.epochs * per_epoch, per_epoch, stop_at=o.max_steps)

        images = o.batch_size * accumulate * dist.world_size
        peak = o.lr * images / 256
        self.lr, self.weight_decay = step_tables(
            peak, o.min_lr, o.weight_decay, o.weight_decay_end, o.epochs, per_epoch, (o.warmup_epochs, o.warmup_steps)
        )
        optimizer = build_optimizer(
            groups, o.opt, float(self.lr[0]), eps=o.opt_eps, betas=o.opt_betas, momentum=o.momentum
        )
        self.precision = Precision(settle_amp(o.amp, dist.device), dist.device)
        self.model = wrap(torch.compile(model) if o.compile else model, dist, **wrapping)
        self.engine = Engine(self.model, optimizer, self.precision, dist)

        self.console = EpochLog("", every=100, stamp=True, processes=dist.world_size)
        self.board = ScalarWriter(o.log_dir if dist.is_main else None)
        self.metrics = MetricsLog(None)
        parts = {"scaler": self.precision, "log": self.console} | ({} if ema is None else {"ema": ema})
        self.state = TrainingState(
            self.model, optimizer, parts, values, extra={"max_accuracy": 0.0, "per_epoch": per_epoch}
        )
        self.files = EpochFiles(
            self.folder, dist, self.clock, self.state, card,
            weights_of=lambda content, what: state_of(content, what=what),
            load_weights=lambda module, state, what: load_strict(module, state, what=what),
            bad=self.loader.bad,
        )  # fmt: skip
        self.states = States(self.state, self.folder, dist, self.loader.bad, STATE)
        with dist.failing_together():
            if dist.is_main:
                check_room(self.folder, 2 * state_bytes(model))

        def changed(before: Mapping[str, Any]) -> list[str]:
            return table.changed(before, values)

        self.files.resume(o.resume, o.auto_resume, o.start_epoch, changed, o.allow_changes)
        if dist.is_main:
            self.metrics = MetricsLog(self.folder / "metrics.jsonl", self.clock.step or None)
        print_plan(peak, images, per_epoch, len(dataset), getattr(o, "update_freq", 0))

    def loop(self, method: Method, jobs: list[Job], save: bool = True) -> Loop:
        """The loop with the jobs of the script, then those of the state: each epoch with `save`, and as often as
        `--state_steps` says."""

        def share(clock: Clock) -> None:
            share_bad(self.loader.bad, self.dist)

        states = [
            Job(every(self.o.state_steps, last=False), self.states),
            Job(each_epoch(), self.states if save else share),
        ]
        note = RunLog(self.console, self.board, self.engine, self.metrics)
        return Loop(
            method, self.clock, self.loader, self.engine, self.o.clip_grad, self.accumulate, note, [*jobs, *states],
            leave=self.states, folder=self.folder,
        )  # fmt: skip

    def averages(self) -> dict[str, float]:
        """`train_<meter>` of the epoch that has just ended, means over all ranks. Collective."""
        return {f"train_{name}": value for name, value in self.console.averages(self.dist).items()}

    def note_epoch(self, entry: dict[str, Any]) -> None:
        """One line of log.txt for the epoch that has just ended."""
        self.board.flush()
        self.files.line(self.clock.epoch - 1, entry)


def print_plan(lr: float, images: int, per_epoch: int, samples: int, update_freq: int = 0) -> None:
    """The published lines that say how much a step and an epoch are; `update_freq` above 0: those of fine-tuning."""
    print(f"LR = {lr:.8f}")
    print(f"Batch size = {images}")
    if update_freq:
        print(f"Update frequent = {update_freq}")
        print(f"Number of training examples = {samples}")
        print(f"Number of training training per epoch = {per_epoch}")
    else:
        print(f"Number of training steps = {per_epoch}")
        print(f"Number of training examples per epoch = {images * per_epoch}")


@dataclass
class RunLog:
    """A `Loop`'s `note`: after each step console meters, TensorBoard scalars and a line of metrics.jsonl."""

    console: EpochLog
    board: ScalarWriter
    engine: Engine
    metrics: MetricsLog

    def __call__(self, clock: Clock, done: Step) -> None:
        """Meters in the published order. The scalars count steps from 0, metrics.jsonl from 1."""
        groups = self.engine.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        decays = [group["weight_decay"] for group in groups if group["weight_decay"] > 0]
        rates = {"lr": max(rates), "min_lr": min(rates)}
        losses = done.means()
        others = {
            "loss_scale": self.engine.precision.scaler.get_scale(),
            "weight_decay": decays[-1] if decays else 0.0,
            "grad_norm": done.norm,
        }
        self.console.step(clock, done, rates, losses, others)
        for name, value in {**losses, **rates, **others}.items():
            if name in ("loss", "class_acc"):
                self.board.scalar(f"loss/{name}", value, clock.step - 1)
            elif name in rates or name in others:
                self.board.scalar(f"opt/{name}", value, clock.step - 1)
        if clock.step == 1 or clock.step % 10 == 0:
            meters, epoch = self.console.meters, (clock.step - 1) // clock.per_epoch
            speed = {"images_per_second": meters.throughput, "data_wait": meters.data_wait}
            self.metrics.write(step=clock.step, epoch=epoch, **speed, **losses, lr=rates["lr"])
