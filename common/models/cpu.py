"""What exists for speed on a CPU only. `STRLAB_CPU_KERNELS=0` in the environment turns all of it off.

Processor time on one core, with this code and without it (first two rows: medians of nine and five runs next to other
work; `docs/performance.md` has the others):

| what | time with it | numbers |
| --- | --- | --- |
| `ImageByImageAttention`, DiG's training | 0.86 of whole-batch products (batch 8, 256 tokens, 6 heads) | equal bits |
| `Adadelta` of `common/train/optim.py`, MGP-STR and SIGA-T | 0.86 of torch's step (85 M parameters) | equal bits |
| `attend_folded`, SSM's decoder in training | 1/2.97 of projecting the image's tokens | up to rounding |
| `keep_freed_memory`, every training | 70 s instead of 87 s (100 updates of TextSSR's tiny step 1) | equal bits |
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

SWITCH = "STRLAB_CPU_KERNELS"


def enabled() -> bool:
    """False where the environment variable STRLAB_CPU_KERNELS is 0: then torch's own operations do all the work."""
    return os.environ.get(SWITCH, "1") != "0"


def plain_float(tensor: Tensor) -> bool:
    """Whether this is float32 on a CPU, the only kind that these kernels take."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def split_heads(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values, each `[…, heads, N, d]`, of `[…, N, 3 * heads * d]`."""
    query, key, value = projected.unflatten(-1, (3, heads, -1)).unbind(-3)
    return query.transpose(-3, -2), key.transpose(-3, -2), value.transpose(-3, -2)


class ImageByImageAttention(torch.autograd.Function):
    """Softmax attention without dropout, image by image: `projected` `[B, N, 3 * D]`, heads -> `[B, N, D]`.

    One image's weights stay in the cache and no operand is copied into another layout, so that it costs less than
    products over the whole batch.
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
            # of P = softmax(S), mixed = P V: dV = P^T dO, dP = dO V^T, then dS, dQ = dS K, dK = dS^T Q
            to_value.copy_(scores.mT @ out)
            torch.bmm(out, value.mT, out=inner)
            torch.ops.aten._softmax_backward_data.out(inner, scores, -1, inner.dtype, grad_input=inner)
            torch.mul(inner @ key, ctx.scale, out=to_query)
            torch.mul(inner.mT @ query, ctx.scale, out=to_key)
        return found, None


def attend_folded(layer: nn.MultiheadAttention, queries: Tensor, tokens: Tensor) -> Tensor:
    """`layer`'s attention of `queries` `[B, L, dim]` over `tokens` `[B, K, dim]` that are never projected.

    (q W_q)(t W_k)^T = (q W_q W_k^T) t^T, and likewise behind the softmax for the values: with few queries it is
    cheaper to take those through W_k and W_v. The keys' bias moves all scores of a query alike, so it drops out.
    """
    query_weight, key_weight, value_weight = layer.in_proj_weight.chunk(3)
    query_bias, _, value_bias = layer.in_proj_bias.chunk(3)
    by_head = (layer.num_heads, layer.head_dim)
    batch, length = queries.shape[:2]
    heads = F.linear(queries, query_weight, query_bias).flatten(0, 1).unflatten(-1, by_head).transpose(0, 1)
    folded = heads * layer.head_dim**-0.5 @ key_weight.unflatten(0, by_head)  # [heads, B * L, dim]
    folded = folded.unflatten(1, (batch, length)).transpose(0, 1).flatten(1, 2)  # [B, heads * L, dim]
    weights = F.dropout((folded @ tokens.mT).softmax(-1), layer.dropout, layer.training)
    seen = (weights @ tokens).unflatten(1, (layer.num_heads, length)).transpose(0, 1).flatten(1, 2)
    values = (seen @ value_weight.unflatten(0, by_head).mT).unflatten(1, (batch, length)).permute(1, 2, 0, 3)
    total = weights.sum(-1).unflatten(1, (layer.num_heads, length)).mT[..., None]  # 1 before dropout
    return layer.out_proj((values + total * value_bias.unflatten(0, by_head)).flatten(2))


# of glibc's malloc.h: how much free memory goes back to the system, and from which size on a block is mapped alone
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell glibc not to give freed tensors back to the system. Returns False where that was not done: without glibc,
    or with STRLAB_CPU_KERNELS=0.

    By default each large tensor is mapped anew in every step and its pages are zeroed again, which takes up to a fifth
    of the CPU time of small models. The process then keeps the memory of its largest step.
    """
    if not enabled() or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20), (MMAP_THRESHOLD, 1 << 30))
    done = [mallopt(which, value) == 1 for which, value in settings]
    return all(done)
