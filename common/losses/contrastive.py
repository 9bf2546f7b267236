"""Contrast between two encodings of the same images, with the keys of every process as candidates (MoCo v3; DiG §3.2,
SSM §3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class Contrast(NamedTuple):
    """Scalar loss and the shares, in percent, of rows whose positive is the best key and among the best five."""

    loss: Tensor
    top1: Tensor
    top5: Tensor


def distributed() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """`[N, d]` of every process, in rank order: `[world * N, d]`, without gradient. One process: `rows` itself,
    detached.

    Every process must hold the same N (a training loader drops the incomplete batch).
    """
    if not distributed() or dist.get_world_size() == 1:
        return rows.detach()
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    return torch.cat(gathered)


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Contrast:
    """2T times the cross-entropy of each query row finding its own key among the keys of all processes.

    Args:
        queries: `[N, d]`, gradients flow through these only.
        keys: `[N, d]`; row i is the positive of query i.
        temperature: T > 0. The factor 2T keeps the size of the gradient when T changes (MoCo v3, section 3).

    Rows are scaled to length 1 first; the logits are computed in float32 whatever the autocast state.
    """
    queries = F.normalize(queries.float(), dim=1)
    candidates = gather_rows(F.normalize(keys.float(), dim=1))
    rank = dist.get_rank() if distributed() else 0
    # a query's own key stands among those of its rank
    labels = torch.arange(len(queries), device=queries.device) + len(queries) * rank
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ candidates.T / temperature  # [N, world * N]
    loss = 2 * temperature * F.cross_entropy(logits, labels)
    best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices
    hit = (best == labels[:, None]).float() * 100  # [N, 5], in percent
    return Contrast(loss, hit[:, 0].mean(), hit.sum(1).mean())
