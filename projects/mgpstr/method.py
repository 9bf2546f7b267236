"""One optimisation step of MGP-STR or ACDS-STR on any number of processes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from common.data.loader import Batch
from common.models.images import to_float_nchw
from common.train import schedule as schedules
from common.train.optim import build_optimizer
from common.train.stepper import StepperBase
from projects.mgpstr.label_codes import LabelCodes


class LossModule(nn.Module):
    """Pixels and targets to losses, as one module: what DistributedDataParallel wraps.

    The heads see only positions that have a target, so they must run where the targets are known.
    """

    def __init__(self, model: nn.Module, mask_logits: bool = False) -> None:
        super().__init__()
        self.model, self.mask_logits = model, mask_logits

    def forward(
        self, images: torch.Tensor, targets: Mapping[str, torch.Tensor], masks: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """uint8 images [B, H, W, 3], targets int64 [B, T] by granularity, masks uint8 [B, H, W] -> losses to be
        summed.
        """
        floats = to_float_nchw(images)
        if masks is None:
            return self.model.losses(floats, targets)
        return self.model.losses(floats, targets, masks, self.mask_logits)


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Adadelta or, with `--adam`, Adam, over one group of all parameters that get a gradient, without weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.adam:
        return build_optimizer("adam", parameters, options.lr, betas=(options.beta1, options.beta2), fused=True)
    return build_optimizer("adadelta", parameters, options.lr, rho=options.rho, eps=options.eps)


def make_schedule(options: argparse.Namespace) -> schedules.Schedule:
    """`--scheduler`: cosine with a restart each `--lr_period` (a million) steps; constant without.

    `--lr_warmup` steps of a linear rise stand before it.
    """
    steady = schedules.constant(options.lr)
    if options.scheduler:
        steady = schedules.cosine_restarts(options.lr, options.lr_period)
    rise = options.lr_warmup
    return lambda step: options.lr * (step + 1) / rise if step < rise else steady(step - rise)


@dataclass
class Stepper(StepperBase):
    """Forward, backward, clip, step. `module`: `LossModule`, perhaps under DistributedDataParallel."""

    module: nn.Module
    codes: LabelCodes

    def __call__(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Step number `step` on one batch; returns `loss` and its parts, detached.

        Raises `NonFinite` (nothing is stepped) on the rank whose loss or gradient is not a number, SystemExit on
        others.
        """
        schedules.set_learning_rate(self.optimizer, self.schedule(step))
        losses = self.forward(batch)
        weight = self.options.subword_weight
        total = sum(loss * weight if name in ("bpe", "wp") else loss for name, loss in losses.items())
        self.guard(total, step, batch.indices)
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.backward(total)
        norm = self.precision.clip(self.optimizer, self.options.grad_clip)
        self.guard_gradient(norm, step, batch.indices)
        self.precision.step(self.optimizer)
        return {"loss": total.detach(), **{f"loss/{name}": loss.detach() for name, loss in losses.items()}}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses of one batch."""
        device = self.dist.device
        targets = {name: torch.from_numpy(ids).to(device) for name, ids in self.codes.encode(batch.labels).items()}
        masks = None if batch.masks is None else batch.masks.to(device, non_blocking=True)
        with self.precision.autocast():
            return self.module(batch.images.to(device, non_blocking=True), targets, masks)
