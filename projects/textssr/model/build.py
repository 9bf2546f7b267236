"""The networks in their sizes: Stable Diffusion 2.1's, which the paper starts from, and small ones."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from projects.textssr.model.unet import TextUNet

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
    "small": {  # the painter that ships: fewer tokens' channels than tiny, more where the word glyph enters
        "sample_size": 16, "block_out_channels": [64, 96], "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 64, "attention_head_dim": [2, 2],
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
    "small": ([16, 32, 64], 8, 64, 1),
    "narrow": ([32, 32, 64, 64], 16, 256, 1),
    "mid": ([64, 128, 256, 256], 32, 128, 1),
}
"""Channels of each level, norm groups, picture side, blocks a level. Pictures are halved once between levels."""
SIZES = ("tiny", "small", "narrow", "mid")
"""Those that are trained from scratch; sd21 is loaded."""
LATENT_LOGVAR = -7.0  # a deviation of 0.03


def build_vae(size: str = "sd21") -> AutoencoderKL:
    """A VAE whose posterior is narrow from the start, as a trained one's is: the fine-tuning loss never sees it."""
    channels, groups, side, layers = VAES[size]
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels, norm_num_groups=groups, sample_size=side, layers_per_block=layers,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4, scaling_factor=0.18215 if size == "sd21" else 1.0,
    )  # fmt: skip
    if size in SIZES:
        pass_colours(vae)
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(LATENT_LOGVAR)
    return vae


@torch.no_grad()
def pass_colours(vae: AutoencoderKL) -> None:
    """Let a VAE of random weights begin as a blur in colours: three latents carry each patch's mean red, green, blue.

    From plain random weights a small one learns strokes and stays nearly grey. Each colour runs through two channels
    of opposite sign: silu(x) - silu(-x) = x, and a group norm leaves their mean alone. The residual
    branches begin at zero.
    """
    pairs = torch.kron(torch.eye(3), torch.tensor([[1.0], [-1.0]]))  # [6 channels, 3 colours]
    for half in (vae.encoder, vae.decoder):
        _set_first(half.conv_in, pairs)
        _set_first(half.conv_out, pairs.T / 2)
    for name, module in vae.named_modules():
        if name.endswith(("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")):
            _set_first(module, torch.eye(6))
        elif name.endswith("quant_conv"):
            _set_first(module, torch.eye(4))
        elif name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
            module.bias.zero_()


def _set_first(conv: torch.nn.Conv2d, mix: torch.Tensor) -> None:
    """Make the first output channels of `conv` the mix [out, in] of its first inputs, averaged where it halves."""
    out, inputs = mix.shape
    conv.weight[:out].zero_()
    conv.bias[:out].zero_()
    if conv.stride == (2, 2):
        conv.weight[:out, :inputs, :2, :2] = mix[..., None, None] / 4
    else:
        middle = conv.kernel_size[0] // 2
        conv.weight[:out, :inputs, middle, middle] = mix


def unet_options(size: str) -> dict:
    """Constructor arguments of the stock UNet of a size."""
    return {**SHARED_UNET, **UNETS[size]}


def build_unet(size: str = "sd21") -> TextUNet:
    """The character-aware UNet of a size, random weights."""
    return TextUNet(**unet_options(size))
