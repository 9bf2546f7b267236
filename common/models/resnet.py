"""Residual networks for word images.

`ResNet45` is the backbone introduced with ASTER-like recognisers and used, with small differences in strides and in
what follows, by SIGA, ABINet and ACDS-STR: a block is 1x1, 3x3 (stride in the second), identity or 1x1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut x); conv1 is `first_kernel` square, stride 1; conv2 is 3x3 with
    the stride.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int | tuple[int, int] = 1, first_kernel: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, first_kernel, padding=first_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride not in (1, (1, 1)) or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))).add_(shortcut))


def residual_stage(
    in_channels: int, channels: int, blocks: int, stride: int | tuple[int, int] = 1, first_kernel: int = 1
) -> nn.Sequential:
    """`blocks` BasicBlocks, the first with the stride; none at all is the identity."""
    starts = [(in_channels, stride)] + [(channels, 1)] * (blocks - 1)
    return nn.Sequential(*(BasicBlock(width, channels, step, first_kernel) for width, step in starts[:blocks]))


class ResNet45(nn.Module):
    """conv1, bn1, layer1 … layer5.

    `widths`: channels of the stem and of the five stages; `strides` of the stages. The defaults are those of SIGA,
    ABINet and ACDS-STR: images [B, 3, 32, 128] give 32@32x128 (stem), 32@16x64, 64@16x64, 128@8x32, 256@8x32, 512@8x32.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 32, 64, 128, 256, 512),
        blocks: Sequence[int] = (3, 4, 6, 6, 3),
        strides: Sequence[int | tuple[int, int]] = (2, 1, 2, 1, 1),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        for index, (count, stride) in enumerate(zip(blocks, strides), start=1):
            setattr(self, f"layer{index}", residual_stage(widths[index - 1], widths[index], count, stride))

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[stem, layer1, …, layer5] feature maps."""
        features = [self.relu(self.bn1(self.conv1(images)))]  # the stem keeps the image's size
        for index in range(1, 6):
            features.append(getattr(self, f"layer{index}")(features[-1]))
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` images -> the last stage's map."""
        return self.stages(images)[-1]


def init_he_fan_out(module: nn.Module) -> None:
    """Convolutions N(0, sqrt(2 / (k_h k_w out))), batch norms 1 and 0: the start of the published residual networks."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(
                layer.weight, 0.0, (2.0 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels)) ** 0.5
            )
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
