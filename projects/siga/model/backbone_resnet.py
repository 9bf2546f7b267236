"""SIGA-R's backbone: ResNet-45, whose last map is folded into a row of column features, and the pyramid next to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.models.resnet import ResNet45, residual_stage


class ColumnTail:
    """Layers that turn a map of height 4 into one row of features: layer6, conv6, layer7, conv7_1, conv7_2.

    A mix-in for modules whose state dict has these names at their own level (SIGA-R's backbone, SIGA-T's head).
    """

    def build_tail(self, channels: int, depths: Sequence[int]) -> None:
        """Create the layers, all of width `channels`, with `depths` blocks in layer6 and layer7."""
        self.layer6 = residual_stage(channels, channels, depths[0])
        self.conv6, self.bn6 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.layer7 = residual_stage(channels, channels, depths[1])
        self.conv7_1 = nn.Conv2d(channels, channels, (2, 3), stride=(2, 1), padding=(0, 1), bias=False)
        self.bn7_1 = nn.BatchNorm2d(channels)
        self.conv7_2 = nn.Conv2d(channels, channels, (2, 3), stride=1, padding=(0, 1), bias=False)
        self.bn7_2 = nn.BatchNorm2d(channels)

    def run_tail(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 4, W] -> [B, C, 1, W]."""
        x = torch.relu(self.bn6(self.conv6(self.layer6(x))))
        x = torch.relu(self.bn7_1(self.conv7_1(self.layer7(x))))
        return torch.relu(self.bn7_2(self.conv7_2(x)))


class GlyphResNet(ColumnTail, ResNet45):
    """Images [B, 3, 32, 128] -> (column features [B, 512, 1, 32], [FPN0 32@32x128, FPN1 64@16x64, FPN2 256@8x32])."""

    def __init__(self, in_channels: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__(in_channels, widths, depths[:5])
        self.maxpool6 = nn.MaxPool2d((2, 3), stride=(2, 1), padding=(0, 1))
        self.build_tail(widths[5], depths[5:])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        stem, _, second, _, fourth, fifth = self.stages(images)
        return self.run_tail(self.maxpool6(fifth)), [stem, second, fourth]  # maxpool6: 8 rows -> 4


class ResNetFeatures(nn.Module):
    """The level under which the published state dict keeps the network: `FeatureExtraction.ConvNet`."""

    def __init__(self, in_channels: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.ConvNet = GlyphResNet(in_channels, widths, depths)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.ConvNet(images)
