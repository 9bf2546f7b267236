"""Scaled dot-product attention, by the kernel that suits the device and the phase.

On a CPU in float32 training takes plain products and torch's own softmax instead of the fused kernel: that kernel's
exponential is an approximation whose error, through Adam's division by small gradients, shows after three steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models import cpu
from common.models.cpu import split_heads


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    exact: bool = False,
    allowed: Tensor | None = None,
) -> Tensor:
    """Mix `value` `[B, heads, K, d]` for `query` `[B, heads, L, d]` -> `[B, heads, L, d]`.

    Args:
        dropout: probability of dropping an attention weight; 0 when reading.
        exact: on a CPU in float32, use plain products instead of the fused kernel, which is good for reading.
        allowed: bool, broadcast to `[B, heads, L, K]`; False hides a key.
    """
    if not (exact and cpu.plain_float(query)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # [B, heads, L, K]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout) @ value


def self_attend(projected: Tensor, heads: int, *, dropout: float = 0.0, exact: bool = False) -> Tensor:
    """Self-attention from queries, keys and values side by side, `[B, N, 3 * D]` -> `[B, N, D]`; flags as `attend`."""
    by_image = exact and not dropout and cpu.plain_float(projected) and cpu.enabled()
    if by_image and not torch.compiler.is_compiling():
        return cpu.ImageByImageAttention.apply(projected, heads)
    mixed = attend(*split_heads(projected, heads), dropout=dropout, exact=exact)
    return mixed.transpose(1, 2).flatten(2)
