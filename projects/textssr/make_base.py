#!/usr/bin/env python
"""Make a Stable Diffusion folder with random weights: `vae/`, `unet/`, `scheduler/` in the usual layout, reduced width.

    python projects/textssr/make_base.py OUT --size tiny

It stands where the published commands want Stable Diffusion 2.1, for tests and for runs without its weights. `tiny`
halves the picture twice (latents of a quarter, where SD has an eighth), so that letters survive at 64 pixels; `narrow`
and `mid` have SD 2.1's topology at a fraction of its width. The VAE begins as a blur in colours (`build.pass_colours`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from common.errors import UserError, command
from common.flags import Parser
from common.train.session import check_writable
from projects.textssr.model.build import SCHEDULER, SIZES, build_vae, unet_options


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--force", action="store_true", help="replace a model that OUT holds")
    options = parser.parse_args(argv)
    if (options.out / "scheduler").exists() and not options.force:  # written last
        raise UserError(f"{options.out}: it holds a model: give a new folder, or --force to replace it")
    check_writable(options.out, "OUT")
    torch.manual_seed(options.seed)
    build_vae(options.size).save_pretrained(options.out / "vae")
    unet = UNet2DConditionModel(**unet_options(options.size))
    unet.save_pretrained(options.out / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(options.out / "scheduler")
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    print(f"{options.out}: {options.size} base, random weights, UNet of {millions:.1f} M parameters")


if __name__ == "__main__":
    sys.exit(main())
