"""The networks in their sizes: Stable Diffusion 2.1's, which the paper starts from, and small ones."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from projects.textssr.unet import TextUNet

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip
_CROSS_3 = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_SD = {"down_block_types": _CROSS_3[0], "up_block_types": _CROSS_3[1], "layers_per_block": 2}
SHARED_UNET = {"in_channels": 4, "use_linear_projection": True, "upcast_attention": True}
UNETS = {
    "sd21": _SD | {
        "sample_size": 96, "block_out_channels": [320, 640, 1280, 1280], "norm_num_groups": 32,
        "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    },
    "tiny": {
        "sample_size": 16, "block_out_channels": [48, 96], "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 128, "attention_head_dim": [2, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "narrow": _SD | {
        "sample_size": 32, "block_out_channels": [32, 32, 64, 64], "norm_num_groups": 16, "cross_attention_dim": 1024,
        "attention_head_dim": [1, 2, 4, 4],
    },
    "mid": _SD | {
        "sample_size": 16, "block_out_channels": [128, 256, 384, 384], "norm_num_groups": 32,
        "cross_attention_dim": 512, "attention_head_dim": [2, 4, 6, 6],
    },
}  # fmt: skip
VAES = {
    "sd21": ([128, 256, 512, 512], 32, 768, 2),
    "tiny": ([16, 32, 64], 8, 64, 1),
    "narrow": ([32, 32, 64, 64], 16, 256, 1),
    "mid": ([64, 128, 256, 256], 32, 128, 1),
}
"""Channels of each level, norm groups, picture side, blocks a level. Pictures are halved once between levels."""
SIZES = ("tiny", "narrow", "mid")
"""Those that are trained from scratch; sd21 is loaded."""
LATENT_LOGVAR = -7.0


def build_vae(size: str = "sd21") -> AutoencoderKL:
    """A VAE whose posterior is narrow from the start, as a trained one's is: the fine-tuning loss never sees it."""
    channels, groups, side, layers = VAES[size]
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels, norm_num_groups=groups, sample_size=side, layers_per_block=layers,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4, scaling_factor=0.18215 if size == "sd21" else 1.0,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(LATENT_LOGVAR)
    return vae


def unet_options(size: str) -> dict:
    """Constructor arguments of the stock UNet of a size."""
    return {**SHARED_UNET, **UNETS[size]}


def build_unet(size: str = "sd21") -> TextUNet:
    """The character-aware UNet of a size, random weights."""
    return TextUNet(**unet_options(size))
