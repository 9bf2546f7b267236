"""MGP-STR and ACDS-STR in the training loop: targets, losses, learning rate (spec section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.models.images import to_float_nchw
from common.train import schedule as schedules
from common.train.loop import Clock
from common.train.optim import Precision, build_optimizer
from projects.mgpstr.label_codes import LabelCodes


class LossModule(nn.Module):
    """Pixels and targets to losses, as one module: what DistributedDataParallel wraps.

    The heads see only positions that have a target, so they must run where the targets are known.
    """

    def __init__(self, model: nn.Module, mask_logits: bool = False) -> None:
        super().__init__()
        self.model, self.mask_logits = model, mask_logits

    def forward(self, images: Tensor, targets: Mapping[str, Tensor], masks: Tensor | None = None) -> dict[str, Tensor]:
        """The losses whose sum is minimised.

        Args:
            images: uint8 [B, H, W, 3].
            targets: int64 [B, T] of each granularity, 0 = ignore.
            masks: uint8 [B, H, W] of 0 and 1, for ACDS-STR's map.
        """
        floats = to_float_nchw(images)
        if masks is None:
            return self.model.losses(floats, targets)
        return self.model.losses(floats, targets, masks, self.mask_logits)


@dataclass
class MgpMethod:
    """The sum of the granularities' losses, or ACDS-STR's characters and map.

    Attributes:
        module: `LossModule`, perhaps under DistributedDataParallel.
        codes: texts to targets.
        schedule: step -> learning rate.
        subword_weight: factor of the BPE and WordPiece losses; 1 as published.
    """

    module: nn.Module
    codes: LabelCodes
    schedule: schedules.Schedule
    precision: Precision
    device: torch.device
    subword_weight: float = 1.0

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch; `loss` and its parts for the meters."""
        targets = {name: torch.from_numpy(ids).to(self.device) for name, ids in self.codes.encode(batch.labels).items()}
        masks = None if batch.masks is None else batch.masks.to(self.device, non_blocking=True)
        with self.precision.autocast():
            losses = self.module(batch.images.to(self.device, non_blocking=True), targets, masks)
        weight = self.subword_weight
        total = sum(loss * weight if name in ("bpe", "wp") else loss for name, loss in losses.items())
        return total, {"loss": total.detach(), **{f"loss/{name}": loss.detach() for name, loss in losses.items()}}

    def rates(self, step: int) -> tuple[float, None]:
        """The learning rate; no weight decay."""
        return self.schedule(step), None

    def stepped(self, clock: Clock) -> None:
        """Nothing follows a step."""


def make_optimizer(
    model: nn.Module, lr: float, *, adam: bool, betas: tuple[float, float], rho: float, eps: float
) -> torch.optim.Optimizer:
    """Adadelta(lr, rho, eps) or, with `adam`, Adam(lr, betas), over one group without weight decay.

    The published code also gives it the parameters that are never used, which get no gradient and so never move.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if adam:
        return build_optimizer("adam", parameters, lr, betas=betas, fused=True)
    return build_optimizer("adadelta", parameters, lr, rho=rho, eps=eps)


def make_schedule(lr: float, *, cosine: bool, period: int = 1_000_000, warmup: int = 0) -> schedules.Schedule:
    """`--scheduler`: lr/2 (1 + cos(pi k / period)) with a restart each `period` steps; constant without.

    `warmup` steps of a linear rise come first.
    """
    steady = schedules.cosine_restarts(lr, period) if cosine else schedules.constant(lr)
    return lambda step: lr * (step + 1) / warmup if step < warmup else steady(step - warmup)
