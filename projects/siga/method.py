"""One optimisation step of SIGA, for any variant and any number of processes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from common.data.loader import Batch
from common.models.images import masks_to_float
from common.train import schedule as schedules
from common.train.distributed import unwrap
from common.train.optim import accumulating, build_optimizer
from common.train.stepper import StepperBase
from projects.siga.model.build import Codec
from projects.siga.model.losses import SigaLosses
from projects.siga.options import fractions


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
class Stepper(StepperBase):
    """Forward, backward, clip, step. `model` is on its device, perhaps wrapped; `bare` is the module inside, which has
    the losses.
    """

    model: nn.Module
    codec: Codec

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
                self.guard(losses.total, step, batch.indices)
                self.precision.backward(losses.total / len(batches))
        norm = self.precision.clip(self.optimizer, self.options.grad_clip)
        self.guard_gradient(norm, step, torch.cat([batch.indices for batch in batches]))
        self.precision.step(self.optimizer)
        return {"loss": losses.total.detach(), **{name: part.detach() for name, part in losses.parts.items()}}

    def forward(self, batch: Batch, step: int) -> SigaLosses:
        """Teacher-forced losses of one batch. Correct's weight goes by step, the outlier rule by step/data_ratio."""
        device = self.dist.device
        images = self.bare.normalise(batch.images.to(device, non_blocking=True))
        masks = masks_to_float(batch.masks.to(device, non_blocking=True))
        ids, lengths = self.codec.encode(batch.labels)
        text = torch.from_numpy(ids).to(device)
        lengths = torch.from_numpy(lengths).to(device)
        with self.precision.autocast():
            output = self.model(images, text[:, :-1], masks)
        return self.bare.losses(
            output, text, lengths, step, step // self.options.data_ratio, processes=self.dist.world_size
        )
