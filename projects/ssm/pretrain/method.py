"""SSM's pre-training and pixel tasks in the training loop: losses of a batch, rates of a step (sections 3 and 4.6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.train.distributed import unwrap
from common.train.loop import Clock
from common.train.optim import Precision
from common.train.schedule import constant, momentum_cosine, warmup_cosine
from projects.ssm.model.pretrain_losses import feature_weight, objective
from projects.ssm.pixel.evaluate import views
from projects.ssm.pretrain.data import Superimposer, full_batch


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
        images = full_batch(batch, self.batch_size).to(self.device, non_blocking=True)
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


@dataclass
class PixelTask:
    """Super-resolution or segmentation from the pre-trained encoder (SSM, section 4.6)."""

    model: nn.Module
    rates: Rates
    precision: Precision
    device: torch.device
    norm_pix_loss: bool

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss of one micro-batch of pairs."""
        bare = unwrap(self.model)
        given, wanted = views(batch.images.to(self.device, non_blocking=True), bare)
        with self.precision.autocast():
            predicted = self.model(given)
        loss = bare.loss(predicted.float(), wanted, self.norm_pix_loss)
        return loss, {"loss": loss.detach()}

    def stepped(self, clock: Clock) -> None:
        """Nothing moves after a step."""


def momentum_of(mm: float, schedule: str, epochs: int) -> Callable[[float], float]:
    """Momentum of the target network by fractional epoch: `const`, or `cosine`, which rises to 1."""
    return momentum_cosine(mm, epochs) if schedule == "cosine" else constant(mm)
