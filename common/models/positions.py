"""Fixed position tables."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """MAE's one-axis table `[len(positions), dim]` float64: sines in the first half of the channels, then cosines.

    The frequencies 10000^(-k / (dim/2)) are rounded to float32 before use, as the published tables were made.
    """
    half = dim // 2
    frequencies = (1.0 / 10000 ** (torch.arange(half, dtype=torch.float32) / half)).double()
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Two-axis table `[rows * columns, dim]` float32, row-major: half of the channels for the column, half for the row.

    `dim` must be divisible by 4.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos_1d(column.flatten(), dim // 2), sincos_1d(row.flatten(), dim // 2)], dim=1).float()


def sinusoid(length: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Interleaved table `[length, dim]` float32 (Vaswani et al. 2017): sine in even channels, cosine in odd ones.

    `dtype` is the precision of the computation; published models differ in it.
    """
    position = torch.arange(length, dtype=dtype)[:, None]
    exponent = torch.arange(dim, dtype=dtype).div(2, rounding_mode="floor") * 2 / dim  # 2 i / d, each value twice
    angles = position / torch.pow(torch.tensor(10000.0, dtype=dtype), exponent)
    table = angles.sin()
    table[:, 1::2] = angles[:, 1::2].cos()
    return table.float()
