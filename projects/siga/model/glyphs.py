"""The glyph attention network of SIGA-R and -S: character maps at two scales, a text mask, and pooled glyph
features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from common.models.attention import BidirectionalLSTM


class GlyphMaps(NamedTuple):
    """`low` and `middle`: K-channel character maps (channel 0 = background), fine and coarse; `seg_logits` [B, 2, H, W]
    or None.
    """

    low: torch.Tensor
    middle: torch.Tensor
    seg_logits: torch.Tensor | None


def unpool(in_channels: int, channels: int, kernel: int | tuple = 4, stride: int | tuple = 2) -> nn.Sequential:
    """Transposed convolution that doubles the stated sides, batch norm, ReLU."""
    deconvolution = nn.ConvTranspose2d(in_channels, channels, kernel, stride, padding=1)
    return nn.Sequential(deconvolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def conv_norm_relu(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the size stays."""
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def pool_glyphs(maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Character maps [B, K, h, w] and features [B, D, h, w] -> one feature per character [B, K-1, D].

    Each channel but the background's is a softmax over all pixels (section 3.3 of the paper).
    """
    weights = maps[:, 1:].flatten(2).softmax(dim=2)  # over the h w pixels, not over the channels
    return torch.bmm(weights, features.flatten(2).transpose(1, 2))


class GlyphAttention(nn.Module):
    """`Attention_Cls`. Feature pyramid (FPN0 full or half size, FPN1, FPN2) -> maps, and features pooled by them.

    `fpn` channels of the three maps; `svtr` chooses the S form: FPN2 has FPN1's width and half its height, and FPN0 is
    half the image's size, so one more step up leads to the mask.
    """

    def __init__(self, fpn: tuple[int, int, int], channels: int, hidden: int, classes: int, svtr: bool) -> None:
        super().__init__()
        first, reduced = (channels // 2, channels) if svtr else (channels, 2 * channels)
        second = channels * 3 // 4 if svtr else channels
        self.unpool2 = unpool(channels, first, (4, 3), (2, 1)) if svtr else unpool(channels, first)
        self.unpool3 = unpool(channels, second)
        self.unpool4 = unpool(channels, second) if svtr else nn.Identity()
        kernel = 1 if svtr else 3
        self.conv1, self.bn1 = nn.Conv2d(fpn[2], reduced, 1), nn.BatchNorm2d(reduced)
        self.conv2, self.bn2 = nn.Conv2d(reduced, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(first + fpn[1], channels, 1), nn.BatchNorm2d(channels)
        self.conv4, self.bn4 = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv5, self.bn5 = nn.Conv2d(second + fpn[0], channels, 1), nn.BatchNorm2d(channels)
        self.seg_cls = nn.Conv2d(second if svtr else channels, 2, 1)
        self.cls_Head_Middle = nn.Sequential(nn.Conv2d(channels, classes, 1))
        self.cls_Head_Low = nn.Sequential(nn.Conv2d(channels, classes, 1))
        self.Middle = conv_norm_relu(fpn[2], hidden, 3)
        self.Low = conv_norm_relu(fpn[1], hidden, 3)
        self.lstm = nn.ModuleList([BidirectionalLSTM(hidden, hidden, hidden) for _ in range(2)])

    def forward(self, fpn: list[torch.Tensor], with_mask: bool = True) -> GlyphMaps:
        """Character maps and, unless `with_mask` is off, the text mask's logits."""
        # a U-Net's way up: FPN2 gives the middle maps, with FPN1 the low maps, with FPN0 the text mask
        deep = torch.relu(self.bn1(self.conv1(fpn[2])))  # R: 8 x 32, S: 6 x 40
        deep = torch.relu(self.bn2(self.conv2(deep)))
        fine = torch.cat([self.unpool2(deep), fpn[1]], dim=1)  # R: 16 x 64, S: 12 x 40
        fine = torch.relu(self.bn3(self.conv3(fine)))
        fine = torch.relu(self.bn4(self.conv4(fine)))
        seg_logits = None
        if with_mask:
            full = torch.cat([self.unpool3(fine), fpn[0]], dim=1)  # R: 32 x 128, S: 24 x 80
            full = torch.relu(self.bn5(self.conv5(full)))
            seg_logits = self.seg_cls(self.unpool4(full))
        return GlyphMaps(self.cls_Head_Low(fine), self.cls_Head_Middle(deep), seg_logits)

    def glyphs(self, fpn: list[torch.Tensor], maps: GlyphMaps) -> tuple[torch.Tensor, torch.Tensor]:
        """Glyph feature sequences (low, middle), each [B, K-1, hidden]."""
        low = pool_glyphs(maps.low, self.Low(fpn[1]))
        middle = pool_glyphs(maps.middle, self.Middle(fpn[2]))
        return self.lstm[0](low), self.lstm[1](middle)
