#!/usr/bin/env python
r"""Train the character-aware diffusion model (step 1 from Stable Diffusion 2.1, step 2 from step 1).

    accelerate launch --num_processes 8 projects/textssr/train_diff.py \
        --config projects/textssr/configs/train_diff_step1_cfg.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from common.errors import UserError, command
from common.models.cpu import keep_freed_memory
from projects.textssr.checkpoints import add_parts, load_scheduler, load_vae, place
from projects.textssr.conditions import SETTLED, font_facts, read, sampling
from projects.textssr.config import DIFFUSION_KEYS, read_config
from projects.textssr.data import LmdbRegions, RegionMaker, collate
from projects.textssr.fonts import default_font
from projects.textssr.latents import CachedRegions, collate_cached, posteriors
from projects.textssr.launch import parse, start_all_processes
from projects.textssr.model.diffusion import (
    PLAIN,
    Condition,
    Posterior,
    Weighting,
    diffusion_loss,
    encode,
    normal,
)
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.model.unet import TextUNet
from projects.textssr.run import Run, logger, start
from projects.textssr.samples import painter_sheet


def build_dataset(config: SimpleNamespace) -> LmdbRegions:
    """Scenes with their glyph conditions."""
    font = config.font_path or default_font()
    renderer = GlyphRenderer(font, config.ttf_size, config.max_len)
    glyph = {"clean_glyph": config.clean_glyph, "tight_glyph": config.tight_glyph}
    maker = RegionMaker(config.resolution, renderer, exact_crop=config.exact_crop, **glyph)
    return LmdbRegions(config.lmdb_path, maker, config.seed)


def cache(config: SimpleNamespace, regions: LmdbRegions, vae: AutoencoderKL, accelerator: Accelerator) -> CachedRegions:
    """The regions with their latents, from `<output_dir>/latents`."""
    names = ("lmdb_path", "pretrained_vae", "seed", *SETTLED)
    identity = {name: getattr(config, name) for name in names}
    identity |= {"dtype": str(vae.dtype), "font": str(regions.maker.renderer.path)}
    logger.info("Latents of %d regions: %s", len(regions), folder := Path(config.output_dir) / "latents")
    return CachedRegions(regions, vae, folder, accelerator, identity, config.train_batch_size)


def trained_with(config: SimpleNamespace, vae: AutoencoderKL) -> dict[str, object]:
    """The conditions that painting must repeat."""
    font = font_facts(config.font_path or default_font())
    facts = {name: getattr(config, name) for name in SETTLED} | {
        "font": font, "scaling_factor": vae.config.scaling_factor, "condition_dropout": config.condition_dropout
    }  # fmt: skip
    suited = sampling(read(Path(config.pretrained_unet)))  # what suits its start suits it
    return facts | ({"sampling": suited} if suited else {})


class DiffusionLoss:
    """The loss of a batch with a frozen VAE; the three latents are encoded in one call, or come with the batch."""

    def __init__(
        self, vae: AutoencoderKL, scheduler: DDPMScheduler, weighting: Weighting = PLAIN, dropout: float = 0.0
    ) -> None:
        self.vae, self.scheduler, self.weighting, self.dropout = vae, scheduler, weighting, dropout
        self.blank: Posterior | None = None

    def __call__(
        self, unet: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        planes, glyphs = batch["ttf_images"], batch.get("glyphs")
        lost = None
        if self.dropout:  # blank planes and a blank word, as an empty text would give
            lost = (torch.rand(len(planes), generator=generator) < self.dropout).to(planes.device)[:, None, None, None]
            planes = planes.masked_fill(lost, 1.0)
            glyphs = None if glyphs is None else glyphs.masked_fill(lost, 1.0)
        condition = Condition(batch.get("masked_images"), glyphs, planes, batch["masks"])
        if "moments" in batch:
            image, masked, glyph = posteriors(batch["moments"])
            if lost is not None:
                glyph = self.blank_glyph(glyph).where(lost, glyph)
        else:
            latents = encode(self.vae, torch.cat([batch["pixel_values"], condition.masked, condition.glyph]))
            image, masked, glyph = latents.split(len(planes))
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(planes),), generator=generator).to(planes.device)
        scale = self.vae.config.scaling_factor
        draw = normal(generator)
        made = diffusion_loss(
            unet, self.scheduler, image, masked, glyph, condition, scale, draw, timesteps, self.weighting
        )  # fmt: skip
        return made.loss, made.by_place(condition)

    def blank_glyph(self, like: Posterior) -> Posterior:
        """The posterior `[1, 4, h, w]` of a word glyph without ink; encoded once."""
        if self.blank is None:
            side = like.mean.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
            self.blank = encode(self.vae, torch.ones(1, 3, side, side, device=like.mean.device))
        return self.blank


@command
def main(argv: Sequence[str] | None = None) -> None:
    if argv is None:
        start_all_processes()
        keep_freed_memory()
    file, changes = parse(argv, __doc__)
    if file is None:
        raise UserError("--config: missing; give for instance projects/textssr/configs/train_diff_step1_cfg.py")
    config = read_config(file, DIFFUSION_KEYS, changes)
    scheduler, vae = load_scheduler(config.scheduler_path), load_vae(config.pretrained_vae, "pretrained_vae")
    torch.manual_seed(config.seed)  # what a stock folder lacks begins at random
    unet, fresh = TextUNet.from_folder(config.pretrained_unet)
    dataset = build_dataset(config)
    warning = dataset.coverage.check("font_path", config.lmdb_path)
    accelerator = start(config)
    if warning:
        logger.warning(warning)
    if fresh:
        logger.info("Fresh start for %d tensors of the UNet: %s …", len(fresh), ", ".join(fresh[:3]))
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.enable_xformers_memory_efficient_attention:
        unet.enable_xformers_memory_efficient_attention()
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    vae = place(vae, accelerator.device, half)
    ema = EMAModel(unet.parameters(), model_cls=TextUNet, model_config=unet.config) if config.use_ema else None
    if ema is not None:
        ema.to(accelerator.device)
    regions = dataset
    if config.cache_latents:
        dataset = cache(config, dataset, vae, accelerator)
    stack = collate_cached if config.cache_latents else collate
    sheet = None
    if config.sample_sheet and accelerator.is_main_process:
        sheet = painter_sheet(regions, vae, scheduler, accelerator.device, config.sample_sheet)
    weighting = Weighting(config.region_loss_weight, config.min_snr_gamma)
    loss = DiffusionLoss(vae, scheduler, weighting, config.condition_dropout)
    run = Run(
        config, accelerator, unet, dataset, stack, loss, folder="unet",
        tracker="unet-fine-tune", drop_last=False, ema=ema, sheet=sheet,
        trained_with=trained_with(config, vae),
    )  # fmt: skip
    if not run.train():
        print(f"stopped after update {run.clock.step}; the same command resumes the run")
    elif accelerator.is_main_process:
        final = Path(config.output_dir) / "final"
        run.save_model(final / "unet")
        add_parts(final, {"vae": config.pretrained_vae, "scheduler": config.scheduler_path})
    run.finish()


if __name__ == "__main__":
    sys.exit(main())
