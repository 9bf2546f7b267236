"""SSM's pre-training in the training loop: the losses of a batch (section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.train.distributed import unwrap
from common.train.loop import Clock
from common.train.optim import Precision
from common.train.schedule import constant, momentum_cosine
from projects.ssm.model.pretrain_losses import feature_weight, objective
from projects.ssm.pretrain.data import Superimposer
from projects.ssm.pretrain.run import Rates


@dataclass
class Pretraining:
    """Separate superimposed views: L = L_pix + alpha (L_dis [+ L_den]) (SSM, section 3.3; spec section 6.1).

    Attributes:
        model: the pre-trainer, perhaps wrapped.
        rates: learning rate by step.
        superimpose: uint8 images and (seed, micro-step, rank) -> views of a batch.
        momentum: of the target network, by fractional epoch.
        feat_start_epoch, feat_ramp: of alpha.
        rank, seed, accumulate, batch_size: every draw is a function of seed, micro-step and rank.
    """

    model: nn.Module
    rates: Rates
    precision: Precision
    device: torch.device
    superimpose: Superimposer
    momentum: Callable[[float], float]
    feat_start_epoch: int
    feat_ramp: float
    norm_pix_loss: bool
    dense_loss: bool
    seed: int
    rank: int
    accumulate: int
    batch_size: int

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss of one micro-batch; the momentum network moves with the first one of a step, as published."""
        bare = unwrap(self.model)
        images = batch.full(self.batch_size).to(self.device, non_blocking=True)
        shown = self.superimpose(images, (self.seed, clock.step * self.accumulate + number, self.rank))
        directions = torch.stack([shown.positive, shown.negative])
        momentum = float(self.momentum(self.rates.time(clock.step)))
        with self.precision.autocast():
            output = self.model(shown.student_mix, shown.teacher_mix, directions, None if number else momentum)
        losses = objective(
            output, shown.student, shown.student_flipped, bare.patch_size,
            weight=feature_weight(clock.epoch, self.feat_start_epoch, self.feat_ramp),
            normalise=self.norm_pix_loss, dense_norm=bare.student_norm if self.dense_loss else None,
        )  # fmt: skip
        return losses.total, {"mm": momentum, **losses.shown}

    def stepped(self, clock: Clock) -> None:
        """Nothing moves after a step: the momentum network moves inside the forward pass."""


def momentum_of(mm: float, schedule: str, epochs: int) -> Callable[[float], float]:
    """Momentum of the target network by fractional epoch: `const`, or `cosine`, which rises to 1."""
    return momentum_cosine(mm, epochs) if schedule == "cosine" else constant(mm)
