"""The decoders that only SIGA has: gated fusion of two features, and attention decoding with a glyph feature a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.models.attention import AttentionCell, AttentionDecoder, Memory, State, lstm_update


class GatedBimodal(nn.Module):
    """z tanh(x1) + (1 - z) tanh(x2) with z = sigmoid(W [x1; x2] + b), all of width d (Arevalo et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Linear(2 * width, width)

    @staticmethod
    def mix(first: torch.Tensor, second: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The gated sum, `gate` being the argument of the sigmoid. `second` is already inside its tanh."""
        return torch.lerp(second, torch.tanh(first), torch.sigmoid(gate))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        gate = self.W(torch.cat([first, second], dim=-1))
        return self.mix(first, torch.tanh(second), gate)


class FusionCell(AttentionCell):
    """An attention cell whose context is gated with the step's glyph feature before it enters the LSTM cell.

    Its output is that gated feature I_t, not the hidden state. The part of the gate that meets the context is linear in
    it, so it is mixed from the columns together with the context itself.
    """

    def __init__(self, in_size: int, hidden_size: int, embedding_size: int) -> None:
        super().__init__(in_size, hidden_size, embedding_size)
        self.fusion = GatedBimodal(in_size)

    def memory(self, features: torch.Tensor) -> Memory:
        gate = F.linear(features, self.fusion.W.weight[:, : features.shape[2]])
        return Memory(self.i2h(features), torch.cat([features, gate], dim=2), *self._recurrent())

    def glyph_parts(self, glyphs: torch.Tensor) -> torch.Tensor:
        """[tanh(glyph); glyph's part of the gate] for all steps, [B, T, 2 in]: what `step` takes as `aside`."""
        width = glyphs.shape[2]
        return torch.cat(
            [torch.tanh(glyphs), F.linear(glyphs, self.fusion.W.weight[:, width:], self.fusion.W.bias)], dim=2
        )

    def step(
        self, memory: Memory, state: State, token: torch.Tensor, aside: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        mixed, attention, gates = self.attend(memory, state)
        context, context_gate = mixed.chunk(2, dim=1)
        glyph, glyph_gate = aside.chunk(2, dim=1)
        fused = GatedBimodal.mix(context, glyph, context_gate + glyph_gate)
        return fused, attention, lstm_update(F.linear(fused, self.context_weight) + gates + token, state)


class FusionDecoder(AttentionDecoder):
    """`Attention_Fusion`: greedy or teacher forced as its base; `outputs` are the gated features I_t [B, T, in]."""

    cell_type = FusionCell
