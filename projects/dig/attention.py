"""Scaled dot-product attention, by the kernel that suits the device and the phase."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
        exact: on a CPU in float32, use plain products instead of the fused kernel. That kernel's exponential is an
            approximation whose error, through Adam's division by small gradients, shows after three training steps;
            it is a little faster, and good for reading.
        allowed: bool, broadcast to `[B, heads, L, K]`; False hides a key.
    """
    if not (exact and query.device.type == "cpu" and query.dtype == torch.float32):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout) @ value
