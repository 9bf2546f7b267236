"""ACDS-STR ("Attention Guidance by Cross-Domain Supervision Signals for Scene Text Recognition", IEEE TIP 2025).

A ResNet-45 feeds a ViT and, through a small feature pyramid, predicts a map of the characters' core areas. The map
shifts the head-averaged attention of three late blocks, which re-mixes the tokens of a second, guided stream; a gate
joins both streams and an attention-free decoder of 1x1 convolutions over the token axis gives the characters. Spec
section 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from common.models.resnet import ResNet45, init_he_fan_out
from common.models.vit import PlainViT
from projects.mgpstr.model.a3 import apply_grouped
from projects.mgpstr.model.losses import logits_loss, mask_loss
from projects.mgpstr.model.mgp_str import Decoded, Reading

MASK_WEIGHT = 0.5


def mix_1x1(conv: nn.Conv2d, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """conv(cat[nearest x2 of coarse, fine]) for a 1x1 convolution, the coarse part multiplied before it is enlarged."""
    split = coarse.shape[1]
    # a 1x1 convolution and nearest enlargement commute, so the coarse channels are mixed on a quarter of the pixels
    return F.interpolate(F.conv2d(coarse, conv.weight[:, :split]), scale_factor=2) + F.conv2d(
        fine, conv.weight[:, split:]
    )


class MapBackbone(ResNet45):
    """ResNet-45 with two feature-pyramid steps, `smooth.0` (1/2 of the size) and `smooth.1` (full size).

    `stage_widths` are the channels of the stem and the five stages.
    """

    def __init__(self, stage_widths: tuple[int, ...] = (32, 32, 64, 128, 256, 512)) -> None:
        super().__init__(widths=stage_widths)
        half = stage_widths[4] + stage_widths[2]  # 256 + 64 channels at 16 x 64
        full = half + stage_widths[0]  # and the stem's 32 at 32 x 128: 352
        self.width = full
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)) for width in (half, full)
        )
        init_he_fan_out(self)

    def pyramid(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Stage maps (stem, layer1 … layer5) -> [B, 352, 32, 128]."""
        (conv0, norm0), (conv1, norm1) = self.smooth
        half = norm0(mix_1x1(conv0, stages[4], stages[2]))
        return norm1(mix_1x1(conv1, half, stages[0]))


class TokenDecoder(nn.Module):
    """The attention-free decoder: tokens to positions, channels to classes, all linear, then a LayerNorm."""

    def __init__(self, dim: int, tokens: int, length: int, num_classes: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.tokenLearner1 = nn.Sequential(
            nn.Conv2d(tokens, tokens, 1, bias=False), nn.Conv2d(tokens, length, 1, bias=False)
        )
        self.tokenLearner2 = nn.Sequential(
            nn.Conv2d(dim, dim, 1, groups=8, bias=False), nn.Conv2d(dim, num_classes, 1, bias=False)
        )
        self.norm_1 = nn.LayerNorm(num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N + 1, D] -> logits [B, T, C]. Both products over the token axis are multiplied out first."""
        inner, outer = (layer.weight.flatten(1) for layer in self.tokenLearner1)  # [N + 1, N + 1], [T, N + 1]
        positions = (outer @ inner) @ self.token_norm(tokens)  # [B, T, D]
        grouped, classes = self.tokenLearner2
        return self.norm_1(F.linear(apply_grouped(grouped.weight, positions), classes.weight.flatten(1)))


class AcdsViT(PlainViT):
    """The network inside the wrapper; the files hold `patch_embed`, `head`, `char_head`, which are not applied."""

    def __init__(
        self, num_classes: int, length: int, first_guided: int, stage_widths: tuple[int, ...] | None = None, **vit
    ) -> None:
        super().__init__(num_classes=num_classes, **vit)
        self.first_guided = first_guided
        self.conv_class = nn.Parameter(torch.zeros(1, 1, 1))  # g of the class token, which lies on no pixel
        self.gated = nn.Parameter(torch.zeros(1, 2 * self.embed_dim, self.embed_dim))  # zero: both streams count half
        self.char_tokenLearner = TokenDecoder(self.embed_dim, self.pos_embed.shape[1], length, num_classes)
        self.cnnBackbone = MapBackbone(stage_widths) if stage_widths else MapBackbone()
        width, last = self.cnnBackbone.width, self.cnnBackbone.layer5[-1].bn2.num_features
        self.conv1 = nn.Conv2d(last, self.embed_dim, 3, padding=1, bias=False)
        self.conv_fpn = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.Conv2d(width, 1, 1, bias=False))
        self.char_head = nn.Linear(self.embed_dim, num_classes)
        for unused in (self.patch_embed, self.head, self.char_head):
            unused.requires_grad_(False)

    def character_map(self, pyramid: torch.Tensor) -> torch.Tensor:
        """[B, 352, H, W] -> F [B, 1, H, W], unbounded: two 1x1 convolutions with nothing between, multiplied out."""
        inner, outer = (layer.weight.flatten(1) for layer in self.conv_fpn)
        return F.conv2d(pyramid, (outer @ inner)[..., None, None])

    def guidance(self, maps: torch.Tensor) -> torch.Tensor:
        """F -> g [B, N + 1, 1]: every 4th pixel of every 4th row, the class token's own scalar first."""
        cells = maps[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        return torch.cat([self.conv_class.expand(cells.shape[0], -1, -1).to(cells.dtype), cells], dim=1)

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """layer5's map [B, 512, 8, 32] -> tokens [B, 257, D]."""
        cells = self.conv1(features).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(cells.shape[0], -1, -1).to(cells.dtype), cells], dim=1) + self.pos_embed

    def guided(self, attention: torch.Tensor, guidance: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """sigmoid(mean attention + g) as a mixing matrix: it shifts whole rows and is not normalised, as published."""
        return self.norm(mixing(attention, guidance) @ tokens)

    def streams(self, tokens: torch.Tensor, guidance: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both streams through the blocks, all tensors [B, N + 1, D].

        Returns:
            `x`: the main stream's end; `block`: the last block on the guided stream; `z`: its end; `fused`: both.
        """
        first, z, block_z, attention = self.first_guided, None, None, None
        for index, block in enumerate(self.blocks):
            if index == first:  # the guided stream z branches off here
                tokens, attention = block_with_attention(block, tokens)
                z = self.guided(attention, guidance, tokens)
                continue
            tokens = block(tokens)
            if first < index <= first + 2:  # both streams pass the same block, with the same weights
                block_z, attention = block_with_attention(block, z)
                z = self.guided(attention, guidance, block_z)
        # `attention` is that of the last block on the guided stream
        joined = self.norm(mixing(attention, guidance) @ tokens + z)
        gate = (torch.cat([tokens, joined], dim=-1) @ self.gated[0]).sigmoid()
        return {"x": tokens, "block": block_z, "z": z, "fused": gate * tokens + (1 - gate) * joined}


def mixing(attention: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
    """Head-averaged attention [B, N, N] + g [B, N, 1] -> sigmoid."""
    return (attention + guidance).sigmoid()


def block_with_attention(block: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A transformer block's output [B, N, D] and its softmax attention averaged over the heads [B, N, N]."""
    attn = block.attn
    batch, count, dim = tokens.shape
    query, key, value = attn.qkv(block.norm1(tokens)).view(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    # spelled out, since timm's fused attention does not give its weights [B, heads, N, N]
    weights = (query * attn.scale @ key.transpose(-2, -1)).softmax(-1)
    tokens = tokens + attn.proj((weights @ value).transpose(1, 2).reshape(batch, count, dim))
    return tokens + block.mlp(block.norm2(tokens)), weights.mean(1)


class AcdsStr(nn.Module):
    """`Model` of the published code: everything stands under `acds_str.`.

    Args:
        num_classes, length: as for MGP-STR; the published 38 and 27 are not hard-wired.
        first_guided: index of the first block that guides (Base 7, Small 3).
        vit: dim, depth, heads of the transformer; `stage_widths` of the residual network.
    """

    granularities = ("char",)

    def __init__(self, num_classes: int = 38, length: int = 27, first_guided: int = 7, **options) -> None:
        super().__init__()
        self.still = ()
        self.acds_str = AcdsViT(num_classes, length, first_guided, **options)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        return self.acds_str.patch_embed.grid_size

    def maps_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, 32, 128] in [0, 1] -> map F [B, 1, 32, 128] and logits [B, T, C]."""
        net = self.acds_str
        stages = net.cnnBackbone.stages(images)  # stem, layer1 … layer5
        maps = net.character_map(net.cnnBackbone.pyramid(stages))
        streams = net.streams(net.embed_features(stages[5]), net.guidance(maps))
        return maps, net.char_tokenLearner(streams["fused"])

    def forward(self, images: torch.Tensor, is_eval: bool = False) -> list:
        """[logits, F], or with `is_eval` [[logits], logits, F], as published."""
        maps, logits = self.maps_and_logits(images)
        return [[logits], logits, maps] if is_eval else [logits, maps]

    def losses(
        self,
        images: torch.Tensor,
        targets: Mapping[str, torch.Tensor],
        masks: torch.Tensor | None = None,
        mask_logits: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy of the characters as `char` and, where masks are given, 0.5 times the mask loss as `mask`.

        `masks` [B, 32, 128] of 0 and 1. The sum of the losses is minimised.
        """
        maps, logits = self.maps_and_logits(images)
        losses = {"char": logits_loss(logits, targets["char"])}
        if masks is not None:
            losses["mask"] = MASK_WEIGHT * mask_loss(maps.squeeze(1), masks, with_logits=mask_logits)
        return losses

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> Reading:
        """Arg-max ids and probabilities of the characters, and the map."""
        maps, logits = self.maps_and_logits(images)
        probs, ids = logits[:, 1:].float().softmax(-1).max(-1)
        return Reading({"char": Decoded(ids, probs)}, {"map": maps.squeeze(1).float()}, logits)

    @torch.no_grad()
    def character_loss(self, reading: Reading, targets: torch.Tensor) -> torch.Tensor:
        """The characters' cross-entropy of what was read; targets int64 [B, T], 0 = ignore."""
        return logits_loss(reading.characters, targets)

    def freeze_map_branch(self, statistics: bool = False) -> int:
        """`--freeze`: no gradient for conv1, bn1, smooth and layer1-4 of the CNN; conv_fpn and layer5 stay trainable.

        As published the running statistics of the frozen batch norms still move in train mode; `statistics` keeps them.
        Returns the number of parameters that are frozen.
        """
        frozen = [child for name, child in self.acds_str.cnnBackbone.named_children() if name != "layer5"]
        for child in frozen:
            child.requires_grad_(False)
        self.still += tuple(frozen) if statistics else ()
        return sum(parameter.numel() for child in frozen for parameter in child.parameters())

    def train(self, mode: bool = True) -> AcdsStr:
        """As in torch; parts frozen with their statistics stay in eval mode."""
        super().train(mode)
        for child in self.still:
            child.eval()
        return self
