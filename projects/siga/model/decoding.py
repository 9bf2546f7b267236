"""From sequence and glyph features to characters: the decoders that only SIGA has, the seven of training together, and
the one path that reading needs (section 3.3 of the paper).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.models.attention import (
    AttentionCell,
    AttentionDecoder,
    Memory,
    SequenceDecoder,
    State,
    lstm_update,
    zero_state,
)

# The seven readings that training sums. R and S number the glyph scales low = 1, middle = 2; T the other way round.
HEADS = ("ours", "trba", "glyph1", "glyph2", "iter1", "iter2", "share")


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
        fused = GatedBimodal.mix(context, glyph, context_gate + glyph_gate)  # I_t of the paper, [B, in]
        return fused, attention, lstm_update(F.linear(fused, self.context_weight) + gates + token, state)


class FusionDecoder(AttentionDecoder):
    """`Attention_Fusion`: greedy or teacher forced as its base; `outputs` are the gated features I_t [B, T, in]."""

    cell_type = FusionCell


class Heads(NamedTuple):
    """The second unit's decoders; pairs are in the variant's own order of the two glyph scales."""

    trba: AttentionDecoder
    glyph: tuple[SequenceDecoder, SequenceDecoder]
    iterable: tuple[FusionDecoder, FusionDecoder]
    fusion: GatedBimodal
    project: nn.Linear
    generator: SequenceDecoder


class Reading(NamedTuple):
    """The Share branch: `logits` [B, t, C] for the steps that ran, `attention` [B, t, W] (mean of the two fusion
    decoders).
    """

    logits: torch.Tensor
    attention: torch.Tensor


def decode_all(
    heads: Heads,
    contextual: torch.Tensor,
    glyphs: tuple[torch.Tensor, torch.Tensor],
    text: torch.Tensor | None,
    start: int,
    drop: float,
) -> dict[str, torch.Tensor]:
    """Logits [B, T, C] of every decoder of the second unit, and `fused` [B, T, hidden], the gated
    features that lead to Share.

    `contextual` [B, W, hidden]; `glyphs` two of [B, T, hidden]; `text` [B, T] for teacher forcing, else greedy from
    `start`. `drop` is applied to both glyph sequences (the same draw for both decoders that read them) and to the
    projection.
    """
    glyphs = tuple(F.dropout(glyph, drop, training=drop > 0) for glyph in glyphs)
    steps = glyphs[0].shape[1]
    logits = {"trba": heads.trba(contextual, text, start=start, steps=steps).logits}
    gated = []
    for index, (glyph, reader, fuser) in enumerate(zip(glyphs, heads.glyph, heads.iterable), start=1):
        logits[f"glyph{index}"] = reader(glyph, text, start=start).logits
        aside = fuser.attention_cell.glyph_parts(glyph)
        decoded = fuser(contextual, text, start=start, steps=steps, aside=aside)
        logits[f"iter{index}"] = decoded.logits
        gated.append(decoded.outputs)
    logits["fused"] = heads.fusion(*gated)
    projected = F.dropout(heads.project(logits["fused"]), drop, training=drop > 0)
    logits["share"] = heads.generator(projected, text, start=start).logits
    return logits


def read_share(
    heads: Heads,
    contextual: torch.Tensor,
    glyphs: tuple[torch.Tensor, torch.Tensor],
    start: int,
    end: int,
    stop_early: bool,
) -> Reading:
    """Greedy Share logits, the three decoders in step.

    Share's output at t depends on nothing after t, so with `stop_early` the loop ends once every word has met `end`;
    the logits that did run are the same.
    """
    cells = [fuser.attention_cell for fuser in heads.iterable]
    memories = [cell.memory(contextual) for cell in cells]
    asides = [cell.glyph_parts(glyph).unbind(1) for cell, glyph in zip(cells, glyphs)]
    tables = [fuser.token_gates(None) for fuser in heads.iterable]
    states = [zero_state(contextual, fuser.hidden_size) for fuser in heads.iterable]
    # every decoder is fed its own last character, not Share's, as published
    tokens = [table[start].expand(contextual.shape[0], -1) for table in tables]
    share_table = heads.generator.token_gates()
    share_token, share_state = (
        share_table[start].expand(contextual.shape[0], -1),
        zero_state(contextual, heads.generator.hidden_size),
    )
    ended = torch.zeros(contextual.shape[0], dtype=torch.bool, device=contextual.device)
    logits, attention = [], []
    for t in range(len(asides[0])):
        gated, weights = [], []
        for index, fuser in enumerate(heads.iterable):
            output, weight, states[index] = cells[index].step(
                memories[index], states[index], tokens[index], asides[index][t]
            )
            tokens[index] = tables[index][fuser.generator(states[index].hidden).argmax(dim=1)]
            gated.append(output)
            weights.append(weight)
        item = heads.project(heads.fusion(*gated))
        scores, share_state = heads.generator.step(item, share_state, share_token)
        ids = scores.argmax(dim=1)
        share_token = share_table[ids]
        logits.append(scores)
        attention.append((weights[0] + weights[1]) / 2)
        if stop_early:
            ended |= ids == end
            if bool(ended.all()):
                break
    return Reading(torch.stack(logits, dim=1), torch.stack(attention, dim=1))
