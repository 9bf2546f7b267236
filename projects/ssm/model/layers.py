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


def init_weights(module: nn.Module) -> None:
    """The first weights that PARSeq's code base gives a layer: Linear and Embedding truncated normal 0.02, convolutions
    Kaiming normal by fan-out, norms 1, every bias 0. Recurrent layers and `in_proj_weight` keep torch's own."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.ones_(module.weight)
    else:
        return
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def xavier_linear(module: nn.Module) -> None:
    """MAE's first weights: Linear Xavier-uniform with zero biases; everything else keeps torch's own."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit_blocks(depth: int, dim: int, heads: int, mlp_ratio: float = 4.0) -> nn.ModuleList:
    """`depth` pre-norm ViT blocks with fused, biased qkv, exact GELU and LayerNorm eps 1e-6."""
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=vit_norm) for _ in range(depth)
    )


def run(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """`tokens` `[B, N, D]` through all blocks."""
    tokens = tokens.contiguous()  # a patch convolution leaves them channel by channel, which every norm would copy
    for block in blocks:
        tokens = block(tokens)
    return tokens


def decoding_steps(longest: int, wanted: int | None) -> int:
    """Steps of a greedy pass: characters asked for (all of them without a wish, never more; none where no word of a
    batch has a known one) and the end."""
    return (longest if wanted is None else min(wanted, longest)) + 1
