"""The pixel tasks in the training loop: the loss of a batch of pairs (SSM, section 4.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.train.distributed import unwrap
from common.train.loop import Clock
from common.train.optim import Precision
from projects.ssm.pixel.evaluate import views
from projects.ssm.pretrain.run import Rates


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
