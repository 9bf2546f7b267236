"""Small layers that the SSM pre-trainer and its recognisers share."""

from __future__ import annotations

import math
from functools import partial

from timm.models.vision_transformer import Block
from torch import Tensor, nn

vit_norm = partial(nn.LayerNorm, eps=1e-6)


class ScaledEmbedding(nn.Module):
    """Embedding times sqrt(dim): token ids of any shape -> `[..., dim]`."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.scale = math.sqrt(dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.scale * self.embedding(ids)


def vit_blocks(depth: int, dim: int, heads: int, mlp_ratio: float = 4.0) -> nn.ModuleList:
    """`depth` pre-norm ViT blocks with fused, biased qkv, exact GELU and LayerNorm eps 1e-6."""
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=vit_norm) for _ in range(depth)
    )


def run(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    for block in blocks:
        tokens = block(tokens)
    return tokens


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """`[B, C, H, W]` -> `[B, N, patch_h * patch_w * C]`; tokens row-major, vector order (dy, dx, channel)."""
    batch, channels, height, width = images.shape
    patch_h, patch_w = patch
    grid = images.reshape(batch, channels, height // patch_h, patch_h, width // patch_w, patch_w)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_h * patch_w * channels)


def unpatchify(tokens: Tensor, patch: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Inverse of `patchify` for images of `image_size` (height, width)."""
    (patch_h, patch_w), (height, width) = patch, image_size
    grid = tokens.reshape(len(tokens), height // patch_h, width // patch_w, patch_h, patch_w, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)
