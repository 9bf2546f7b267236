"""SIGA in the training loop: the losses of a batch, the rate of a step, and the run's optimiser and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.data.loader import Batch
from common.models.images import masks_to_float
from common.train import schedule as schedules
from common.train.distributed import Dist, unwrap
from common.train.loop import Clock
from common.train.optim import Precision, build_optimizer
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec
from projects.siga.model.losses import glyph_targets, predicted_text, siga_losses


@dataclass
class SigaMethod:
    """What the loop asks of SIGA.

    Attributes:
        model: perhaps under DistributedDataParallel and compiled.
        codec: text <-> ids.
        schedule: learning rate by step.
        precision: what the forward pass runs under.
        dist: the process group.
        data_ratio: `--data_ratio`; the outlier rule of the text mask counts steps in units of it.
    """

    model: nn.Module
    codec: Codec
    schedule: schedules.Schedule
    precision: Precision
    dist: Dist
    data_ratio: int = 1

    @property
    def bare(self) -> SigaModel:
        """The model without the wrappers of torch.compile and of several processes."""
        return unwrap(self.model)

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Total loss of a teacher-forced batch, and every term under its name (see `model.losses.siga_losses`)."""
        device, step = self.dist.device, clock.step
        images = self.bare.normalise(batch.images.to(device, non_blocking=True))
        masks = masks_to_float(batch.masks.to(device, non_blocking=True))
        ids, lengths = self.codec.encode(batch.labels)
        text, lengths = torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)
        with self.precision.autocast():
            output = self.model(images, text[:, :-1], masks)
        # outside autocast: the losses are taken in float32
        losses = siga_losses(
            output,
            text,
            lengths,
            step,
            step // self.data_ratio,
            processes=self.dist.world_size,
            **self.bare.loss_settings,
        )
        parts = {name: part.detach() for name, part in losses.parts.items()}
        return losses.total, {"loss": losses.total.detach(), **parts}

    def rates(self, step: int) -> tuple[float, None]:
        """Learning rate of a step; the decay stays as it is."""
        return self.schedule(step), None

    def stepped(self, clock: Clock) -> None:
        """Nothing moves in a step but the weights."""

    @torch.no_grad()
    def pictures(self, batch: Batch, shown: int = 4) -> dict[str, np.ndarray]:
        """T's tensorboard pictures of the first samples of a batch, uint8 [h, w, 3] under the published names:
        images, pseudo-masks, predicted masks and character maps."""
        model, device = self.bare, self.dist.device
        training = model.training
        model.eval()
        images = batch.images[:shown].to(device)
        ids, lengths = self.codec.encode(batch.labels[:shown])
        output = model(model.normalise(images), torch.from_numpy(ids).to(device)[:, :-1])
        model.train(training)
        mask, channels = predicted_text(output.maps.seg_logits), output.maps.low.shape[1] - 1
        size = tuple(output.maps.low.shape[2:])
        targets = glyph_targets(mask, output.attention, torch.from_numpy(lengths).to(device) - 1, size)
        return {
            "Input image": images.flatten(0, 1).cpu().numpy(),
            "GT mask": strip(batch.masks[:shown]),
            "Mask_Loc Maps": strip(mask[:, 0]),
            "char_segmention_Middle Maps": strip(output.maps.middle.argmax(dim=1), channels),
            "char_segmention_Low Maps": strip(output.maps.low.argmax(dim=1), channels),
            "Single_char_mask Maps": strip(targets.classes, channels),
        }


def strip(maps: torch.Tensor, classes: int = 1) -> np.ndarray:
    """Maps [B, h, w] with values in 0…classes -> one grey picture uint8 [B·h, w, 3], one below the other."""
    grey = (maps.float() * (255.0 / classes)).clamp(0, 255).byte().cpu().numpy()
    return np.repeat(grey.reshape(-1, grey.shape[2])[:, :, None], 3, axis=2)


def make_optimizer(
    model: nn.Module, name: str, lr: float, *, beta1: float, rho: float, eps: float
) -> torch.optim.Optimizer:
    """The published optimiser over all parameters that need a gradient, in one group.

    `name`: adam (R), adamw (S), adadelta (T); `beta1` is Adam's, `rho` and `eps` are Adadelta's.
    """
    words = {
        "adam": {"betas": (beta1, 0.999), "eps": 1e-8},
        "adamw": {"betas": (0.9, 0.99), "eps": 8e-8, "weight_decay": 0.05},  # the decay acts on vectors, too
        "adadelta": {"rho": rho, "eps": eps},
    }
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return build_optimizer(name, params, lr, **words[name])


def make_schedule(
    family: str, lr: float, total: int, *, cosine: bool = False, drops: Sequence[float] | None = None, rate: float = 0.1
) -> schedules.Schedule:
    """Learning rate by step: R one-cycle; S warm-up and cosine, a step late as published; T constant or `cosine`.

    `drops`: fractions of the steps at which the rate is multiplied by `rate` (R, S), in place of the variant's own.
    """
    if family == "T":
        return schedules.cosine(lr, total) if cosine else schedules.constant(lr)
    if drops is not None:
        return schedules.step_decay(lr, [int(share * total) for share in drops], rate)
    if family == "R":
        return schedules.one_cycle(lr, total, pct_start=0.3, div_factor=20.0, final_div_factor=1000.0)
    return warm_cosine(lr, total, total * 2 // 10)


def warm_cosine(lr: float, total: int, warmup: int, final: float = 1e-7) -> schedules.Schedule:
    """S: linear warm-up and cosine as a table whose values are set after each step, as published: step 0 runs at the
    full rate, step 1 at 0."""
    table = schedules.warmup_cosine_table(lr, final, total, warmup)
    return schedules.lagging(schedules.from_table(table), first=lr)
