"""Benchmark rows: the training step of the narrow SD-2.1 UNet, a sampled crop, the data path, batched encoding."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from common.bench.rows import Row
from projects.textssr.data import RegionMaker, Sample
from projects.textssr.fonts import default_font
from projects.textssr.model.build import SCHEDULER, build_unet, build_vae
from projects.textssr.model.diffusion import encode
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.painting import Generator, sample_draws

POLYGON = [[100, 10], [150, 22], [146, 44], [96, 30]]


def rows() -> list[Row]:
    """All rows; models are built when their row is run."""
    return [
        Row("textssr: train step narrow UNet, batch 2", unet_step, "v", 2, published=2.0, threads=2),
        Row("textssr: sampled crop, tiny, 20 steps, batch 8", sampling, "v", 8, threads=2),
        Row("textssr: regions of one thread", data_items, "items/s", 1),
        Row("textssr: glyph conditions kept", kept_glyphs, "x", 1, target=1.0, versus=fresh_glyphs),
        Row("textssr: three latents in one call", one_call, "x", 2, versus=three_calls, threads=2),
        Row("textssr: tiny train step, latents kept", kept_latents, "x", 8, versus=fresh_latents, threads=2),
        Row("textssr: glyph encoder, blank planes skipped", used_planes, "x", 16, versus=all_planes, threads=1),
        Row("textssr: 8 crops in one batch", sampling, "x", 8, versus=one_by_one, threads=2),
    ]


def unet_step(batch: int = 2, size: str = "narrow") -> Callable[[], None]:
    """Forward, loss, backward, clipping and AdamW on 16x16 latents."""
    torch.manual_seed(0)
    unet = build_unet(size).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    sample, target = torch.randn(batch, 13, 16, 16), torch.randn(batch, 4, 16, 16)
    planes, steps = torch.rand(batch, 25, 64, 64), torch.randint(0, 1000, (batch,))

    def step() -> None:
        F.mse_loss(unet(sample, steps, planes).sample, target).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def picture() -> np.ndarray:
    """A scene of noise, 160 x 240."""
    return np.random.default_rng(0).integers(0, 254, (160, 240, 3), np.uint8)


def make_sample(side: int, text: str = "Reading") -> Sample:
    maker = RegionMaker(side, GlyphRenderer(default_font()))
    return maker.make(picture(), POLYGON, text, random.Random(0))


def sampling(batch: int = 8) -> Callable[[], object]:
    """Denoising loop and decoding of the tiny model."""
    torch.manual_seed(0)
    unet, vae = build_unet("tiny").eval(), build_vae("tiny").eval()
    generator = Generator(vae, unet, DDPMScheduler(**SCHEDULER), torch.device("cpu"))
    samples = [make_sample(64)] * batch
    return lambda: generator.paint(samples, sample_draws(range(batch)))


def one_by_one() -> Callable[[], object]:
    """As `sampling`, a crop at a time."""
    paint = sampling(1)
    return lambda: [paint() for _ in range(8)]


def kept_latents(batch: int = 8, kept: bool = True) -> Callable[[], None]:
    """A training step of the tiny UNet; without `kept` the VAE encodes its three pictures first."""
    step, vae = unet_step(batch, "tiny"), build_vae("tiny").eval()
    pictures = torch.randn(3 * batch, 3, 64, 64)

    def whole() -> None:
        if not kept:
            encode(vae, pictures)
        step()

    return whole


def used_planes(used_only: bool = True) -> Callable[[], None]:
    """Forward and backward of the tiny UNet's glyph encoder for 16 words of four letters."""
    torch.manual_seed(0)
    encoder, renderer = build_unet("tiny").ttf_net, GlyphRenderer(default_font())
    encoder.patch_embed.used_only = used_only
    planes = torch.from_numpy(np.stack([renderer.planes("read")] * 16)).float() / 255
    return lambda: encoder(planes).mean().backward()


def all_planes() -> Callable[[], None]:
    """The same with all 25 planes convolved, as the published size does."""
    return used_planes(used_only=False)


def fresh_latents() -> Callable[[], None]:
    """The same step with its encoding."""
    return kept_latents(kept=False)


def data_items() -> Callable[[], object]:
    """Crop, mask, rectangle, planes and glyph at 256 pixels, from a decoded picture; a new text now and then."""
    maker, scene, rng = RegionMaker(256, GlyphRenderer(default_font())), picture(), random.Random(0)
    texts = ["Reading", "NICK", "street", "Coffee"]
    return lambda: maker.make(scene, POLYGON, rng.choice(texts), rng)


def kept_glyphs() -> Callable[[], object]:
    """Planes of a word whose characters were drawn before."""
    renderer = GlyphRenderer(default_font())
    return lambda: renderer.planes("Reading")


def fresh_glyphs() -> Callable[[], object]:
    """The same, the font opened and each character drawn anew, as the published loader does."""
    return lambda: GlyphRenderer(default_font()).planes("Reading")


def _pictures() -> list[torch.Tensor]:
    return [torch.randn(2, 3, 64, 64) for _ in range(3)]


def one_call() -> Callable[[], object]:
    """Image, masked image and glyph through the VAE together."""
    vae, pictures = build_vae("tiny").eval(), _pictures()
    return lambda: encode(vae, torch.cat(pictures)).split(2)


def three_calls() -> Callable[[], object]:
    vae, pictures = build_vae("tiny").eval(), _pictures()
    return lambda: [encode(vae, part) for part in pictures]
