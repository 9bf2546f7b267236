"""Benchmark rows: SIGA's training step and reading for the three published models, and the text mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from common.bench.rows import Row
from common.bench.units import jpeg_crop
from common.data.decode import decode_rgb, resize_bicubic
from common.models.images import masks_to_float
from projects.siga.model.base import SigaModel
from projects.siga.model.build import build_siga
from projects.siga.model.kmeans_mask import text_mask

PUBLISHED = {  # (training step at batch 4, inference at batch 32), per image in v
    "TRBA": (1.44, 0.36),
    "TSBA": (1.94, 0.65),
    "char_str_base_patch4_3_32_128": (4.74, 1.78),
}


def rows() -> list[Row]:
    """All rows; models are built when their row is run."""
    masks = [
        Row("siga: k-means mask at 32x128", lambda: masking((32, 128)), "u", 1, published=31.0, target=3.0),
        Row("siga: k-means mask of a 100x34 crop", lambda: masking(None), "u", 1, target=3.0),
    ]
    for name, (step, inference) in PUBLISHED.items():
        masks += [
            Row(f"siga: train step {name}, batch 4", _of(training, name), "v", 4, published=step, threads=2),
            Row(f"siga: read {name}, batch 32", _of(reading, name), "v", 32, published=inference, threads=2),
        ]
    return masks


def _of(make: Callable[[str], Callable], name: str) -> Callable[[], object]:
    return lambda: make(name)


def filled(name: str) -> SigaModel:
    """The model with random weights of a fixed seed."""
    torch.manual_seed(0)
    return build_siga(name)


def training(name: str, batch: int = 4) -> Callable[[], object]:
    """Forward, all losses and backward of a step on words of six letters, seven decoders; as in v, no optimiser."""
    model = filled(name).train()
    height, width = model.settings.image_size
    images = torch.randn(batch, 3, height, width)
    masks = masks_to_float(torch.randint(0, 2, (batch, height, width), dtype=torch.uint8))
    text = torch.zeros(batch, model.steps + 1, dtype=torch.long)
    text[:, 0], text[:, 1:7], text[:, 7] = model.start_id, torch.randint(2, 37, (batch, 6)), model.end_id
    lengths = torch.full((batch,), 7)

    def step() -> None:
        output = model(images, text[:, :-1], masks)
        model.zero_grad()
        model.losses(output, text, lengths, 0).total.backward()

    return step


def reading(name: str, batch: int = 32) -> Callable[[], object]:
    """The Share branch for all its steps: random weights end no word early."""
    model = filled(name).eval()
    images = torch.randn(batch, 3, *model.settings.image_size)

    def read() -> torch.Tensor:
        with torch.inference_mode():
            return model.read(images, stop_early=False)[0].logits

    return read


def masking(size: tuple[int, int] | None) -> Callable[[], np.ndarray]:
    """The mask of one decoded crop, at `size` (h, w) or its own."""
    image = decode_rgb(jpeg_crop())
    image = image if size is None else resize_bicubic(image, size)
    return lambda: text_mask(image)
