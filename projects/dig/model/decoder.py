"""The autoregressive Transformer decoder of DiG's recogniser (section 3.4; layer layout of SATRN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.decoders import KeyValueCache
from common.models.positions import sinusoid
from projects.dig.model.attention import attend


@dataclass(frozen=True)
class DecoderSize:
    """Layers, width (= embedding), heads, width of a head, hidden width of the feed-forward part."""

    layers: int
    dim: int
    heads: int
    head_dim: int
    hidden: int


SIZES = {
    "tf_decoder": DecoderSize(6, 512, 8, 64, 256),
    "small_tf_decoder": DecoderSize(2, 384, 6, 64, 192),
    "corres_tiny_tf_decoder": DecoderSize(6, 192, 8, 24, 768),
    "corres_small_tf_decoder": DecoderSize(6, 384, 8, 48, 1536),
    "corres_base_tf_decoder": DecoderSize(6, 512, 8, 64, 2048),
    # additional, for CPUs and smoke tests
    "micro_tf_decoder": DecoderSize(2, 128, 4, 32, 256),
}
DROPOUT = 0.1  # fixed in the published decoder: embedding, attention weights and outputs, feed-forward part


class MultiHeadAttention(nn.Module):
    """Bias-free attention of queries `[B, L, D]` over keys and values; dropout on weights and output."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        inner = size.heads * size.head_dim
        self.heads = size.heads
        self.linear_q = nn.Linear(size.dim, inner, bias=False)
        self.linear_k = nn.Linear(size.dim, inner, bias=False)
        self.linear_v = nn.Linear(size.dim, inner, bias=False)
        self.fc = nn.Linear(inner, size.dim, bias=False)
        self.attn_drop = nn.Dropout(DROPOUT)
        self.proj_drop = nn.Dropout(DROPOUT)

    def split(self, tokens: Tensor) -> Tensor:
        """`[B, L, heads * d]` -> `[B, heads, L, d]`."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `tokens` `[B, K, D]`, each `[B, heads, K, d]`."""
        return self.split(self.linear_k(tokens)), self.split(self.linear_v(tokens))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Mix `values` for `queries` `[B, L, D]`: `[B, L, D]`; `allowed` bool, broadcast to `[B, heads, L, K]`."""
        dropout = self.attn_drop.p if self.training else 0.0
        queries = self.split(self.linear_q(queries))
        mixed = attend(queries, keys, values, dropout=dropout, exact=self.training, allowed=allowed)
        return self.proj_drop(self.fc(mixed.transpose(1, 2).flatten(2)))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights before dropout, averaged over heads: `[B, L, K]`."""
        queries = self.split(self.linear_q(queries))
        return (queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5).softmax(-1).mean(1)


class ConditionedAttention(MultiHeadAttention):
    """Cross attention whose memory is modulated by each query (`--text_cond_vis`): O(L * K * D^2) operations."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__(size)
        self.gamma_decode = nn.Linear(size.dim, 2 * size.dim)
        self.vis_proj = nn.Linear(size.dim, size.dim)
        self.vis_norm = nn.LayerNorm(size.dim)
        self.vis_cond_norm = nn.LayerNorm(size.dim)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The memory itself and its normalised projection, both `[B, K, D]`: keys depend on the query here."""
        return tokens, self.vis_norm(self.vis_proj(tokens))

    def condition(self, queries: Tensor, memory: Tensor, projected: Tensor) -> Tensor:
        """Memory as each query sees it: `[B, L, K, D]`."""
        # FiLM (Perez et al. 2018): every query scales and shifts the whole memory
        gamma, beta = self.gamma_decode(queries).tanh()[:, :, None].chunk(2, dim=-1)  # [B, L, 1, D] each
        return memory[:, None] + self.vis_cond_norm(gamma * projected[:, None] + beta)

    def per_query(self, tokens: Tensor) -> Tensor:
        """`[B, L, K, heads * d]` -> `[B, L, heads, K, d]`."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def scores(self, queries: Tensor, seen: Tensor) -> Tensor:
        """Softmaxed weights `[B, L, heads, 1, K]` of each query over its own memory `[B, L, K, D]`."""
        keys = self.per_query(self.linear_k(seen))
        queries = self.linear_q(queries).unflatten(-1, (self.heads, 1, -1))
        return (queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5).softmax(-1)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None) -> Tensor:
        seen = self.condition(queries, keys, values)
        weights = self.attn_drop(self.scores(queries, seen))
        mixed = weights @ self.per_query(self.linear_v(seen))
        return self.proj_drop(self.fc(mixed.flatten(2)))

    def weights(self, queries: Tensor, keys: Tensor, values: Tensor | None = None) -> Tensor:
        projected = self.vis_norm(self.vis_proj(keys)) if values is None else values
        return self.scores(queries, self.condition(queries, keys, projected))[..., 0, :].mean(2)


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear, dropout."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.w_1 = nn.Linear(size.dim, size.hidden)
        self.w_2 = nn.Linear(size.hidden, size.dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.w_2(self.dropout(F.gelu(self.w_1(tokens)))))


class DecoderLayer(nn.Module):
    """Pre-norm layer: masked self-attention, attention over the image (not normalised here), feed-forward."""

    def __init__(self, size: DecoderSize, conditioned: bool) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(size)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size.dim) for _ in range(3))
        self.enc_attn = (ConditionedAttention if conditioned else MultiHeadAttention)(size)
        self.mlp = FeedForward(size)

    def forward(
        self,
        tokens: Tensor,
        memory: tuple[Tensor, Tensor],
        allowed: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`tokens` `[B, L, D]` and `memory` (the layer's keys and values) -> new tokens and the cross-attention
        queries, both `[B, L, D]`."""
        normed = self.norm1(tokens)
        keys, values = self.self_attn.keys_values(normed)  # of the new tokens; the cache has those before
        if cache is not None:
            keys, values = cache.append(keys, values)
        tokens = tokens + self.self_attn.attend(normed, keys, values, allowed)
        queries = self.norm2(tokens)
        tokens = tokens + self.enc_attn.attend(queries, *memory)
        return tokens + self.mlp(self.norm3(tokens)), queries


class PositionTable(nn.Module):
    """Holds the decoder's fixed table, which published checkpoints carry as `position_enc.position_table` `[1, 200,
    D]`."""

    def __init__(self, dim: int, length: int = 200) -> None:
        super().__init__()
        self.register_buffer("position_table", sinusoid(length, dim, dtype=torch.float32)[None])


class TransformerDecoder(nn.Module):
    """Reads a word off the memory, left to right.

    Args:
        size: one of `SIZES`.
        classes: output classes; the begin symbol is id `classes` and has an embedding only.
        conditioned: modulate the memory by each query in cross attention.
    """

    def __init__(self, size: DecoderSize, classes: int, conditioned: bool = False) -> None:
        super().__init__()
        self.begin = classes
        self.trg_word_emb = nn.Embedding(classes + 1, size.dim)
        self.position_enc = PositionTable(size.dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.layer_stack = nn.ModuleList(DecoderLayer(size, conditioned) for _ in range(size.layers))
        self.layer_norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.classifier = nn.Linear(size.dim, classes)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Ids `[B, L]` at positions `start` … -> `[B, L, D]`; the embedding is not scaled by sqrt(D)."""
        positions = self.position_enc.position_table[:, start : start + ids.shape[1]]
        return self.dropout(self.trg_word_emb(ids) + positions)

    def memories(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of the image tokens `[B, K, D]`."""
        return [layer.enc_attn.keys_values(memory) for layer in self.layer_stack]

    def forward(
        self, memory: Tensor, ids: Tensor, lengths: Tensor, attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: logits `[B, L, C]` of each next token and, if asked for, the last layer's maps `[B, L, K]`.

        Args:
            memory: `[B, K, D]`.
            ids: `[B, L]` inputs, the begin symbol first.
            lengths: `[B]`, tokens that may be attended to (word length + 1).
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        # causal, and no key behind the word's end: [B, 1, L, L]
        allowed = ((steps <= steps[:, None]) & (steps < lengths[:, None, None]))[:, None]
        tokens, queries, layer_memory = self.embed(ids), memory, (memory, memory)
        for layer, layer_memory in zip(self.layer_stack, self.memories(memory)):
            tokens, queries = layer(tokens, layer_memory, allowed)
        maps = self.layer_stack[-1].enc_attn.weights(queries, layer_memory[0]) if attention else None
        return self.classifier(self.layer_norm(tokens)), maps


class Decoding:
    """One decoding in progress: `step(tokens [B], position)` -> logits `[B, C]`, with cached keys and values.

    Args:
        decoder: in eval mode.
        memory: `[B, K, D]` image tokens.
        length: tokens that will be made.
        attention: also keep the last layer's maps, read with `maps()` as `[B, steps, K]`.
        growing: see `KeyValueCache`.
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        memory: Tensor,
        length: int,
        attention: bool = False,
        growing: bool = False,
    ) -> None:
        self.decoder, self.attention = decoder, attention
        self.memories = decoder.memories(memory)
        self.caches = [KeyValueCache(length, growing) for _ in self.memories]
        self._maps: list[Tensor] = []

    def step(self, tokens: Tensor, position: int) -> Tensor:
        hidden, queries = self.decoder.embed(tokens[:, None], position), None
        for layer, memory, cache in zip(self.decoder.layer_stack, self.memories, self.caches):
            hidden, queries = layer(hidden, memory, cache=cache)
        if self.attention:
            self._maps.append(self.decoder.layer_stack[-1].enc_attn.weights(queries, self.memories[-1][0])[:, 0])
        return self.decoder.classifier(self.decoder.layer_norm(hidden[:, 0]))

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue the history of row `rows[i]`; rows of one image share its memory, so that stays."""
        for cache in self.caches:
            cache.reorder(rows)

    def maps(self) -> Tensor | None:
        return torch.stack(self._maps, 1) if self._maps else None
