"""Which parameters train with which weight decay and share of the learning rate, and what changes over the steps (spec
dig, sections 6.2 to 6.4)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import nn

from common.train import optim
from common.train.schedule import warmup_cosine_table


def layer_id(name: str, depth: int) -> int:
    """Layer of a recogniser's parameter: 0 embedding, 1 … `depth` blocks, `depth` + 1 everything else."""
    if name.startswith("encoder"):
        name = name.replace("encoder.", "")
        if name.startswith(("mask_token", "patch_embed")):
            return 0
        if name.startswith("blocks"):
            return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, depth: int = 12
) -> list[dict[str, Any]]:
    """Optimizer groups by decay and, with `layer_decay` < 1, by layer of an encoder of `depth` blocks.

    The published skip lists (`pos_embed`, `cls_token`) name nothing that these models have, so the mask token and the
    decoder's embedding decay like matrices.
    """
    if layer_decay >= 1:
        return optim.parameter_groups(model.named_parameters(), weight_decay)
    return optim.parameter_groups(
        model.named_parameters(),
        weight_decay,
        layer_of=partial(layer_id, depth=depth),
        layers=depth + 1,
        layer_decay=layer_decay,
    )


def freeze_encoder(model: nn.Module, layers: int) -> list[str]:
    """`--fixed_encoder_layers`: from 1 on the patch embedding is frozen, and for k > 1 the first k - 1 blocks.

    More than there are freezes all blocks; the final norm and the mask token stay trainable. Returns the frozen names.
    """
    encoder = model.encoder
    frozen = [encoder.patch_embed, *encoder.blocks[: max(layers - 1, 0)]] if layers >= 1 else []
    for module in frozen:
        module.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def contrast_weights(
    epoch: int, iterations: int, weight: float, start_epoch: int = 0, warmup_steps: int = 0
) -> np.ndarray:
    """The contrastive loss's weight at each of an epoch's `iterations`.

    0 before `start_epoch`; in that epoch a ramp from 0 to `weight`, both included, over the first `warmup_steps`
    steps (cut to the epoch), then `weight`; afterwards `weight`.
    """
    if epoch < start_epoch:
        return np.zeros(iterations)
    weights = np.full(iterations, float(weight))
    if epoch == start_epoch:
        ramp = min(warmup_steps, iterations)
        weights[:ramp] = np.linspace(0, weight, ramp)
    return weights


def step_table(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """Value of every step of a run: a linear warm-up with both ends, then a cosine that starts at the base again.

    `warmup_steps` > 0 replaces `warmup_epochs` and, unlike in the published code, works without warm-up epochs too.
    Raises ValueError if the warm-up is longer than the run.
    """
    warmup = warmup_steps if warmup_steps > 0 else warmup_epochs * niter_per_ep
    return warmup_cosine_table(base_value, final_value, epochs * niter_per_ep, warmup)
