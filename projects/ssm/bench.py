"""Benchmark rows: pre-training and fine-tuning steps, greedy reading, cached against plain decoding, collation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.bench.rows import Row
from common.bench.units import jpeg_crop
from common.data.decode import decode_resized
from common.models.cpu import attend_folded
from common.train.optim import build_optimizer, parameter_groups
from projects.ssm.model.attention import MultiheadAttention
from projects.ssm.model.build import build_recogniser
from projects.ssm.model.pretrain_losses import objective
from projects.ssm.model.pretrainer import build_pretrainer
from projects.ssm.model.transocr import TransOCR
from projects.ssm.pretrain.collate import draw_directions, superimpose

IMAGES = (3, 32, 128)
PUBLISHED = {"TransOCR": (1.1, 1.26, 0.5), "PARSeq": (0.6, 0.24, 0.24)}


def rows() -> list[Row]:
    """All rows; models are built when their row is run."""
    found = [Row("ssm: pre-train small, batch 8", pretraining, "v", 8, published=2.0, target=2.0)]
    for name, (step, reading_time, target) in PUBLISHED.items():
        found += [
            Row(f"ssm: fine-tune {name}, batch 8", _of(fine_tuning, name), "v", 8, published=step, target=step),
            Row(
                f"ssm: greedy {name}, batch 32", _of(reading, name), "v", 32, published=reading_time, target=target,
                note="random weights: no early stop",
            ),
        ]  # fmt: skip
    return [
        *found,
        Row("ssm: cached against plain decoding, batch 64", cached, "x", 64, target=3.0, versus=plain),
        Row("ssm: folded cross-attention of 7 tokens over projected", folded, "x", 8, target=1.0, versus=projected),
        Row("ssm: pre-training collation", collation, "u", 8, published=10.0, target=2.0),
    ]


def _of(make: Callable[[str], Callable], name: str) -> Callable[[], object]:
    return lambda: make(name)


def pretraining(batch: int = 8) -> Callable[[], object]:
    """A whole step of the small model: views are given; EMA, momentum branch, losses, backward, AdamW."""
    torch.manual_seed(0)
    model = build_pretrainer("flipae_sim_vit_small_str").train()
    optimizer = build_optimizer("adamw", parameter_groups(model.named_parameters(), 0.05), 1e-4, betas=(0.9, 0.95))
    pixels = torch.randint(0, 256, (batch, 32, 128, 3), dtype=torch.uint8)
    views = superimpose(pixels, pixels, draw_directions("aug_pool", batch, np.random.default_rng(0)))
    directions = torch.stack([views.positive, views.negative])

    def step() -> None:
        output = model(views.student_mix, views.teacher_mix, directions, 0.995)
        objective(output, views.student, views.student_flipped, model.patch_size, weight=0.25).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def recogniser(name: str) -> torch.nn.Module:
    """The headline TransOCR (patch 4x4, decoder of depth 6), or PARSeq with one refinement; random weights."""
    torch.manual_seed(0)
    sizes = {"patch_size": (4, 4), "dec_depth": 6} if name == "TransOCR" else {"patch_size": (4, 8)}
    return build_recogniser(name, "x" * (36 if name == "TransOCR" else 94), {"img_size": (32, 128), **sizes})


def fine_tuning(name: str, batch: int = 8) -> Callable[[], object]:
    """A whole step on words of six letters, with dropout."""
    model = recogniser(name).train()
    optimizer = build_optimizer("adamw", model.parameters(), 1e-4, fused=True)
    images = torch.rand(batch, *IMAGES) * 2 - 1
    targets = torch.randint(1, 37, (batch, 8))
    targets[:, 0], targets[:, -1] = model.bos_id, 0

    def step() -> None:
        model.loss(images, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reading(name: str, batch: int = 32) -> Callable[[], object]:
    """Greedy decoding of all 26 steps."""
    model = recogniser(name).eval()
    images = torch.rand(batch, *IMAGES) * 2 - 1

    def read() -> Tensor:
        with torch.inference_mode():
            return model(images, 25)

    return read


def decoder_and_memory(batch: int) -> tuple[TransOCR, Tensor]:
    """The TransOCR decoder and an encoder output for it."""
    model = recogniser("TransOCR").eval()
    memory = torch.randn(batch, 256, 384)
    model.encode = lambda images: memory
    return model, memory


def cached(batch: int = 64) -> Callable[[], object]:
    """Decoding with keys and values kept, without the encoder."""
    model, _ = decoder_and_memory(batch)
    images = torch.zeros(batch, 1)

    def decode() -> Tensor:
        with torch.inference_mode():
            return model(images, 25)

    return decode


def plain(batch: int = 64) -> Callable[[], object]:
    """The same tokens, every step computed anew from all tokens so far."""
    model, memory = decoder_and_memory(batch)

    def decode() -> Tensor:
        with torch.inference_mode():
            ids = torch.full((batch, 1), model.bos_id)
            for _ in range(26):
                logits = model.head(model.decode(ids, memory))
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return logits

    return decode


def cross_attention(fold: bool, batch: int = 8) -> Callable[[], object]:
    """Forward and backward of one decoder layer's attention over the image."""
    torch.manual_seed(0)
    layer = MultiheadAttention(384, 12, dropout=0.1).train()
    queries, memory = torch.randn(batch, 7, 384), torch.randn(batch, 256, 384, requires_grad=True)

    def step() -> None:
        mixed = attend_folded(layer, queries, memory) if fold else layer.attend(queries, *layer.keys_values(memory))
        mixed.sum().backward()
        layer.zero_grad()
        memory.grad = None

    return step


def folded() -> Callable[[], object]:
    """Without keys and values of the image."""
    return cross_attention(True)


def projected() -> Callable[[], object]:
    return cross_attention(False)


def collation(batch: int = 8) -> Callable[[], object]:
    """Decode, resize and superimpose a batch of crops."""
    crop, rng = jpeg_crop(), np.random.default_rng(0)

    def collate() -> Tensor:
        pixels = torch.from_numpy(np.stack([decode_resized(crop, (32, 128)) for _ in range(batch)]))
        return superimpose(pixels, pixels, draw_directions("aug_pool", batch, rng)).student_mix

    return collate
