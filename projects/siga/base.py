"""What every SIGA model returns and can do, whatever its backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.models.attention import BidirectionalLSTM
from projects.siga.glyphs import GlyphMaps
from projects.siga.losses import SigaLosses, siga_losses
from projects.siga.variants import Variant


@dataclass
class SigaOutput:
    """A forward pass. `logits`: name in `heads.HEADS` -> [B, T, C]; `attention` of the "ours" decoder [B, T, W'] ;
    `maps`: character maps and mask logits; `masks` [B, 1, H, W] as the losses see them (None without masks);
    `features`: intermediate tensors under the names of the reference measurements."""

    logits: dict[str, torch.Tensor]
    attention: torch.Tensor
    maps: GlyphMaps
    masks: torch.Tensor | None
    features: dict[str, torch.Tensor]


class SigaModel(nn.Module):
    """What the three families share: settings, losses, and the two rules of the character set (start and end id)."""

    start_id: int
    end_id: int

    def __init__(self, settings: Variant, num_class: int, batch_max_length: int) -> None:
        super().__init__()
        self.settings, self.num_class, self.steps = settings, num_class, batch_max_length + 1
        self.dropout = 0.3

    @property
    def class_weights(self) -> torch.Tensor | None:
        """Weights [K] of the glyph classes in the pixel cross entropy; None = equal."""
        return None

    @property
    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def losses(
        self,
        output: SigaOutput,
        text: torch.Tensor,
        lengths: torch.Tensor,
        iteration: int,
        ratio_iteration: int | None = None,
        processes: int = 0,
    ) -> SigaLosses:
        """All losses of a teacher-forced `output`; see `losses.siga_losses`. Works on the bare module under DDP."""
        return siga_losses(
            output,
            text,
            lengths,
            iteration,
            ratio_iteration,
            settings=self.settings.loss,
            class_weights=self.class_weights,
            ignore_padding=self.settings.family == "T",
            processes=processes,
        )


def two_lstms(in_size: int, hidden: int) -> nn.Sequential:
    """The pair of bidirectional LSTMs between visual columns and a decoder."""
    return nn.Sequential(BidirectionalLSTM(in_size, hidden, hidden), BidirectionalLSTM(hidden, hidden, hidden))
