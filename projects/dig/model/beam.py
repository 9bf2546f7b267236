"""Beam search: a correct one, and the published one, whose hypotheses are scored with another beam's history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.dig.model.recogniser import RecModel


def start(model: RecModel, memory: Tensor, width: int):
    """The decoding over each image's memory repeated `width` times (rows image-major), and the first tokens."""
    memory = memory.repeat_interleave(width, dim=0)
    begin = torch.full((len(memory),), model.classes, device=memory.device)
    return model.decoding(memory), begin


@torch.no_grad()
def beam_search(model: RecModel, memory: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` most probable prefixes are kept at every step; the most probable sequence found is returned.

    No length normalisation, as published. A hypothesis that has ended stays in the beam with its score.

    Returns:
        ids int64 `[B, max_len]` (end tokens after the end) and their log-probability `[B]`.
    """
    batch, end, classes = len(memory), model.end, model.classes
    decoding, tokens = start(model, memory, width)
    first_row = torch.arange(batch, device=memory.device)[:, None] * width
    scores = memory.new_full((batch, width), -torch.inf)
    scores[:, 0] = 0  # all beams of an image are equal at first: only one may spread
    history = tokens.new_zeros(batch * width, 0)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    frozen = memory.new_full((classes,), -torch.inf)  # what an ended beam predicts: its end again, at no cost
    frozen[end] = 0
    for position in range(model.max_len):
        log_p = decoding.step(tokens, position).float().log_softmax(-1)
        log_p = torch.where(ended[:, None], frozen, log_p)
        totals = (scores.view(-1, 1) + log_p).view(batch, width * classes)
        scores, chosen = totals.topk(width, dim=1)  # flat indices over (beam, class)
        rows = (first_row + chosen // classes).flatten()
        tokens = (chosen % classes).flatten()
        history = torch.cat([history[rows], tokens[:, None]], dim=1)
        ended = ended[rows] | (tokens == end)
        if bool(ended.all()):
            break
        decoding.reorder(rows)
    best = first_row[:, 0] + scores.argmax(1)
    ids = F.pad(history[best], (0, model.max_len - history.shape[1]), value=end)
    return ids, scores.max(1).values


@dataclass
class Trace:
    """What the published search stores a step, each `[B * width]`: symbols, flat predecessors, scores before ended
    beams are cut."""

    symbols: list[Tensor] = field(default_factory=list)
    predecessors: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def published_beam_search(model: RecModel, memory: Tensor, width: int) -> Tensor:
    """The search of the published code: ids `[B, max_len]`; `--legacy-beam-search` and the measured numbers use it.

    Its fault: after a step the token histories are not re-ordered by predecessor, so a hypothesis continues with the
    history that happens to stand in its row. Width 1 is greedy decoding.
    """
    batch, classes = len(memory), model.classes
    decoding, tokens = start(model, memory, width)
    first_row = torch.arange(batch, device=memory.device)[:, None] * width
    scores = memory.new_full((batch, width), -torch.inf)
    scores[:, 0] = 0
    trace = Trace()
    for position in range(model.max_len):
        log_p = decoding.step(tokens, position).float().log_softmax(-1)
        totals = (scores.view(-1, 1) + log_p).view(batch, width * classes)
        scores, chosen = totals.topk(width, dim=1)
        tokens = (chosen % classes).flatten()
        trace.symbols.append(tokens)
        trace.predecessors.append((first_row + chosen // classes).flatten())
        trace.scores.append(scores.flatten())
        scores = scores.masked_fill(chosen % classes == model.end, -torch.inf)  # an ended beam never grows on
    return back_track(trace, batch, width, model.end)


def back_track(trace: Trace, batch: int, width: int, end: int) -> Tensor:
    """Follow the stored predecessors from the last step to the first: the best sequence of each image, `[B, steps]`.

    A hypothesis that ended at a step takes over one of its image's slots, the worst first, when the walk reaches that
    step.
    """
    first_row = torch.arange(batch, device=trace.symbols[0].device)[:, None] * width
    totals, order = trace.scores[-1].view(batch, width).topk(width, dim=1)
    totals, pointers = totals.flatten(), (first_row + order).flatten()
    taken: Counter[int] = Counter()
    sequences = []
    for symbols, predecessors, scores in zip(*map(reversed, (trace.symbols, trace.predecessors, trace.scores))):
        current, pointers = symbols[pointers], predecessors[pointers]
        for row in reversed((symbols == end).nonzero()[:, 0].tolist()):
            image = row // width
            slot = image * width + width - 1 - taken[image] % width
            taken[image] += 1
            current[slot], pointers[slot], totals[slot] = end, predecessors[row], scores[row]
        sequences.append(current)
    best = first_row[:, 0] + totals.view(batch, width).topk(width, dim=1).indices[:, 0]
    return torch.stack(sequences[::-1], 1)[best]
