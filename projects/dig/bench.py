"""Benchmark rows: pre-training and fine-tuning steps, greedy reading, decoding with and without cache, the
contrastive view."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common.augment.views import ContrastiveView
from common.bench.rows import Row
from common.losses.contrastive import info_nce
from common.train.optim import build_optimizer
from projects.dig.model.decoder import Decoding
from projects.dig.model.losses import masked_targets, pixel_loss, sequence_cross_entropy
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import MoCoViT, build_pretrainer
from projects.dig.model.recogniser import RecModel, build_recogniser
from projects.dig.optim import parameter_groups

IMAGES = (3, 32, 128)


def rows() -> list[Row]:
    """All rows; models are built when their row is run."""
    read = "random weights: no early stop"
    return [
        Row("dig: pre-train small, batch 8", lambda: pretraining("small"), "v", 8, published=2.9, least=3, memory=True),
        Row("dig: pre-train tiny, batch 8", lambda: pretraining("tiny"), "v", 8, published=1.1, memory=True),
        Row("dig: pre-train tiny over plain eager", lambda: pretraining("tiny"), "x", 8, target=1.0,
            versus=lambda: eager_pretraining("tiny"), note="views apart, all pixels, EMA and AdamW one by one"),
        Row("dig: fine-tune small, batch 8", lambda: fine_tuning("small", 8), "v", 8, published=1.5, least=3,
            memory=True),
        Row("dig: greedy small, batch 32", lambda: reading("small", 32), "v", 32, published=1.97, target=0.5,
            note=read),
        Row("dig: cached against plain decoding, batch 64", cached, "x", 64, target=3.0, versus=plain),
        Row("dig: contrastive view", contrastive_view, "u", 1, published=22.0, target=3.0),
    ]  # fmt: skip


def pretrainer(size: str, batch: int) -> tuple[MoCoViT, Tensor, Tensor, Tensor]:
    """Both branches with random weights, two views of random pictures, and masks."""
    torch.manual_seed(0)
    model = build_pretrainer(f"pretrain_simmim_moco_ori_vit_{size}_patch4_32x128", temperature=0.2).train()
    images, augmented = torch.rand(2, batch, *IMAGES) * 2 - 1
    masks = RandomMasking(model.encoder.grid, 0.7).batch(np.random.default_rng(0), batch)
    return model, images, augmented, torch.from_numpy(masks)


def pretraining(size: str, batch: int = 8) -> Callable[[], object]:
    """A whole step: both views, momentum branch, losses, backward, AdamW."""
    model, images, augmented, mask = pretrainer(size, batch)
    optimizer = build_optimizer("adamw", parameter_groups(model, 0.1), 1e-4, fused=True)

    def step() -> None:
        output = model(images, augmented, mask, 0.99, True)
        loss = pixel_loss(output.pixels, masked_targets(images, mask[:, :1], model.encoder.patch))
        (loss + 0.1 * output.contrast).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def eager_pretraining(size: str, batch: int = 8) -> Callable[[], object]:
    """The same step without any of our short cuts."""
    model, images, augmented, mask = pretrainer(size, batch)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), 1e-4, foreach=False)
    hidden = [mask[:, 0], torch.zeros_like(mask[:, 1])]

    def encode(encoder: nn.Module) -> Tensor:
        return torch.cat([encoder(view, rows) for view, rows in zip((images, augmented), hidden)])

    @torch.no_grad()
    def keys() -> Tensor:
        for averaged, module in model.pairs():
            for old, new in zip(averaged.parameters(), module.parameters()):
                old.copy_(0.99 * old + 0.01 * new)
        return model.project(encode(model.momentum_encoder), online=False)

    def step() -> None:
        tokens = encode(model.encoder)
        queries = model.predictor(model.project(tokens, online=True))
        (q1, q2), (k1, k2) = queries.chunk(2), keys().chunk(2)
        contrast = info_nce(q1, k2, model.temperature).loss + info_nce(q2, k1, model.temperature).loss
        pixels = model.pix_decoder(tokens)[:batch][hidden[0]].view(batch, -1, 48)
        targets = masked_targets(images, mask[:, :1], model.encoder.patch)
        (pixel_loss([pixels], targets) + 0.1 * contrast).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def recogniser(size: str) -> RecModel:
    """The published recogniser with random weights."""
    torch.manual_seed(0)
    return build_recogniser(f"simmim_vit_{size}_patch4_32x128", drop=0.1, attention_drop=0.1, drop_path=0.1)


def fine_tuning(size: str, batch: int) -> Callable[[], object]:
    """A whole step with the dropout of the published command."""
    model = recogniser(size).train()
    optimizer = build_optimizer("adamw", parameter_groups(model, 0.05, 0.75, 12), 1e-4, fused=True)
    images = torch.rand(batch, *IMAGES) * 2 - 1
    targets, lengths = torch.randint(0, 94, (batch, 25)), torch.randint(3, 12, (batch,))

    def step() -> None:
        sequence_cross_entropy(model(images, targets, lengths).scores, targets, lengths).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reading(size: str, batch: int) -> Callable[[], object]:
    model = recogniser(size).eval()
    images = torch.rand(batch, *IMAGES) * 2 - 1
    return lambda: model.read(images)


def decoder_inputs(batch: int = 64, tokens: int = 256) -> tuple[RecModel, Tensor]:
    """A published decoder and image tokens for it."""
    model = recogniser("tiny").eval()
    return model, torch.randn(batch, tokens, model.linear_norm[0].out_features)


def cached() -> Callable[[], object]:
    """25 steps with kept keys and values."""
    model, memory = decoder_inputs()

    @torch.no_grad()
    def run() -> None:
        decoding, token = Decoding(model.decoder, memory, 25), torch.full((len(memory),), model.classes)
        for position in range(25):
            token = decoding.step(token, position).argmax(-1)

    return run


def plain() -> Callable[[], object]:
    """25 times the whole prefix, as published."""
    model, memory = decoder_inputs()
    return lambda: recompute(model, memory, 25)


@torch.no_grad()
def recompute(model: RecModel, memory: Tensor, length: int) -> Tensor:
    """Greedy ids `[B, length]` by running the decoder over the whole buffer at every step."""
    ids = torch.zeros(len(memory), length + 1, dtype=torch.long)
    ids[:, 0] = model.classes
    for step in range(length):
        logits, _ = model.decoder(memory, ids[:, :length], torch.full((len(memory),), step + 1))
        ids[:, step + 1] = logits[:, step].argmax(-1)
    return ids[:, 1:]


def contrastive_view() -> Callable[[], object]:
    """The second view of one crop of 100x34 pixels."""
    rng, view = np.random.default_rng(0), ContrastiveView()
    image = rng.integers(0, 256, (34, 100, 3), dtype=np.uint8)
    return lambda: view(image, rng)
