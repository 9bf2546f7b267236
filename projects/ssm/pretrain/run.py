"""What `sim_pretrain.py` and `main_pixel.py` share: batches, rates and optimizer of a run, and what a step logs."""

from __future__ import annotations

import builtins
import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common.data.bad import FILE_NAME
from common.data.loader import epoch_loader
from common.data.words import WordDataset
from common.train.distributed import Dist
from common.train.jobs import EpochRun
from common.train.log import EpochLog
from common.train.loop import Clock, Step
from common.train.optim import build_optimizer, parameter_groups
from common.train.schedule import warmup_cosine
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


def build_run(
    o: RunOptions, dist: Dist, model: nn.Module, dataset: WordDataset, card: tuple[str, dict[str, Any]], variant: str
) -> tuple[EpochRun, Rates]:
    """The run of either script, resumed where there is something to resume, and its learning rates.

    Args:
        model: on its device.
        card: registry name and build options, for the checkpoints' metadata files.
        variant: of the flags' table.
    """
    loader, per_epoch = epoch_loader(
        dataset, o.batch_size, seed=o.seed, rank=dist.rank, world_size=dist.world_size, workers=o.num_workers,
        accumulate=o.accum_iter, accumulate_flag="--accum_iter", bad_share=o.bad_share,
        bad_list=Path(o.output_dir) / FILE_NAME if dist.is_main else None,
        pin_memory=o.pin_mem and dist.device.type == "cuda",
    )  # fmt: skip
    if o.debug:
        per_epoch = min(per_epoch, 50)
    rates = Rates(o.lr, o.min_lr, o.epochs, o.warmup_epochs, Time(per_epoch, o.accum_iter, len(loader)))
    groups = parameter_groups(model.named_parameters(), o.weight_decay)
    optimizer = build_optimizer("adamw", groups, rates(0)[0], betas=(0.9, 0.95), eps=1e-8)
    log = EpochLog("", every=20, recent="median", last_value=("lr",), processes=dist.world_size)
    changed = partial(TABLE.changed, now=o.parsed, variant=variant)
    run = EpochRun(
        o, o.parsed, changed, dist, loader, per_epoch, model, optimizer, log, card, tensors_of,
        data=getattr(dataset, "fingerprint", ""),
    )  # fmt: skip
    run.model.train()
    return run, rates


def log_step(run: EpochRun, clock: Clock, done: Step) -> None:
    """The console's meters take every micro-batch; TensorBoard and metrics.jsonl take the mean of a step's."""
    rows = []
    for parts in done.parts:
        rows.append({"lr": done.lr, **parts})
        if "mm" in parts:
            rows.append({"loss": parts["loss"]})  # the published loop updates this meter twice
    run.log.step(clock, done, *rows)
    shown = {"lr": done.lr, **done.means(), "grad_norm": done.norm}
    if (clock.step - 1) % 20 == 0:
        for name, value in shown.items():
            run.board.scalar(name, value, clock.step - 1)
    if clock.step == 1 or clock.step % 20 == 0:
        meters, epoch = run.log.meters, (clock.step - 1) // clock.per_epoch
        speed = {"images_per_second": meters.throughput, "data_wait": meters.data_wait}
        run.metrics.write(step=clock.step, epoch=epoch, **speed, **shown)


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
