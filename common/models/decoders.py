"""Greedy autoregressive decoding one token at a time, with the keys and values of earlier tokens kept (DiG, TransOCR,
PARSeq).

A decoder offers a *step*: a function from the newest token of every row and its position to the logits of the next
token. It keeps one `KeyValueCache` a layer, so a step costs one token instead of the whole prefix. The output equals
running the whole prefix again at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Step = Callable[[Tensor, int], Tensor]
"""(`tokens` int64 `[B]` at `position`, `position`) -> logits `[B, C]` of position + 1."""


class KeyValueCache:
    """Keys and values `[B, heads, t, d]` of the tokens so far, in one buffer of `length` positions.

    With `growing`, and while a graph is traced, they are concatenated instead: the graph then takes any batch size. It
    costs a copy a step.
    """

    def __init__(self, length: int, growing: bool = False) -> None:
        self.length, self.growing, self.used = length, growing or torch.jit.is_tracing(), 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add `[B, heads, n, d]` of the newest tokens; returns those of all tokens so far. Raises ValueError when
        full."""
        if self.growing:
            return self._grow(keys, values)
        if self.keys is None:
            batch, heads, _, dim = keys.shape
            self.keys = keys.new_empty(batch, heads, self.length, dim)
            self.values = values.new_empty(batch, heads, self.length, dim)
        end = self.used + keys.shape[2]
        if end > self.length:
            raise ValueError(f"the cache holds {self.length} positions, {end} were asked for")
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `append`, by concatenation."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=2)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=2)
        return self.keys, self.values

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` holds (beam search)."""
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class Decoded(NamedTuple):
    """`ids` int64 `[B, T]` and their `logits` `[B, T, C]`; T is below the asked length where all rows ended early."""

    ids: Tensor
    logits: Tensor


def greedy_decode(step: Step, first: Tensor, length: int, end: int | None = None) -> Decoded:
    """Feed each row its own arg-max until `length` tokens are made or, with `end` given, every row has made `end`.

    Args:
        step: see `Step`; called with positions 0, 1, …
        first: `[B]` int64, the token at position 0 (begin of sequence); its device is the device of the decoding.
        length: tokens to make at most, >= 1.
        end: the end token's id; None never stops early (export, measured outputs).

    A row that has ended is still fed its own arg-max until all have: what follows its end token carries no
    meaning.
    """
    token, ended = first, torch.zeros_like(first, dtype=torch.bool)
    ids, logits = [], []
    for position in range(length):
        scores = step(token, position)
        token = scores.argmax(-1)
        ids.append(token)
        logits.append(scores)
        if end is not None:
            ended |= token == end
            if bool(ended.all()):  # waits for the device, once a token
                break
    return Decoded(torch.stack(ids, 1), torch.stack(logits, 1))
