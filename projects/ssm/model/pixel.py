"""Text super-resolution and segmentation on the pre-trained encoder (SSM, section 4.6; spec section 8)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.images import unpatchify
from common.models.positions import sincos_2d
from projects.ssm.model.layers import run, vit_blocks, vit_norm, xavier_linear
from projects.ssm.model.pretrainer import fixed, pixel_target

CHANNELS = {"SR": 3, "Seg": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "pixel_vit_small": {},
    # not published, for processors: takes the encoder of ssm_micro_patch16x8
    "pixel_vit_micro_patch16x8": {"patch_size": (16, 8), "embed_dim": 128, "depth": 4, "num_heads": 4},
}
"""Names that `--model` takes -> sizes; the first is published."""


class UniPixelViT(nn.Module):
    """Encoder as in pre-training, three light blocks, one vector of pixels for each patch.

    Args:
        pixel_type: "SR" (colours out) or "Seg" (one channel, 1 is text).
        img_size, patch_size: (height, width) in pixels.
        embed_dim, depth, num_heads: encoder; decoder_heads: of the three blocks behind it.
    """

    def __init__(
        self,
        pixel_type: str = "SR",
        img_size: tuple[int, int] = (32, 128),
        patch_size: tuple[int, int] = (4, 4),
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        decoder_depth: int = 3,
        decoder_heads: int = 2,
    ) -> None:
        super().__init__()
        if pixel_type not in CHANNELS:
            raise ValueError(f"pixel_type: {pixel_type!r} is none of {', '.join(CHANNELS)}")
        self.img_size, self.patch_size, self.channels = tuple(img_size), tuple(patch_size), CHANNELS[pixel_type]
        table = sincos_2d(img_size[0] // patch_size[0], img_size[1] // patch_size[1], embed_dim)
        self.pos_embed, self.decoder_pos_embed = fixed(table), fixed(table.clone())
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        self.blocks = vit_blocks(depth, embed_dim, num_heads, 4.0)
        self.norm = vit_norm(embed_dim)
        self.decoder_blocks = vit_blocks(decoder_depth, embed_dim, decoder_heads, 4.0)
        self.decoder_norm = vit_norm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size[0] * patch_size[1] * self.channels)
        self.apply(xavier_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # the patch convolution as a Linear layer

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] -> patch vectors `[B, N, p * p * channels]`."""
        latent = self.norm(run(self.blocks, self.patch_embed(images) + self.pos_embed))
        return self.decoder_pred(self.decoder_norm(run(self.decoder_blocks, latent + self.decoder_pos_embed)))

    def loss(self, predicted: Tensor, targets: Tensor, normalise: bool = False) -> Tensor:
        """Mean squared error per pixel with `targets` `[B, channels, H, W]` in [0, 1]."""
        return F.mse_loss(predicted, pixel_target(targets, self.patch_size, normalise))

    def pictures(self, predicted: Tensor) -> Tensor:
        """Patch vectors -> `[B, channels, H, W]`."""
        return unpatchify(predicted, self.patch_size, self.img_size)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Mean over images `[B, C, H, W]` of 10 log10(1 / (mse + 1e-6)), in dB for values in [0, 1]."""
    error = (images - truth).square().flatten(1).mean(1)
    return (10 * torch.log10(1 / (error + 1e-6))).mean()


def ssim(images: Tensor, truth: Tensor, size: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of images `[B, C, H, W]` in [0, 1]: Gaussian window, zero padding, mean over all pixels."""
    offsets = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    line = torch.exp(-offsets.square() / (2 * sigma**2))
    line = line / line.sum()
    channels = images.shape[1]
    window = (line[:, None] * line).expand(channels, 1, size, size)

    def blurred(picture: Tensor) -> Tensor:
        return F.conv2d(picture, window, padding=size // 2, groups=channels)

    # Wang et al. 2004: (2 mu_x mu_y + c1)(2 s_xy + c2) / ((mu_x^2 + mu_y^2 + c1)(s_x^2 + s_y^2 + c2))
    mean_x, mean_y = blurred(images), blurred(truth)
    variance_x = blurred(images.square()) - mean_x.square()
    variance_y = blurred(truth.square()) - mean_y.square()
    covariance = blurred(images * truth) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (top / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))).mean()


def iou(predicted: Tensor, truth: Tensor, threshold: float = 0.5, columns: bool = False) -> Tensor:
    """Mean intersection over union of masks `[B, 1, H, W]`; an empty union counts 1.

    `columns`: average over the columns of all images, as the published evaluation does by mistake.
    """
    found, wanted = predicted > threshold, truth > 0.5
    axes = (1, 2) if columns else (1, 2, 3)
    union = (found | wanted).sum(axes).double()
    shared = (found & wanted).sum(axes).double()
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0).mean()
