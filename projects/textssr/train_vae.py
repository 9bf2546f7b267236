#!/usr/bin/env python
r"""Fine-tune the VAE on scene crops: mean squared error of the reconstruction through the posterior's mode.

    accelerate launch --num_processes 8 projects/textssr/train_vae.py \
        --config projects/textssr/configs/train_vae_cfg.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from common.errors import UserError, command
from common.models.cpu import keep_freed_memory
from projects.textssr.checkpoints import load_vae
from projects.textssr.config import VAE_KEYS, read_config
from projects.textssr.data import LmdbRegions, RegionMaker
from projects.textssr.launch import parse, start_all_processes
from projects.textssr.model.diffusion import encode
from projects.textssr.run import Run, start
from projects.textssr.samples import vae_sheet


def stack(crops: list[torch.Tensor | None]) -> dict[str, torch.Tensor] | None:
    """Crops -> a batch; those that could not be used are skipped."""
    kept = [crop for crop in crops if crop is not None]
    return {"pixel_values": torch.stack(kept)} if kept else None


def reconstruction_loss(
    vae: nn.Module, batch: dict[str, torch.Tensor], _: torch.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean squared error of the reconstruction, whose latents are the posterior's mode; nothing else is logged."""
    pixels = batch["pixel_values"]
    return F.mse_loss(vae(pixels).sample.float(), pixels), {}


def fit_scaling_factor(vae: AutoencoderKL, dataset: LmdbRegions, most: int = 64) -> None:
    """Set the factor that gives the latents of the first usable crops deviation 1, which the noise is made for.

    Stable Diffusion's 0.18215 was found so; a VAE that begins with random weights needs its own.
    """
    listed = dict(dataset.rejected)
    made = (dataset[index] for index in range(len(dataset)))
    crops = list(islice((crop for crop in made if crop is not None), most))
    dataset.rejected = listed  # these are no samples of the run
    if crops:
        deviation = float(encode(vae, torch.stack(crops).to(vae.device)).mean.std())
        vae.register_to_config(scaling_factor=1.0 / max(deviation, 1e-6))


@command
def main(argv: Sequence[str] | None = None) -> None:
    if argv is None:
        start_all_processes()
        keep_freed_memory()
    file, changes = parse(argv, __doc__)
    if file is None:
        raise UserError("--config: missing; give for instance projects/textssr/configs/train_vae_cfg.py")
    config = read_config(file, VAE_KEYS, changes)
    vae = load_vae(Path(config.pretrained_model_name_or_path) / "vae", "pretrained_model_name_or_path")
    maker = RegionMaker(config.resolution, None, exact_crop=config.exact_crop)
    dataset = LmdbRegions(config.lmdb_path, maker, config.seed)
    accelerator = start(config)
    fit = partial(fit_scaling_factor, vae, dataset) if config.fit_scaling_factor else None
    watched = config.sample_sheet and accelerator.is_main_process
    sheet = vae_sheet(dataset, accelerator.device, config.sample_sheet) if watched else None
    run = Run(
        config, accelerator, vae, dataset, stack, reconstruction_loss, folder="vae", tracker="vae-fine-tune",
        drop_last=True, before_save=fit, sheet=sheet, say_epochs=True,
    )  # fmt: skip
    if not run.train():
        print(f"stopped after update {run.clock.step}; the same command resumes the run")
    run.finish()


if __name__ == "__main__":
    sys.exit(main())
