"""Images as sequences of patch vectors."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """`[B, C, H, W]` -> `[B, N, patch_h * patch_w * C]`; tokens row-major, vector order (row, column, channel)."""
    batch, channels, height, width = images.shape
    patch_h, patch_w = patch
    grid = images.reshape(batch, channels, height // patch_h, patch_h, width // patch_w, patch_w)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_h * patch_w * channels)


def unpatchify(tokens: Tensor, patch: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Inverse of `patchify` for images of `image_size` (height, width): `[B, N, patch_h * patch_w * C]` -> `[B, C, H,
    W]`."""
    (patch_h, patch_w), (height, width) = patch, image_size
    grid = tokens.reshape(len(tokens), height // patch_h, width // patch_w, patch_h, patch_w, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)
