"""ABINet (Fang et al., CVPR 2021): a vision reader, a bidirectional language model on its output, a gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.positions import sinusoid
from common.models.resnet import ResNet45
from projects.ssm.model.attention import MultiheadAttention

EOS = 0


@dataclass
class Head:
    """`logits` `[B, T, C + 1]` and the features `[B, T, d]` they were read from."""

    logits: Tensor
    features: Tensor

    @property
    def lengths(self) -> Tensor:
        """Characters up to and with the first EOS, T where there is none: `[B]`, clamped to at least 2."""
        ended = self.logits.argmax(-1) == EOS
        first = ended.int().argmax(-1) + 1
        return torch.where(ended.any(-1), first, ended.shape[1]).clamp(2, ended.shape[1])


@dataclass
class Heads:
    """What one forward pass gives: the vision head and, per iteration, the language and alignment heads."""

    vision: Head
    language: list[Head]
    alignment: list[Head]


class PositionalEncoding(nn.Module):
    """Adds the fixed sinusoid `pe` `[length, 1, d]`; inputs are batch first."""

    def __init__(self, dim: int, length: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.register_buffer("pe", sinusoid(length, dim)[:, None])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(tokens + self.pe[: tokens.shape[1], 0])


class Backbone(nn.Module):
    """ResNet-45 and a few post-norm Transformer layers over its 8x32 map: `[B, 3, 32, 128]` -> `[B, d, 8, 32]`."""

    def __init__(
        self, dim: int, heads: int, hidden: int, layers: int, activation: str, dropout: float, positions: int
    ) -> None:
        super().__init__()
        self.resnet = ResNet45()
        self.pos_encoder = PositionalEncoding(dim, positions, dropout)
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout, activation, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.resnet(images)  # [B, 512, 8, 32]
        tokens = self.transformer(self.pos_encoder(maps.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).view(maps.shape[0], -1, *maps.shape[2:])  # not unflatten: see common.models.tps


def conv_unit(width_in: int, width_out: int, stride: int | tuple[int, int] = 1) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width_out, 3, stride, 1), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]


class PositionAttention(nn.Module):
    """Each of T positions attends to the map; the keys pass through a small U-Net first (paper, section 3.1)."""

    def __init__(self, length: int, dim: int, size: tuple[int, int] = (8, 32), width: int = 64) -> None:
        super().__init__()
        strides = ((1, 2), (2, 2), (2, 2), (2, 2))  # 8 x 32 -> 8 x 16, 4 x 8, 2 x 4, 1 x 2
        widths = (dim, width, width, width)
        self.k_encoder = nn.Sequential(*(nn.Sequential(*conv_unit(w, width, s)) for w, s in zip(widths, strides)))
        up = [nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *conv_unit(width, width)) for _ in range(3)]
        last = nn.Sequential(nn.Upsample(size=size, mode="nearest"), *conv_unit(width, dim))
        self.k_decoder = nn.Sequential(*up, last)
        self.pos_encoder = PositionalEncoding(dim, length, 0.0)
        self.project = nn.Linear(dim, dim)
        self.length = length

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, d, 8, 32]` -> `[B, T, d]`."""
        down, keys = [], maps
        for unit in self.k_encoder:
            keys = unit(keys)
            down.append(keys)
        for unit, skip in zip(self.k_decoder[:-1], reversed(down[:-1])):
            keys = unit(keys) + skip
        keys = self.k_decoder[-1](keys).flatten(2)
        # a query is the sinusoid of its position and nothing else
        queries = self.project(self.pos_encoder(maps.new_zeros(maps.shape[0], self.length, maps.shape[1])))
        weights = (queries @ keys / maps.shape[1] ** 0.5).softmax(-1)  # [B, T, 8 * 32]
        return weights @ maps.flatten(2).transpose(1, 2)


class ParallelAttention(nn.Module):
    """The `attention` mode of ABINet-SV: learnt position vectors, additive scores (Yu et al., CVPR 2020)."""

    def __init__(self, length: int, dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.f0_embedding = nn.Embedding(length, dim)
        self.w0 = nn.Linear(length, hidden)
        self.wv = nn.Linear(dim, dim)
        self.we = nn.Linear(dim, length)

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, d, 8, 32]` -> `[B, T, d]`."""
        tokens = maps.flatten(2).transpose(1, 2)
        # published: w0 mixes the T positions into 256, one for each cell of the 8 x 32 map
        positions = self.w0(self.f0_embedding.weight.T).T  # [256, d]
        weights = self.we(torch.tanh(positions + self.wv(tokens))).softmax(1)  # [B, 256, T], over the cells
        return weights.transpose(1, 2) @ tokens


class Vision(nn.Module):
    """`backbone`, `attention`, `cls`."""

    def __init__(self, backbone: Backbone, attention: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone, self.attention = backbone, attention
        self.cls = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Head:
        features = self.attention(self.backbone(images))
        return Head(self.cls(features), features)


class CrossLayer(nn.Module):
    """Post-norm cross-attention and feed-forward; no self-attention, which would show a position its own answer."""

    def __init__(self, dim: int, heads: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.activation = getattr(F, activation)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        queries = self.norm2(queries + self.drop(self.multihead_attn(queries, memory, mask)))
        hidden = self.drop(self.activation(self.linear1(queries)))
        return self.norm3(queries + self.drop(self.linear2(hidden)))


class Language(nn.Module):
    """BCN: each position is predicted from all the others (paper, section 3.2)."""

    def __init__(
        self, length: int, dim: int, heads: int, hidden: int, layers: int, activation: str, dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(classes, dim, bias=False)
        self.token_encoder = PositionalEncoding(dim, length, 0.1)
        self.pos_encoder = PositionalEncoding(dim, length, 0.0)
        stack = nn.ModuleList(CrossLayer(dim, heads, hidden, activation, dropout) for _ in range(layers))
        self.model = nn.ModuleDict({"layers": stack})
        self.cls = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Head:
        """`tokens` `[B, T, C + 1]` are probabilities; positions at or after `lengths` `[B]` are hidden."""
        memory = self.token_encoder(self.proj(tokens))
        queries = self.pos_encoder(torch.zeros_like(memory))  # positions only: no token may reach its own query
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        known = steps < lengths[:, None]
        mask = (steps[:, None] != steps) & known[:, None, None]  # [B, 1, T, T]: all others inside the word
        for layer in self.model["layers"]:
            queries = layer(queries, memory, mask)
        return Head(self.cls(queries), queries)


class Alignment(nn.Module):
    """A gate that mixes vision and language features (paper, section 3.3)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.w_att = nn.Linear(2 * dim, dim)
        self.cls = nn.Linear(dim, classes)

    def forward(self, language: Tensor, vision: Tensor) -> Head:
        gate = torch.sigmoid(self.w_att(torch.cat([language, vision], dim=-1)))
        features = gate * vision + (1 - gate) * language
        return Head(self.cls(features), features)
