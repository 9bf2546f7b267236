"""The ViT encoder of DiG (section 3.1; BEiT's layout): no key bias, a fixed sinusoid, an optional mask token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.cpu import split_heads
from common.models.positions import sinusoid
from projects.dig.model.attention import self_attend


@dataclass(frozen=True)
class EncoderSize:
    """Width, blocks and heads of a variant, the side of its square patches in pixels, the pixel projector's hidden
    width.
    """

    dim: int
    heads: int
    depth: int = 12
    patch: int = 4
    pixel_hidden: int = 512

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of (height, width)."""
        return image_size[0] // self.patch, image_size[1] // self.patch


SIZES = {
    "tiny": EncoderSize(192, 3),
    "small": EncoderSize(384, 6),
    "base": EncoderSize(512, 8),
    # additional, for CPUs and smoke tests: 64 tokens instead of 256, about 0.8 M parameters
    "micro": EncoderSize(128, 4, depth=4, patch=8, pixel_hidden=128),
}


class Attention(nn.Module):
    """Self-attention `[B, N, D]` -> `[B, N, D]`; one product makes q, k and v, the key bias being constantly 0."""

    def __init__(self, dim: int, heads: int, attention_drop: float = 0.0, drop: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        # BEiT's: a bias of the keys moves all scores of a query alike and is lost in the softmax, so there is none
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.attn_drop = nn.Dropout(attention_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values side by side, `[B, N, 3 * D]`."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(tokens, self.qkv.weight, bias)

    def forward(self, tokens: Tensor) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        exact = self.training and torch.is_grad_enabled()  # see projects.dig.model.attention
        mixed = self_attend(self.project(tokens), self.heads, dropout=dropout, exact=exact)
        return self.proj_drop(self.proj(mixed))

    def weights(self, tokens: Tensor) -> Tensor:
        """The attention matrix `[B, heads, N, N]` (for pictures; no dropout)."""
        query, key, _ = split_heads(self.project(tokens), self.heads)
        return (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, one dropout at the end."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(tokens))))


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth per sample."""

    def __init__(self, dim: int, heads: int, drop: float, attention_drop: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, attention_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim, drop)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: `[B, 3, H, W]` -> `[B, N, D]`, row-major."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        # one copy here, or every later sum and norm would inherit the maps' order in memory and copy or crawl
        return self.proj(images).flatten(2).transpose(1, 2).contiguous()


class Encoder(nn.Module):
    """Images `[B, 3, H, W]` in [-1, 1] -> tokens `[B, N, D]`.

    Args:
        size: the variant.
        image_size: (height, width), divisible by the patch.
        final_norm: LayerNorm after the last block; the contrastive pre-trainers have none (an identity without keys).
        drop, attention_drop, drop_path: dropout of projections, of attention weights, stochastic depth (linear from 0).
    """

    def __init__(
        self,
        size: EncoderSize,
        image_size: tuple[int, int] = (32, 128),
        *,
        final_norm: bool = True,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size[0] % size.patch or image_size[1] % size.patch:
            raise ValueError(f"image size {image_size} is not divisible by the patch size {size.patch}")
        self.dim, self.depth = size.dim, size.depth
        self.grid, self.patch = size.grid(image_size), size.patch
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.patch_embed = PatchEmbed(size.patch, size.dim)
        # a constant that published checkpoints do not hold
        self.register_buffer("positions", sinusoid(self.grid[0] * self.grid[1], size.dim)[None], persistent=False)
        rates = torch.linspace(0, drop_path, size.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(size.dim, size.heads, drop, attention_drop, rate) for rate in rates)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6) if final_norm else nn.Identity()
        self.apply(xavier_linear)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` bool `[B, N]`: tokens replaced by the mask token after the patch embedding; all get positions."""
        tokens = self.patch_embed(images)
        if mask is not None:
            # as SimMIM, not as MAE: hidden tokens pass the encoder too, so all N are computed
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + self.positions.to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def xavier_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases of Linear layers; everything else stays at the framework's default."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
