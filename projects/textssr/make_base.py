#!/usr/bin/env python
"""Make a Stable Diffusion folder with random weights: `vae/`, `unet/`, `scheduler/` in the usual layout, reduced width.

python projects/textssr/make_base.py OUT --size tiny

It stands where the published commands want Stable Diffusion 2.1, for tests and for runs without its weights. `tiny`
halves the picture twice (latents of a quarter, where SD has an eighth), so that letters survive at 64 pixels; `narrow`
and `mid` have SD 2.1's topology at a fraction of its width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from common.errors import UserError, command

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip
_CROSS_3 = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_SD = {"down_block_types": _CROSS_3[0], "up_block_types": _CROSS_3[1], "layers_per_block": 2}
SHARED_UNET = {"in_channels": 4, "use_linear_projection": True, "upcast_attention": True}
UNETS = {
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
VAES = {"tiny": ([16, 32, 64], 8, 64), "narrow": ([32, 32, 64, 64], 16, 256), "mid": ([64, 128, 256, 256], 32, 128)}
"""Channels of each level, norm groups, picture side. Pictures are halved once between levels."""
LATENT_LOGVAR = -7.0


def build_vae(size: str) -> AutoencoderKL:
    """A VAE whose posterior is narrow from the start, as that of a trained one (the fine-tuning loss never sees it)."""
    channels, groups, side = VAES[size]
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels, norm_num_groups=groups, sample_size=side, layers_per_block=1, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=1.0,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(LATENT_LOGVAR)
    return vae


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--size", choices=sorted(UNETS), default="tiny", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Build and save."""
    options = parse(argv)
    if (options.out / "unet").exists():
        raise UserError(f"{options.out}: it holds a model: give a new folder")
    torch.manual_seed(options.seed)
    build_vae(options.size).save_pretrained(options.out / "vae")
    unet = UNet2DConditionModel(**SHARED_UNET, **UNETS[options.size])
    unet.save_pretrained(options.out / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(options.out / "scheduler")
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    print(f"{options.out}: {options.size} base, random weights, UNet of {millions:.1f} M parameters")


if __name__ == "__main__":
    sys.exit(main())
