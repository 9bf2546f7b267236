"""What both scripts train with: the published batch, rates and optimizer of a run, and what a step logs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from common.data.bad import FILE_NAME
from common.data.loader import epoch_loader
from common.data.words import WordDataset
from common.flags import Table
from common.train.distributed import Dist
from common.train.jobs import EpochRun
from common.train.log import EpochLog
from common.train.loop import Clock, Step
from common.train.optim import Ema
from projects.dig.files import state_of
from projects.dig.flags import RunOptions
from projects.dig.optim import build_optimizer, step_tables

STOPPED = "stopped after saving its state; run the same command to resume"


def build_run(
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
) -> tuple[EpochRun, np.ndarray, np.ndarray]:
    """The run of either script, resumed where there is something to resume; learning rate and weight decay by step.

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
    loader, per_epoch = epoch_loader(
        dataset, o.batch_size, seed=o.seed, rank=dist.rank, world_size=dist.world_size, workers=o.num_workers,
        accumulate=accumulate, accumulate_flag="--update_freq", bad_share=o.bad_share,
        bad_list=Path(o.output_dir) / FILE_NAME if dist.is_main else None,
        pin_memory=o.pin_mem and dist.device.type == "cuda",
    )  # fmt: skip
    images = o.batch_size * accumulate * dist.world_size
    peak = o.lr * images / 256  # --lr is that of 256 images
    lr, weight_decay = step_tables(
        peak, o.min_lr, o.weight_decay, o.weight_decay_end, o.epochs, per_epoch, (o.warmup_epochs, o.warmup_steps)
    )
    optimizer = build_optimizer(groups, o.opt, float(lr[0]), eps=o.opt_eps, betas=o.opt_betas, momentum=o.momentum)
    run = EpochRun(
        o, values, partial(table.changed, now=values), dist, loader, per_epoch, model, optimizer,
        EpochLog("", every=100, stamp=True, processes=dist.world_size), card,
        weights_of=lambda content, what: state_of(content, what=what),
        parts={} if ema is None else {"ema": ema}, extra={"max_accuracy": 0.0}, **wrapping,
    )  # fmt: skip
    print(f"LR = {peak:.8f}")
    print(f"Batch size = {images}")
    return run, lr, weight_decay


def log_step(run: EpochRun, clock: Clock, done: Step) -> None:
    """After each step the console's meters in the published order, TensorBoard scalars, a line of metrics.jsonl.

    The scalars count steps from 0, metrics.jsonl from 1.
    """
    groups = run.engine.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    decays = [group["weight_decay"] for group in groups if group["weight_decay"] > 0]
    rates = {"lr": max(rates), "min_lr": min(rates)}
    losses = done.means()
    others = {
        "loss_scale": run.precision.scaler.get_scale(),
        "weight_decay": decays[-1] if decays else 0.0,
        "grad_norm": done.norm,
    }
    run.log.step(clock, done, rates, losses, others)
    for name, value in {**losses, **rates, **others}.items():
        if name in ("loss", "class_acc"):
            run.board.scalar(f"loss/{name}", value, clock.step - 1)
        elif name in rates or name in others:
            run.board.scalar(f"opt/{name}", value, clock.step - 1)
    if clock.step == 1 or clock.step % 10 == 0:
        meters, epoch = run.log.meters, (clock.step - 1) // clock.per_epoch
        speed = {"images_per_second": meters.throughput, "data_wait": meters.data_wait}
        run.metrics.write(step=clock.step, epoch=epoch, **speed, **losses, lr=rates["lr"])
