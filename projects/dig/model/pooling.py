"""Patch heads: encoder tokens to the instances of the contrast (section 3.2), by the names of `--patchnet_name`."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.siamese import pool_windows
from projects.dig.model.attention import attend
from projects.dig.model.encoder import Mlp, xavier_linear

NAMES = ("regular", "no_patchtrans", "conv")


class WindowMean(nn.Module):
    """`no_patchtrans`: the mean of each window, `[B, N, D]` -> `[B, W, D]`; no parameters."""

    def __init__(self, grid: tuple[int, int], windows: int) -> None:
        super().__init__()
        self.grid, self.windows = grid, windows

    def forward(self, tokens: Tensor) -> Tensor:
        return pool_windows(tokens, self.grid, self.windows)


class CrossAttention(nn.Module):
    """Windows look at all tokens; bias-free q, k, v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        split = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.linear_q(queries), self.linear_k(tokens), self.linear_v(tokens))
        ]
        return self.proj(attend(*split, exact=self.training).transpose(1, 2).flatten(2))


class WindowBlock(nn.Module):
    """Cross-attention block.

    As published, the residual adds to the *normalised* query, and one norm serves queries and tokens.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, windows: Tensor, tokens: Tensor) -> Tensor:
        windows = self.norm1(windows)  # also what the residual keeps, as published
        windows = windows + self.attn(windows, self.norm1(tokens))
        return windows + self.mlp(self.norm2(windows))


class WindowTransformer(nn.Module):
    """`regular`, the paper's patch head: pooled windows refined by two cross-attention blocks over the tokens."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], windows: int) -> None:
        super().__init__()
        self.grid, self.windows = grid, windows
        self.blocks = nn.ModuleList(WindowBlock(dim, heads) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.apply(xavier_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        windows = pool_windows(tokens, self.grid, self.windows)
        for block in self.blocks:
            windows = block(windows, tokens)
        return self.norm(windows)


class ConvHead(nn.Module):
    """`conv`: four convolutions, pooling, and one instance for the whole image: `[B, N, D]` -> `[B, 1, D]`."""

    def __init__(self, dim: int, grid: tuple[int, int], windows: int) -> None:
        super().__init__()
        self.grid, self.windows = grid, windows
        widths = [dim, dim, int(1.5 * dim), 2 * dim, 2 * dim]
        # no pooling after the last convolution, so a published grid of 8 x 32 ends as 1 x 4
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)), nn.MaxPool2d(2)]
        self.conv_layers = nn.Sequential(*layers[:-1])
        self.patches2global = nn.Sequential(
            nn.Linear(2 * dim * windows, dim),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim, affine=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        maps = self.conv_layers(tokens.transpose(1, 2).unflatten(2, self.grid))
        pooled = F.adaptive_avg_pool2d(maps, (1, self.windows))
        # window-major, channel-minor
        return self.patches2global(pooled.flatten(2).transpose(1, 2).flatten(1))[:, None]


def patch_head(name: str, dim: int, heads: int, grid: tuple[int, int], windows: int) -> nn.Module:
    """The patch head called `name`. Raises NotImplementedError for a name that is not in `NAMES`."""
    if name == "no_patchtrans":
        return WindowMean(grid, windows)
    if name == "regular":
        return WindowTransformer(dim, heads, grid, windows)
    if name == "conv":
        return ConvHead(dim, grid, windows)
    raise NotImplementedError(f"patchnet_name {name!r} is none of {', '.join(NAMES)}")
