"""What `sim_pretrain.py` and `main_pixel.py` share: loader, optimizer, loop, files and meters of a run."""

from __future__ import annotations

import builtins
import contextlib
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.bad import FILE_NAME
from common.data.loader import epoch_loader
from common.data.words import WordDataset
from common.models.weights import load_strict
from common.train.distributed import Dist, wrap
from common.train.jobs import EpochFiles, States, each_epoch, every
from common.train.log import EpochLog, MetricsLog, ScalarWriter
from common.train.loop import Clock, Engine, Job, Loop, Method, Step
from common.train.optim import Precision, build_optimizer, parameter_groups
from common.train.schedule import warmup_cosine
from common.train.session import check_room, settle_amp, state_bytes
from common.train.state import TrainingState
from projects.ssm.pretrain.flags import TABLE, RunOptions
from projects.ssm.weights import tensors_of


@dataclass
class Time:
    """Where a step is in the run, as the published schedules count: epoch + batch / batches of an epoch."""

    per_epoch: int
    accumulate: int
    batches: int

    def __call__(self, step: int) -> float:
        """Fractional epoch at which step `step` begins; `batches` counts those that fill no step too."""
        epoch, place = divmod(step, self.per_epoch)
        return epoch + place * self.accumulate / self.batches


@dataclass
class Rates:
    """Learning rate of every step: a linear warm-up and a cosine over fractional epochs; weight decay stays."""

    lr: float
    min_lr: float
    epochs: int
    warmup_epochs: int
    time: Time

    def __post_init__(self) -> None:
        self.curve = warmup_cosine(self.lr, self.epochs, self.warmup_epochs, self.min_lr)

    def __call__(self, step: int) -> tuple[float, None]:
        """(learning rate, no change of the weight decay) of a step."""
        return float(self.curve(self.time(step))), None


@dataclass
class Run:
    """A run that is ready to start: the loop, and what is written at the end of each epoch."""

    loop: Loop
    files: EpochFiles
    log: EpochLog
    metrics: MetricsLog
    board: ScalarWriter
    dist: Dist

    def note(self, clock: Clock, done: Step) -> None:
        """Meters, which take every micro-batch; TensorBoard and metrics.jsonl take the mean of a step's."""
        rows = []
        for parts in done.parts:
            rows.append({"lr": done.lr, **parts})
            if "mm" in parts:
                rows.append({"loss": parts["loss"]})  # the published loop updates this meter twice
        self.log.step(clock, done, *rows)
        shown = {"lr": done.lr, **done.means(), "grad_norm": done.norm}
        if (clock.step - 1) % 20 == 0:
            for name, value in shown.items():
                self.board.scalar(name, value, clock.step - 1)
        if clock.step == 1 or clock.step % 20 == 0:
            meters, epoch = self.log.meters, (clock.step - 1) // clock.per_epoch
            speed = {"images_per_second": meters.throughput, "data_wait": meters.data_wait}
            self.metrics.write(step=clock.step, epoch=epoch, **speed, **shown)

    def end_epoch(self, clock: Clock, more: Callable[[int], dict[str, float]] = lambda epoch: {}) -> None:
        """Averages of the epoch, its checkpoint, further figures, and its line of log.txt. Collective."""
        epoch = clock.epoch - 1
        averages = self.log.averages(self.dist)
        self.files.checkpoint(str(epoch), epoch)
        figures = more(epoch)
        self.files.line(epoch, {f"train_{name}": value for name, value in averages.items()} | figures)
        self.board.flush()


def build_run(
    o: RunOptions,
    dist: Dist,
    model: nn.Module,
    dataset: WordDataset,
    card: tuple[str, dict[str, Any]],
    method: Callable[[nn.Module, Rates, Precision], Method],
    variant: str,
) -> Run:
    """Everything of a run, resumed where there is something to resume.

    Args:
        model: on its device.
        card: registry name and build options, for the checkpoints' metadata files.
        method: (wrapped model, rates, precision) -> the method.
        variant: of the flags' table.
    """
    out = Path(o.output_dir)
    loader, per_epoch = epoch_loader(
        dataset, o.batch_size, seed=o.seed, rank=dist.rank, world_size=dist.world_size, workers=o.num_workers,
        accumulate=o.accum_iter, accumulate_flag="--accum_iter", bad_share=o.bad_share,
        bad_list=out / FILE_NAME if dist.is_main else None, pin_memory=o.pin_mem and dist.device.type == "cuda",
    )  # fmt: skip
    if o.debug:
        per_epoch = min(per_epoch, 50)
    clock = Clock(o.epochs * per_epoch, per_epoch, stop_at=o.max_steps)
    rates = Rates(o.lr, o.min_lr, o.epochs, o.warmup_epochs, Time(per_epoch, o.accum_iter, len(loader)))
    precision = Precision(settle_amp(o.amp, dist.device), dist.device)
    groups = parameter_groups(model.named_parameters(), o.weight_decay)
    optimizer = build_optimizer("adamw", groups, rates(0)[0], betas=(0.9, 0.95), eps=1e-8)
    wrapped = wrap(torch.compile(model) if o.compile else model, dist)
    log = EpochLog("", every=20, recent="median", last_value=("lr",), processes=dist.world_size)
    parts = {"scaler": precision, "log": log}
    extra = {"per_epoch": per_epoch}
    data = getattr(dataset, "fingerprint", "")
    state = TrainingState(wrapped, optimizer, parts, dict(o.parsed), extra=extra, data=data)
    with dist.failing_together():
        if dist.is_main:
            check_room(out, 2 * state_bytes(model))
    files = EpochFiles(out, dist, clock, state, card, tensors_of, load, loader.bad)
    files.resume(o.resume, o.auto_resume, o.start_epoch, lambda before: TABLE.changed(before, o.parsed, variant),
                 o.allow_changes)  # fmt: skip
    engine = Engine(wrapped, optimizer, precision, dist)
    # --clip_grad has no effect, as published
    loop = Loop(method(wrapped, rates, precision), clock, loader, engine, accumulate=o.accum_iter, folder=out)
    metrics = MetricsLog(out / "metrics.jsonl" if dist.is_main else None, clock.step or None)
    run = Run(loop, files, log, metrics, ScalarWriter(o.log_dir if dist.is_main else None), dist)
    states = States(state, out, dist, loader.bad, name=files.last_state)
    loop.note, loop.leave = run.note, states
    ended, regular = each_epoch(), every(o.state_steps, last=False)
    loop.jobs = [Job(ended, run.end_epoch), Job(lambda clock: ended(clock) or regular(clock), states)]
    wrapped.train()
    return run


def load(model: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Put the tensors of a checkpoint into the model. Raises `UserError` unless all fit."""
    load_strict(model, tensors, what=what)


@contextlib.contextmanager
def timed_lines() -> Iterator[None]:
    """Begin every printed line with `[HH:MM:SS.ffffff] `, as the published scripts do."""
    before = builtins.print

    def timed(*words: object, **options: object) -> None:
        before(f"[{datetime.datetime.now().time()}]", *words, **options)

    builtins.print = timed
    try:
        yield
    finally:
        builtins.print = before
