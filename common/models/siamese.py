"""Parts of networks that learn by comparing themselves with their own moving average (MoCo v3; used by DiG and SSM)."""

from __future__ import annotations

import copy
import itertools

from torch import Tensor, nn
from torch.nn import functional as F


def projection_mlp(*widths: int) -> nn.Sequential:
    """Bias-free Linear layers of these widths, BatchNorm and ReLU between them, a BatchNorm without affine part at
    the end.

    `projection_mlp(D, h, h, d)` is MoCo v3's projector, `projection_mlp(d, h, d)` its predictor. Input `[rows,
    widths[0]]`.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    layers += [nn.Linear(widths[-2], widths[-1], bias=False), nn.BatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers)


def pool_windows(tokens: Tensor, grid: tuple[int, int], windows: int) -> Tensor:
    """Mean of `windows` vertical strips of the token grid: `[B, rows * columns, D]` -> `[B, windows, D]`.

    Where `windows` does not divide the columns the strips overlap (adaptive pooling's bins).
    """
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    return F.adaptive_avg_pool2d(maps, (1, windows)).flatten(2).transpose(1, 2)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A deep copy whose parameters take no gradient."""
    return copy.deepcopy(module).requires_grad_(False)
