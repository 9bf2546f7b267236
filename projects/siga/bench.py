"""SIGA's rows of `strlab bench`: training steps, inference, the k-means mask."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from common.bench.rows import Row
from common.bench.units import jpeg_crop
from common.train.optim import build_optimizer
from projects.siga.kmeans_mask import kmeans_mask
from projects.siga.reader import build_row, codec_of, normalise
from projects.siga.variants import CHAR_STR

NAMES = {"R": "TRBA", "S": "TSBA", "T": CHAR_STR.name}
STEPS = {"R": 1.44, "S": 1.94, "T": 4.74}  # published code, batch 4, 2 threads, in v
READS = {"R": 0.36, "S": 0.65, "T": 1.78}  # published code, batch 32, in v
OPTIMIZERS = {"R": "adam", "S": "adamw", "T": "adadelta"}
MASKS = 50


def rows() -> list[Row]:
    """All rows; a row builds its model when it is run."""
    steps = [
        Row(f"siga: training step {f}, batch 4", partial(training_step, f), "v", 4, STEPS[f], threads=2) for f in NAMES
    ]
    reads = [
        Row(f"siga: inference {f}, batch 32", partial(inference, f), "v", 32, READS[f], threads=2, note="all 26 steps")
        for f in NAMES
    ]
    masks = [
        Row("siga: k-means mask, 32x128", partial(masks_of, (128, 32)), "u", MASKS, published=31, target=3),
        Row("siga: k-means mask, 100x34", partial(masks_of, None), "u", MASKS, published=98, target=3),
    ]
    return steps + reads + masks


def _images(family: str, count: int) -> torch.Tensor:
    """Random uint8 images of the variant's size."""
    height, width = input_size(family)
    return torch.randint(
        0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def input_size(family: str) -> tuple[int, int]:
    """Height and width of a family's input."""
    return (48, 160) if family == "S" else (32, 128)


def training_step(family: str) -> Callable[[], None]:
    """Normalise, forward with teacher forcing, every loss, backward, clip and optimiser step of four images."""
    torch.manual_seed(0)
    model = build_row(NAMES[family], freeze_tps=False) if family != "T" else build_row(NAMES[family])
    model.train()
    optimizer = build_optimizer(OPTIMIZERS[family], [p for p in model.parameters() if p.requires_grad], 1e-6)
    images = _images(family, 4)
    ids, lengths = codec_of(NAMES[family], None, 25).encode(["reading", "text", "in", "images"])
    text, lengths = torch.from_numpy(ids), torch.from_numpy(lengths)
    masks = (images[..., 0] > 128).float()[:, None]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(normalise(images, family), text[:, :-1], masks)
        model.losses(output, text, lengths, 0, 0).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def inference(family: str) -> Callable[[], None]:
    """The Share branch of 32 images with its full number of greedy steps, as the published code runs it."""
    torch.manual_seed(0)
    model = build_row(NAMES[family]).eval()
    images = _images(family, 32)

    def read() -> None:
        with torch.inference_mode():
            model.read(normalise(images, family), stop_early=False)

    return read


def masks_of(size: tuple[int, int] | None) -> Callable[[], None]:
    """Masks of one grey crop, resized to (width, height) first where a size is given."""
    image = Image.open(io.BytesIO(jpeg_crop())).convert("L")
    grey = np.asarray(image.resize(size, Image.Resampling.BICUBIC) if size else image)

    def run() -> None:
        for _ in range(MASKS):
            kmeans_mask(grey)

    return run
