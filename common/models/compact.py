"""A compact convolutional reader with a CTC head: the architecture of the default reader (not from one of the papers).

Convolutions bring a 32x128 crop down to one row of 32 columns, a few transformer blocks let the columns see each other,
and a linear layer gives each column a character or the CTC blank. It is sized so that two processor cores can train it
and one core reads more than a hundred words a second.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 192)


class ConvNorm(nn.Sequential):
    """3x3 convolution without bias, batch norm, ReLU. `[B, in, H, W]` -> `[B, out, H / stride[0], W / stride[1]]`."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut: `[B, C, H, W]` -> `[B, C, H, W]`. The last norm starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)  # so that each residual block begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Block(nn.Module):
    """A pre-norm transformer block: `[B, T, D]` -> `[B, T, D]`."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class CompactReader(nn.Module):
    """float32 `[B, 3, 32, 128]` in [-1, 1] -> logits `[B, 32, classes]`; class 0 is the CTC blank."""

    def __init__(self, classes: int, widths: tuple[int, ...] = WIDTHS, depth: int = 3, heads: int = 6) -> None:
        super().__init__()
        a, b, c, d = widths
        self.trunk = nn.Sequential(
            ConvNorm(3, a, (2, 2)),  # 16 x 64
            ConvNorm(a, b, (2, 2)),  # 8 x 32: four pixels a column
            Residual(b),
            ConvNorm(b, c, (2, 1)),  # 4 x 32
            Residual(c),
            ConvNorm(c, d, (2, 1)),  # 2 x 32
            Residual(d),
            nn.Conv2d(d, d, (2, 1), bias=False),  # 1 x 32
            nn.BatchNorm2d(d),
        )
        self.position = nn.Parameter(torch.zeros(1, 32, d))
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        columns = self.trunk(images).squeeze(2).transpose(1, 2)  # [B, 32, D]
        return self.head(self.norm(self.blocks(columns + self.position)))
