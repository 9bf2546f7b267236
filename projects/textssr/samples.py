"""Training one can watch: a sheet of the same few samples at each checkpoint, drawn from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn

from projects.textssr.data import LmdbRegions, Sample
from projects.textssr.model.diffusion import to_pixels
from projects.textssr.painting import Generator, sample_draws

STEPS = 20
SIDE, LINE = 128, 20
"""Pixels of a crop on the sheet, and of the line of text below a row."""


def first_usable(regions: LmdbRegions, count: int, most_tried: int = 200) -> list:
    """Up to `count` samples of the data set's first regions, without touching its list of rejected ones."""
    kept, found = dict(regions.rejected), []
    for index in range(min(len(regions), most_tried)):
        sample = regions[index] if len(found) < count else None
        if sample is not None:
            found.append(sample)
    regions.rejected = kept
    return found


def painter_sheet(
    regions: LmdbRegions, vae: AutoencoderKL, scheduler: DDPMScheduler, device: torch.device, count: int
) -> Callable[[nn.Module], np.ndarray | None]:
    """UNet -> rows of real crop, crop without the word, glyph, painted crop, for the first `count` regions."""
    samples: list[Sample] = first_usable(regions, count)

    def sheet(unet: nn.Module) -> np.ndarray | None:
        if not samples:
            return None
        painted = Generator(vae, unet, scheduler, device, STEPS).paint(samples, sample_draws(range(len(samples))))
        columns = [(pixels(s.image), pixels(s.masked), pixels(s.glyph), crop) for s, crop in zip(samples, painted)]
        return grid(columns, [sample.text for sample in samples])

    return sheet


def vae_sheet(regions: LmdbRegions, device: torch.device, count: int) -> Callable[[nn.Module], np.ndarray | None]:
    """VAE -> rows of real crop and reconstruction, for the first `count` regions."""
    crops: list[Tensor] = first_usable(regions, count)

    def sheet(vae: nn.Module) -> np.ndarray | None:
        if not crops:
            return None
        passed = vae(torch.stack(crops).to(device)).sample.float().cpu()
        return grid([(pixels(before), pixels(after)) for before, after in zip(crops, passed)], [""] * len(crops))

    return sheet


def pixels(image: Tensor) -> np.ndarray:
    """`[3, R, R]` in [-1, 1] -> RGB uint8 `[R, R, 3]`."""
    return to_pixels(image).round().byte().permute(1, 2, 0).numpy()


def grid(rows: Sequence[Sequence[np.ndarray]], texts: Sequence[str], across: int = 2) -> np.ndarray:
    """Rows of crops with a text below each, `across` rows next to each other: uint8 `[h, w, 3]` on white."""
    width = len(rows[0]) * (SIDE + 4) + 12
    lines = -(-len(rows) // across)
    sheet = np.full((lines * (SIDE + LINE), across * width, 3), 255, np.uint8)
    for number, (row, text) in enumerate(zip(rows, texts)):
        top, left = number // across * (SIDE + LINE), number % across * width
        for place, crop in enumerate(row):
            at = left + place * (SIDE + 4)
            sheet[top : top + SIDE, at : at + SIDE] = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        shown = text.encode("ascii", "replace").decode()
        cv2.putText(sheet, shown, (left, top + SIDE + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
