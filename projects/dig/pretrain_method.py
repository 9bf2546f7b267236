"""Pre-training in the training loop: both losses of a batch, masks, momentum and weight of the contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.train.loop import Clock
from common.train.optim import Precision
from common.train.schedule import Schedule
from projects.dig.data import views
from projects.dig.model.losses import masked_targets, pixel_loss
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import PretrainOutput
from projects.dig.optim import contrast_weights


@dataclass
class PreTraining:
    """The pre-trainer's `Method` for `common.train.loop.Loop`.

    Attributes:
        model: a `MoCoViT`, perhaps wrapped.
        masking: draws the hidden tokens of both views.
        patch: side of a patch.
        batch_size: images of this process in every step.
        seed, rank: decide the masks, together with the step.
        lr, weight_decay: of every step.
        momentum: of the momentum branch, by the epoch, with its fraction.
        contrast: weight of the contrastive loss, the epoch in which its ramp begins, steps of the ramp.
        pixel_weight: weight of the pixel loss.
        only_first: the augmented view is not masked (`--only_mim_on_ori_img`).
        normalise_target: see `pixel_targets`.
    """

    model: nn.Module
    precision: Precision
    device: torch.device
    masking: RandomMasking
    patch: int
    batch_size: int
    seed: int
    rank: int
    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: Schedule
    contrast: tuple[float, int, int]
    pixel_weight: float = 1.0
    only_first: bool = True
    normalise_target: bool = False

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The weighted sum of pixel and contrastive loss, with the weights of the code, and its parts."""
        images, augmented, mask = self.inputs(batch, clock.step)
        kept = self.momentum(clock.step / clock.per_epoch)
        with self.precision.autocast():
            output: PretrainOutput = self.model(images, augmented, mask, kept, self.only_first)
        shown: dict[str, float | Tensor] = {"moco_m": kept}
        total = images.new_zeros(())
        if output.contrast is not None:
            weight = contrast_weights(clock.epoch, clock.per_epoch, *self.contrast)[clock.inside]
            shown |= {"loss_contrast": output.contrast.detach(), **output.accuracies}
            total = total + weight * output.contrast
        if output.pixels is not None:
            # the target is always the first view, also for a masked second one
            hidden = mask[:, :1] if self.only_first else mask
            pixel = pixel_loss(output.pixels, masked_targets(images, hidden, self.patch, self.normalise_target))
            shown["loss_pixel"] = pixel.detach()
            total = total + self.pixel_weight * pixel
        return total, shown | {"loss": total.detach()}

    def inputs(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both views `[B, 3, H, W]` and the mask bool `[B, 2, N]`, of exactly the batch size.

        The masks are a function of seed, step and rank, so a resumed run draws the same.
        """
        images = batch.full(self.batch_size)
        rng = np.random.Generator(np.random.SFC64([self.seed, step, self.rank]))
        mask = torch.from_numpy(self.masking.batch(rng, self.batch_size))
        first, second = views(images.to(self.device, non_blocking=True))
        return first, second, mask.to(self.device, non_blocking=True)

    def rates(self, step: int) -> tuple[float, float]:
        return float(self.lr[step]), float(self.weight_decay[step])

    def stepped(self, clock: Clock) -> None:
        """Nothing: the momentum branch moves in the forward pass, before the keys are computed."""
