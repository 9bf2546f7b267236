"""From uint8 pixels to what a network takes, and images as sequences of patch vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_float_nchw(
    images: torch.Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> torch.Tensor:
    """Scale uint8 NHWC pixels to [0, 1], subtract `mean`, divide by `std` (both per channel, in the [0, 1] scale).

    `images` [B, H, W, C] uint8 on any device; returns float32 [B, C, H, W] in the default memory format. Without `mean`
    and `std` the values stay in [0, 1].
    """
    scaled = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if mean is None and std is None:
        return scaled
    channels = scaled.shape[1]
    shift = torch.tensor(mean or (0.0,) * channels, device=scaled.device).view(-1, 1, 1)
    scale = torch.tensor(std or (1.0,) * channels, device=scaled.device).view(-1, 1, 1)
    return scaled.sub_(shift).div_(scale)


def masks_to_float(masks: torch.Tensor) -> torch.Tensor:
    """Masks [B, H, W], uint8 0/1 or float32 -> float32 [B, 1, H, W]."""
    return masks.unsqueeze(1).float()


def patchify(images: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """`[B, C, H, W]` -> `[B, N, patch_h * patch_w * C]`; tokens row-major, vector order (row, column, channel)."""
    batch, channels, height, width = images.shape
    patch_h, patch_w = patch
    grid = images.reshape(batch, channels, height // patch_h, patch_h, width // patch_w, patch_w)
    # [B, C, rows, h, columns, w] -> [B, rows, columns, h, w, C]
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_h * patch_w * channels)


def unpatchify(tokens: torch.Tensor, patch: tuple[int, int], image_size: tuple[int, int]) -> torch.Tensor:
    """Inverse of `patchify` for images of `image_size` (height, width): `[B, N, patch_h * patch_w * C]` -> `[B, C, H,
    W]`."""
    (patch_h, patch_w), (height, width) = patch, image_size
    grid = tokens.reshape(len(tokens), height // patch_h, width // patch_w, patch_h, patch_w, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)
