"""One optimisation step of SIGA, for any variant and any number of processes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.data.loader import Batch
from common.models.images import masks_to_float
from common.train import schedule as schedules
from common.train.distributed import Dist, unwrap
from common.train.optim import Precision, accumulating, build_optimizer, check_finite
from common.train.signals import StopRequest
from projects.siga.building import Codec
from projects.siga.losses import SigaLosses
from projects.siga.options import fractions
from projects.siga.reader import normalise


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """The variant's optimiser over all parameters that need a gradient, in one group (R Adam, S AdamW, T Adadelta)."""
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    name = options.optimizer.lower()
    if options.family == "T" and options.adam:
        name = "adam"
    words = {
        "adam": {"betas": (getattr(options, "beta1", 0.9), 0.999), "eps": 1e-8},
        "adamw": {"betas": (0.9, 0.99), "eps": 8e-8, "weight_decay": 0.05},
        "adadelta": {"rho": options.rho, "eps": options.eps},
    }
    return build_optimizer(name, params, options.lr, **words[name])


def total_steps(options: argparse.Namespace, batches_per_epoch: int) -> int:
    """Steps of the run. S with AdamW trains ten epochs whatever `--num_iter` defaults to, unless the flag is given."""
    if options.family == "S" and options.optimizer.lower() == "adamw" and "num_iter" not in options.given:
        return 10 * max(batches_per_epoch // options.accumulate, 1)
    return options.num_iter * options.data_ratio


def make_schedule(options: argparse.Namespace) -> schedules.Schedule:
    """Learning rate by step: R one-cycle; S warm-up and cosine, a step late as published; T cosine."""
    lr, total = options.lr, options.total_steps
    if options.family == "T":
        return schedules.cosine(lr, total) if options.scheduler else schedules.constant(lr)
    drops = fractions(options)
    if drops is not None:
        return schedules.step_decay(lr, [int(share * total) for share in drops], options.lr_drop_rate)
    if options.family == "R":
        return schedules.one_cycle(lr, total, pct_start=0.3, div_factor=20.0, final_div_factor=1000.0)
    return warm_cosine(lr, total, total * 2 // 10)


def warm_cosine(lr: float, total: int, warmup: int, final: float = 1e-7) -> schedules.Schedule:
    """S: linear warm-up and cosine as a table whose values are set after each step, as published: step 0 runs at the
    full rate, step 1 at 0."""
    table = schedules.warmup_cosine_table(lr, final, total, warmup)
    return schedules.lagging(schedules.from_table(table), first=lr)


@dataclass
class Stepper:
    """Forward, backward, clip, step.

    Attributes:
        model: on its device, perhaps wrapped; `bare` is the module inside, which has the losses.
        folder: where the numbers of a batch with a non-finite loss are written.
        stop: asked together with the finiteness of the loss, in one collective.
    """

    model: nn.Module
    codec: Codec
    optimizer: torch.optim.Optimizer
    schedule: schedules.Schedule
    precision: Precision
    options: argparse.Namespace
    dist: Dist
    folder: Path
    stop: StopRequest
    stopping: bool = False

    @property
    def bare(self) -> nn.Module:
        """The module inside the wrappers."""
        return unwrap(self.model)

    def __call__(self, batches: Sequence[Batch], step: int) -> dict[str, torch.Tensor]:
        """One step over one or more batches (accumulation). Returns the last batch's losses by name, detached.

        Raises:
            NonFinite: a loss or gradient is not finite; nothing was stepped.
        """
        schedules.set_learning_rate(self.optimizer, self.schedule(step))
        self.optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(batches, start=1):
            with accumulating(self.model, last=number == len(batches)):
                losses = self.forward(batch, step)
                self._guard(losses.total, step, batch)
                self.precision.backward(losses.total / len(batches))
        norm = self.precision.clip(self.optimizer, self.options.grad_clip)
        if norm is not None and self.precision.amp != "fp16":
            ids = torch.cat([batch.indices for batch in batches])
            check_finite(norm, step=step, what="gradient norm", batch_ids=ids, folder=self.folder)
        self.precision.step(self.optimizer)
        return {"loss": losses.total.detach(), **{name: part.detach() for name, part in losses.parts.items()}}

    def forward(self, batch: Batch, step: int) -> SigaLosses:
        """Teacher-forced losses of one batch. Correct's weight goes by step, the outlier rule by step/data_ratio."""
        device = self.dist.device
        images = normalise(batch.images.to(device, non_blocking=True), self.options.family)
        masks = masks_to_float(batch.masks.to(device, non_blocking=True))
        ids, lengths = self.codec.encode(batch.labels)
        text = torch.from_numpy(ids).to(device)
        lengths = torch.from_numpy(lengths).to(device)
        with self.precision.autocast():
            output = self.model(images, text[:, :-1], masks)
        return self.bare.losses(output, text, lengths, step, step // self.options.data_ratio)

    def _guard(self, loss: torch.Tensor, step: int, batch: Batch) -> None:
        """Stop on all ranks before the backward pass if a loss is not finite on one of them."""
        bad, self.stopping = self.dist.any_of(not bool(torch.isfinite(loss.detach())), self.stop.requested)
        if not bad:
            return
        check_finite(loss, step=step, batch_ids=batch.indices, folder=self.folder)
        raise SystemExit(2)  # another rank's loss: that rank says which
