"""SIGA-S's backbone: SVTR (Du et al., "SVTR: Scene Text Recognition with a Single Visual Model", 2022) as the paper
sets it up.

Three stages of transformer blocks over a grid that loses half its height between stages; the first blocks look only at
a window around each cell ("local mixing").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import nn

LOCAL_BLOCKS, LOCAL_WINDOW = 10, (7, 11)  # of 21 blocks; rows and columns of cells


def local_mask(grid: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
    """Additive mask [N, N] for the cells of `grid` (rows first): 0 inside the centred window (odd sides), -inf
    outside.
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    y, x = y.flatten(), x.flatten()
    near = ((y[:, None] - y).abs() <= window[0] // 2) & ((x[:, None] - x).abs() <= window[1] // 2)
    return torch.zeros(len(y), len(y)).masked_fill_(~near, float("-inf"))


class Mixer(nn.Module):
    """Multi-head self attention over all cells, or over those that `mask` [N, N] leaves."""

    def __init__(self, dim: int, heads: int, mask: torch.Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1], 3, self.heads, x.shape[2] // self.heads)
        query, key, value = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if self.mask is None else self.mask.to(query.dtype)
        )
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + mixer(norm1 x), then x + mlp(norm2 x); LayerNorm eps 1e-6, MLP ratio 4, exact GELU, stochastic depth."""

    def __init__(self, dim: int, heads: int, mask: torch.Tensor | None, drop_path: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.norm1 = norm(dim)
        self.mixer = Mixer(dim, heads, mask)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Two strided 3x3 convolutions with batch norm and GELU: [B, 3, H, W] -> (half size map, quarter size map)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj0 = self._half(in_channels, dim // 2)
        self.proj1 = self._half(dim // 2, dim)

    @staticmethod
    def _half(in_channels: int, channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.GELU())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.proj0(images)
        return half, self.proj1(half)


class SubSample(nn.Module):
    """A map [B, C, h, w] -> tokens [B, h/2 w, out] by a 3x3 convolution of stride (2, 1) and LayerNorm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=(2, 1), padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).flatten(2).transpose(1, 2))


class SvtrFeatures(nn.Module):
    """Images [B, 3, 48, 160] -> (column features [B, 384, 1, 40], [FPN0 96@24x80, FPN1 192@12x40, FPN2 256@6x40])."""

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        columns: int,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        height, self.width = image_size[0] // 4, image_size[1] // 4  # 12 x 40 cells of a 48 x 160 image
        rates = [drop_path * index / (sum(depths) - 1) for index in range(sum(depths))]
        self.pos_embed = nn.Parameter(torch.zeros(1, height * self.width, dims[0]))
        nn.init.xavier_normal_(self.pos_embed)
        self.patch_embed = PatchEmbed(in_channels, dims[0])
        for stage in range(3):
            grid, first = (height >> stage, self.width), sum(depths[:stage])  # 12, 6, 3 rows; the width stays
            local = local_mask(grid, LOCAL_WINDOW)  # not in the published state dict, so a buffer that is not saved
            blocks = [
                Block(
                    dims[stage],
                    heads[stage],
                    local if index < min(LOCAL_BLOCKS, (sum(depths) + 1) // 2) else None,
                    rates[index],
                )
                for index in range(first, first + depths[stage])
            ]
            setattr(self, f"blocks{stage + 1}", nn.ModuleList(blocks))
            if stage < 2:
                setattr(self, f"sub_sample{stage + 1}", SubSample(dims[stage], dims[stage + 1]))
        self.last_conv = nn.Conv2d(dims[2], columns, 1, bias=False)
        self.norm = nn.LayerNorm(dims[2], eps=1e-6)

    def _map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], -1, self.width)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        half, quarter = self.patch_embed(images)
        tokens = quarter.flatten(2).transpose(1, 2) + self.pos_embed  # [B, N, dims[0]]
        pyramid = [half]  # FPN0, then the first two stages before their subsampling
        for stage in (1, 2, 3):
            for block in getattr(self, f"blocks{stage}"):
                tokens = block(tokens)
            if stage < 3:
                pyramid.append(self._map(tokens))
                tokens = getattr(self, f"sub_sample{stage}")(pyramid[-1])
        rows = self._map(self.norm(tokens)).mean(dim=2, keepdim=True)  # the 3 rows that are left become one
        return F.hardswish(self.last_conv(rows)), pyramid
