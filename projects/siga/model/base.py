"""What every SIGA model can do, whatever its backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.models.attention import BidirectionalLSTM
from common.models.images import IMAGENET_MEAN, IMAGENET_STD, to_float_nchw
from projects.siga.model.losses import SigaLosses, SigaOutput, siga_losses
from projects.siga.model.variants import Variant


class SigaModel(nn.Module):
    """What the three families share: settings, losses, and the two rules of the character set (start and end id)."""

    start_id: int
    end_id: int

    def __init__(self, settings: Variant, num_class: int, batch_max_length: int) -> None:
        super().__init__()
        self.settings, self.num_class = settings, num_class
        self.steps = batch_max_length + 1  # T: the characters and the end symbol
        self.dropout = 0.3  # of the glyph features, fixed in the published code

    @property
    def class_weights(self) -> torch.Tensor | None:
        """Weights [K] of the glyph classes in the pixel cross entropy; None = equal."""
        return None

    @property
    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> float [B, 3, H, W]: ImageNet mean and std for R and S, [0, 1] for T."""
        return (
            to_float_nchw(images) if self.settings.family == "T" else to_float_nchw(images, IMAGENET_MEAN, IMAGENET_STD)
        )

    @property
    def loss_settings(self) -> dict[str, Any]:
        """What of this variant `losses.siga_losses` needs to know."""
        return {
            "settings": self.settings.loss,
            "class_weights": self.class_weights,
            "ignore_padding": self.settings.family == "T",
        }

    def losses(
        self,
        output: SigaOutput,
        text: torch.Tensor,
        lengths: torch.Tensor,
        iteration: int,
        ratio_iteration: int | None = None,
        processes: int = 0,
    ) -> SigaLosses:
        """All losses of a teacher-forced `output`; see `losses.siga_losses`."""
        return siga_losses(output, text, lengths, iteration, ratio_iteration, processes=processes, **self.loss_settings)


def two_lstms(in_size: int, hidden: int) -> nn.Sequential:
    """The pair of bidirectional LSTMs between visual columns and a decoder."""
    return nn.Sequential(BidirectionalLSTM(in_size, hidden, hidden), BidirectionalLSTM(hidden, hidden, hidden))
