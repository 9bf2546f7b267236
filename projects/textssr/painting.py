"""Generating words: model folders, batches with seeds of their own, and the way back into the full picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image, ImageDraw
from torch import Tensor

from common.errors import UserError
from common.files import write_bytes
from projects.textssr.checkpoints import load_scheduler, load_vae, place
from projects.textssr.data import Sample
from projects.textssr.model.diffusion import Condition, Draw, paint, to_pixels
from projects.textssr.model.unet import TextUNet
from projects.textssr.regions import Box

SAMPLERS = ("ddpm", "dpm-solver")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Generator:
    """The three models on a device, and how many steps they take."""

    vae: AutoencoderKL
    unet: TextUNet
    scheduler: DDPMScheduler | DPMSolverMultistepScheduler
    device: torch.device
    steps: int = 20
    guidance: float = 1.0

    @classmethod
    def open(
        cls,
        vae: Path,
        unet: Path,
        scheduler: Path,
        device: torch.device,
        *,
        steps: int = 20,
        precision: str = "fp32",
        sampler: str = "ddpm",
        guidance: float = 1.0,
    ) -> Generator:
        """From folders of the published layout; `sampler` and `guidance` other than the defaults are additional.

        Raises UserError for missing folders or a UNet that is not trained.
        """
        model, fresh = TextUNet.from_folder(unet)
        if fresh:
            raise UserError(f"{unet}: a stock Stable Diffusion UNet ({len(fresh)} tensors lack): give a trained one")
        kind = PRECISIONS[precision]
        if kind == torch.float16 and device.type == "cpu":
            raise UserError("--precision: fp16 needs a GPU; use fp32 or bf16")
        painter, schedule = place(load_vae(vae, "--vae"), device, kind), load_scheduler(scheduler)
        if steps > schedule.config.num_train_timesteps:
            raise UserError(f"--steps: {steps}: the scheduler has {schedule.config.num_train_timesteps}")
        if sampler == "dpm-solver":
            schedule = DPMSolverMultistepScheduler.from_config(schedule.config)
        return cls(painter, place(model, device, kind), schedule, device, steps, guidance)

    def paint(self, samples: Sequence[Sample], draw: Draw, *, clamp: bool = True) -> np.ndarray:
        """Crops uint8 `[B, R, R, 3]` RGB that show the samples' texts. `clamp=False` wraps overflow as published."""

        def stack(name: str) -> Tensor:
            return torch.stack([getattr(sample, name) for sample in samples]).to(self.device)

        condition = Condition(stack("masked"), stack("glyph"), stack("planes"), stack("mask"))
        with torch.inference_mode():
            images = paint(self.unet, self.vae, self.scheduler, condition, self.steps, draw, self.guidance)
        return _bytes(images, clamp)

    def through_vae(self, samples: Sequence[Sample]) -> np.ndarray:
        """The samples' real crops, encoded and decoded: uint8 `[B, R, R, 3]`. No painted word can be sharper."""
        images = torch.stack([sample.image for sample in samples]).to(self.device, self.vae.dtype)
        with torch.inference_mode():
            return _bytes(self.vae(images).sample, True)


def _bytes(images: Tensor, clamp: bool) -> np.ndarray:
    """`[B, 3, R, R]` in [-1, 1] -> uint8 `[B, R, R, 3]`, fractions cut off as published."""
    pixels = to_pixels(images.float(), clamp=clamp).permute(0, 2, 3, 1).cpu()
    return (pixels.to(torch.int64) % 256).to(torch.uint8).numpy()


def batch_draws(seed: int, posterior_seed: int) -> Draw:
    """The published rhythm: start noise and steps from one generator that begins at `seed` for every batch.

    The posteriors, which the published code draws without a seed in the first batch, have a generator of their own.
    """
    main, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(posterior_seed)

    def draw(name: str, like: Tensor) -> Tensor:
        source = other if name in ("glyph", "masked") else main
        return torch.randn(like.shape, generator=source).to(like.device, like.dtype)

    return draw


def sample_draws(seeds: Sequence[int]) -> Draw:
    """One generator for each sample of a batch: what is drawn does not depend on how samples are batched."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(name: str, like: Tensor) -> Tensor:
        parts = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return torch.stack(parts).to(like.device, like.dtype)

    return draw


def region_of(crop: np.ndarray, mask: Tensor) -> np.ndarray:
    """The part of a crop `[R, R, 3]` that the zeros of its mask `[1, R, R]` span, both ends included."""
    rows, columns = (mask[0].numpy() == 0).nonzero()
    return crop[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def paste_back(picture: np.ndarray, crop: np.ndarray, box: Box, polygon: Sequence) -> np.ndarray:
    """`picture` `[H, W, 3]` with the generated crop in its place: only inside the polygon, nothing else changes."""
    left, top, right, bottom = box
    right, bottom = min(right, picture.shape[1]), min(bottom, picture.shape[0])
    canvas = Image.new("L", picture.shape[1::-1], 0)
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], fill=1)
    inside = np.asarray(canvas)[top:bottom, left:right].astype(bool)
    fitted = cv2.resize(crop, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    result = picture.copy()
    result[top:bottom, left:right][inside] = fitted[inside]
    return result


def blend_back(picture: np.ndarray, crop: np.ndarray, box: Box, polygon: Sequence) -> np.ndarray:
    """As `paste_back`, with the crop's colours shifted until its ground has the median colour of the picture around the
    polygon, and an edge of one soft pixel. Outside the polygon nothing changes.

    Otsu's threshold separates ground and letters of the crop; the ground is the part that is nearer to what is
    around it.
    """
    pasted = paste_back(picture, crop, box, polygon)
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.array([(int(x), int(y)) for x, y in polygon], np.int32)], 255)
    ring = cv2.dilate(inside, np.ones((9, 9), np.uint8)) - inside
    if not ring.any():  # the polygon is the whole picture
        return pasted
    around = np.median(picture[ring > 0], axis=0)
    painted = pasted[inside > 0]
    luma = cv2.cvtColor(painted[None], cv2.COLOR_RGB2GRAY)[0]
    threshold, _ = cv2.threshold(luma[None], 0, 255, cv2.THRESH_OTSU)
    parts = [np.median(painted[part], axis=0) for part in (luma <= threshold, luma > threshold) if part.any()]
    ground = min(parts, key=lambda colour: np.abs(colour - around).sum())
    soft = cv2.GaussianBlur(inside, (0, 0), 0.7)[..., None] / 255 * (inside > 0)[..., None]
    mixed = picture * (1 - soft) + np.clip(pasted + (around - ground), 0, 255) * soft
    return mixed.round().astype(np.uint8)


def save_png(path: Path, picture: np.ndarray) -> None:
    """RGB uint8 `[h, w, 3]` to a file."""
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())
