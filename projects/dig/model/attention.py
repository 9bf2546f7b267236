"""Scaled dot-product attention, by the kernel that suits the device and the phase.

On a CPU in float32 training takes plain products and torch's own softmax instead of the fused kernel: that kernel's
exponential is an approximation whose error, through Adam's division by small gradients, shows after three steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
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
        exact: on a CPU in float32, use plain products instead of the fused kernel, which is good for reading.
        allowed: bool, broadcast to `[B, heads, L, K]`; False hides a key.
    """
    if not (exact and plain_cpu(query)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout) @ value


def self_attend(projected: Tensor, heads: int, *, dropout: float = 0.0, exact: bool = False) -> Tensor:
    """Self-attention from queries, keys and values side by side, `[B, N, 3 * D]` -> `[B, N, D]`; flags as `attend`."""
    if exact and not dropout and plain_cpu(projected) and not torch.compiler.is_compiling():
        return PlainAttention.apply(projected, heads)
    mixed = attend(*split_heads(projected, heads), dropout=dropout, exact=exact)
    return mixed.transpose(1, 2).flatten(2)


def plain_cpu(tensor: Tensor) -> bool:
    """Whether this is float32 on a CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def split_heads(projected: Tensor, heads: int) -> Iterable[Tensor]:
    """Views of queries, keys and values, each `[…, heads, N, d]`, of `[…, N, 3 * heads * d]`."""
    return (part.transpose(-3, -2) for part in projected.unflatten(-1, (3, heads, -1)).unbind(-3))


class PlainAttention(torch.autograd.Function):
    """Plain attention image by image: one image's weights stay in the cache and no operand is copied into another
    layout, so that it costs less than whole-batch products, with the same bits.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, projected: Tensor, heads: int) -> Tensor:
        batch, tokens, width = projected.shape
        ctx.heads, ctx.scale = heads, (width // 3 // heads) ** -0.5
        weights = projected.new_empty(batch, heads, tokens, tokens)
        mixed = projected.new_empty(batch, tokens, width // 3)
        for rows, scores, out in zip(projected, weights, mixed):
            query, key, value = split_heads(rows, heads)
            torch.baddbmm(scores, query, key.mT, beta=0, alpha=ctx.scale, out=scores)
            torch.softmax(scores, -1, out=scores)
            out.unflatten(-1, (heads, -1)).copy_((scores @ value).transpose(0, 1))
        ctx.save_for_backward(projected, weights)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        projected, weights = ctx.saved_tensors
        found = torch.empty_like(projected)
        inner = torch.empty_like(weights[0])  # of the weights, then of the scores
        for rows, scores, out, into in zip(projected, weights, gradient, found):
            query, key, value = split_heads(rows, ctx.heads)
            to_query, to_key, to_value = split_heads(into, ctx.heads)
            out = out.unflatten(-1, (ctx.heads, -1)).transpose(0, 1)
            to_value.copy_(scores.mT @ out)
            torch.bmm(out, value.mT, out=inner)
            torch.ops.aten._softmax_backward_data.out(inner, scores, -1, inner.dtype, grad_input=inner)
            torch.mul(inner @ key, ctx.scale, out=to_query)
            torch.mul(inner.mT @ query, ctx.scale, out=to_key)
        return found, None
