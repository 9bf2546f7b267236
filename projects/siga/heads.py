"""From sequence and glyph features to characters: the seven decoders of training, and the one path that reading
needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.models.attention import AttentionDecoder, SequenceDecoder, zero_state
from projects.siga.decoders import FusionDecoder, GatedBimodal

HEADS = ("ours", "trba", "glyph1", "glyph2", "iter1", "iter2", "share")


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
