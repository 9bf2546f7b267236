"""The recurrent decoder (`--decoder_type attention`): a GRU with additive attention over the tokens (after ASTER)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """alpha = softmax over tokens of w . tanh(sEmbed(state) + xEmbed(tokens)); names as published."""

    def __init__(self, token_dim: int, state_dim: int, dim: int) -> None:
        super().__init__()
        self.sEmbed = nn.Linear(state_dim, dim)
        self.xEmbed = nn.Linear(token_dim, dim)
        self.wEmbed = nn.Linear(dim, 1)

    def forward(self, state: Tensor, projected: Tensor) -> Tensor:
        """State `[B, S]` and `projected` = xEmbed(tokens) `[B, N, A]`, which is the same at every step -> weights
        `[B, N]`."""
        return self.wEmbed(torch.tanh(self.sEmbed(state)[:, None] + projected)).squeeze(-1).softmax(-1)


class RecurrentUnit(nn.Module):
    """Attention, embedding of the previous character, GRU and classifier."""

    def __init__(self, token_dim: int, classes: int, state_dim: int = 512) -> None:
        super().__init__()
        self.attention_unit = AdditiveAttention(token_dim, state_dim, state_dim)
        self.tgt_embedding = nn.Embedding(classes + 1, state_dim)  # the last row is the begin symbol
        self.gru = nn.GRU(token_dim + state_dim, state_dim, batch_first=True)
        self.fc = nn.Linear(state_dim, classes)


class AttentionDecoder(nn.Module):
    """Reads a word off encoder tokens `[B, N, D]` (not projected, not normalised)."""

    def __init__(self, token_dim: int, classes: int) -> None:
        super().__init__()
        self.decoder = RecurrentUnit(token_dim, classes)
        self.begin, self.classes = classes, classes

    def start(self, tokens: Tensor) -> RecurrentDecoding:
        """A decoding of these tokens from the zero state."""
        return RecurrentDecoding(self.decoder, tokens)

    def forward(self, tokens: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing with inputs `ids` `[B, L]` (begin symbol first): logits `[B, L, C]` and maps `[B, L, N]`.

        As published, steps after the longest word of the batch are not run: their rows are zeros.
        """
        decoding, steps = self.start(tokens), int(lengths.max())
        logits = torch.stack([decoding.step(ids[:, t], t) for t in range(steps)], 1)
        missing = ids.shape[1] - steps
        maps = decoding.maps()
        return tuple(nn.functional.pad(part, (0, 0, 0, missing)) for part in (logits, maps))


class RecurrentDecoding:
    """One decoding in progress; its cache is the GRU's state."""

    def __init__(self, unit: RecurrentUnit, tokens: Tensor) -> None:
        self.unit, self.tokens = unit, tokens
        self.projected = unit.attention_unit.xEmbed(tokens)
        self.state = torch.zeros_like(self.projected[:, 0])[None]  # [1, B, S]; A equals S here
        self._maps: list[Tensor] = []

    def step(self, previous: Tensor, position: int) -> Tensor:
        """Previous characters `[B]` -> logits `[B, C]` of the next; `position` is not needed here."""
        weights = self.unit.attention_unit(self.state[0], self.projected)
        context = (weights[:, None] @ self.tokens)[:, 0]  # [B, D]
        inputs = torch.cat([self.unit.tgt_embedding(previous), context], dim=1)
        output, self.state = self.unit.gru(inputs[:, None], self.state)
        self._maps.append(weights)
        return self.unit.fc(output[:, 0])

    def maps(self) -> Tensor:
        """Attention weights of the steps so far, `[B, steps, N]`."""
        return torch.stack(self._maps, 1)
