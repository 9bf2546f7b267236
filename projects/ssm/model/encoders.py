"""Image encoders of TransOCR, ClusterSeq and PARSeq: crops `[B, 3, H, W]` -> tokens `[B, N, D]`."""

from __future__ import annotations

import torch
from timm.layers import Mlp, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.positions import sinusoid
from common.models.vit import PlainViT
from projects.ssm.model.layers import run, vit_norm, xavier_linear


class ViTEncoder(PlainViT):
    """The plain ViT without class token and head, with learnable positions (`standard=true`)."""

    def __init__(
        self, img_size: tuple[int, int], patch_size: tuple[int, int], dim: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__(tuple(img_size), tuple(patch_size), dim, depth, heads, class_token=False, mlp_ratio=mlp_ratio)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(run(self.blocks, self.embed(images)))


class SplitAttention(nn.Module):
    """Self-attention with three bias-free projections and separate q, k, v biases; the key bias is zero and frozen."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.k_bias = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.linear_q = nn.Linear(dim, dim, bias=False)
        self.linear_k = nn.Linear(dim, dim, bias=False)
        self.linear_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        projections = ((self.linear_q, self.q_bias), (self.linear_k, self.k_bias), (self.linear_v, self.v_bias))
        q, k, v = (
            F.linear(tokens, linear.weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, bias in projections
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SplitBlock(nn.Module):
    """Block around `SplitAttention`; as published, its first residual starts from the *normalised* tokens."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = vit_norm(dim)
        self.attn = SplitAttention(dim, heads)
        self.norm2 = vit_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens)  # the residual keeps this, not what came in
        tokens = tokens + self.attn(tokens)
        return tokens + self.mlp(self.norm2(tokens))


class SplitEncoder(nn.Module):
    """The MAE-style ViT with a fixed one-axis sinusoid over the token index (`standard=false`)."""

    def __init__(
        self, img_size: tuple[int, int], patch_size: tuple[int, int], dim: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(tuple(img_size), tuple(patch_size), 3, dim)
        self.blocks = nn.ModuleList(SplitBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = vit_norm(dim)
        self.register_buffer("positions", sinusoid(self.patch_embed.num_patches, dim)[None], persistent=False)
        self.apply(xavier_linear)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(run(self.blocks, self.patch_embed(images) + self.positions))
