"""Benchmark rows: training steps of MGP-STR and ACDS-STR, reading with fusion, and both against plain eager code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from common.bench.rows import Row
from common.text.charset import CHARSET_36
from common.train.optim import build_optimizer
from projects.mgpstr.evaluate import read_batch
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.a3 import A3
from projects.mgpstr.model.build import build_model
from projects.mgpstr.model.mgp_str import MgpStr

WORDS = ("university", "coffee", "the", "market", "street", "2024", "international", "open")
TINY, BASE = "mgp_str_tiny_patch4_3_32_128", "mgp_str_base_patch4_3_32_128"
STEPS = {("mgp-str", TINY): 0.50, ("mgp-str", BASE): 4.1, ("ACDS-STR-Small", ""): 3.4}  # published, v an image, batch 8


def rows() -> list[Row]:
    """All rows; models are built when their row is run."""
    steps = [
        Row(f"mgpstr: train step {model or method}, batch 8", lambda m=method, n=model: training(m, n), "v", 8,
            published=published, threads=2, memory=True)
        for (method, model), published in STEPS.items()
    ]  # fmt: skip
    return [
        *steps,
        Row("mgpstr: read base with fusion, batch 32", lambda: reading(BASE), "v", 32, published=1.92, threads=2),
        Row("mgpstr: train step tiny over plain eager", lambda: training("mgp-str", TINY), "x", 8,
            versus=lambda: eager_training(TINY), target=1.0, threads=2,
            note="dense 50,257-way logits, torch Adadelta"),
        Row("mgpstr: read tiny over plain eager", lambda: reading(TINY, 8), "x", 8,
            versus=lambda: eager_reading(TINY, 8), target=1.0, threads=2, note="softmax over every position"),
    ]  # fmt: skip


def inputs(model: nn.Module, batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], LabelCodes]:
    """Random pictures [B, 3, 32, 128], targets of eight ordinary words repeated, and the codes."""
    codes = LabelCodes(CHARSET_36, 25, model.granularities)
    words = [WORDS[i % len(WORDS)] for i in range(batch)]
    targets = {name: torch.from_numpy(ids) for name, ids in codes.encode(words).items()}
    return torch.rand(batch, 3, 32, 128, generator=torch.Generator().manual_seed(0)), targets, codes


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What the optimizer steps."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def training(transformer: str, name: str, batch: int = 8) -> Callable[[], object]:
    """A whole step: forward, losses (with the mask loss for ACDS-STR), backward, clipping, Adadelta."""
    torch.manual_seed(0)
    model = build_model(transformer, name).train()
    images, targets, _ = inputs(model, batch)
    masks = (torch.zeros(batch, 32, 128),) if transformer.startswith("ACDS") else ()
    optimizer = build_optimizer("adadelta", trained(model), 1.0, rho=0.95, eps=1e-8)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model.losses(images, targets, *masks).values()).backward()
        nn.utils.clip_grad_norm_(trained(model), 5.0)
        optimizer.step()

    return step


def reading(name: str, batch: int = 32) -> Callable[[], object]:
    torch.manual_seed(0)
    model = build_model("mgp-str", name).eval()
    images, _, codes = inputs(model, batch)
    pixels = (images.permute(0, 2, 3, 1) * 255).to(torch.uint8)
    return lambda: read_batch(model, codes, pixels)


def plain_a3(module: A3, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A3 as the paper writes it: norm, two convolutions, softmax over tokens, a third, product, norm."""
    normalised = module.token_norm(tokens).mT.unsqueeze(-1)
    attention = module.tokenLearner(normalised).flatten(2).softmax(-1)
    return attention, module.norm(attention @ module.feat(normalised).flatten(2).mT)


def plain_logits(model: MgpStr, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits [B, T, C] of every head and position, with explicit attention in the blocks."""
    net = model.mgp_str
    for block in net.blocks:
        block.attn.fused_attn = False
    tokens = net.encode(images)
    found = {name: plain_a3(getattr(net, f"{name}_tokenLearner"), tokens)[1] for name in model.granularities}
    return {name: net.classifier(name)(values) for name, values in found.items()}


def eager_training(name: str, batch: int = 8) -> Callable[[], object]:
    """The same step without any of our short cuts."""
    torch.manual_seed(0)
    model = build_model("mgp-str", name).train()
    images, targets, _ = inputs(model, batch)
    optimizer = torch.optim.Adadelta(trained(model), lr=1.0, rho=0.95, eps=1e-8, foreach=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = plain_logits(model, images)
        losses = [F.cross_entropy(logits[k].flatten(0, 1), targets[k].flatten(), ignore_index=0) for k in logits]
        sum(losses).backward()
        nn.utils.clip_grad_norm_(trained(model), 5.0)
        optimizer.step()

    return step


def eager_reading(name: str, batch: int) -> Callable[[], object]:
    """Arg-max and maximum of the softmax over every position."""
    torch.manual_seed(0)
    model = build_model("mgp-str", name).eval()
    images, _, _ = inputs(model, batch)

    @torch.no_grad()
    def read() -> object:
        return [logits.softmax(-1).max(-1) for logits in plain_logits(model, images).values()]

    return read
