"""The optimizer: parameter groups, the names of `--opt`, what changes over the steps (spec dig, 6.2 to 6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.train import optim
from common.train.schedule import warmup_cosine_table

# published names of the same rules; "fused" was Apex's faster form of them
SAME = {
    "nesterov": "sgd", "momentum": "sgd", "fusedsgd": "sgd", "fusedmomentum": "sgd", "fusedadam": "adam",
    "fusedadamw": "adamw",
}  # fmt: skip
PLAIN_MOMENTUM = ("momentum", "fusedmomentum")


def optimizer_name(opt: str) -> str:
    """torch's name of the optimizer that `--opt` names; some published names mean the same one."""
    return SAME.get(opt.lower(), opt.lower())


def build_optimizer(
    groups: list[dict[str, Any]], opt: str, lr: float, *, eps: float, betas: Sequence[float] | None, momentum: float
) -> torch.optim.Optimizer:
    """The optimizer that `--opt` names, with the options that its rule has."""
    name, chosen = optimizer_name(opt), {}
    if name == "sgd":
        # the published "sgd" is Nesterov's too
        chosen.update(momentum=momentum, nesterov=opt.lower() not in PLAIN_MOMENTUM)
    elif name == "rmsprop":
        chosen.update(momentum=momentum, alpha=0.9, eps=eps)
    elif name != "adafactor":
        chosen["eps"] = eps
    if betas and name in ("adam", "adamw", "nadam", "radam"):
        chosen["betas"] = tuple(betas)
    if name in ("adam", "adamw"):
        chosen["fused"] = True  # one pass over memory a step, on CPU and CUDA
    return optim.build_optimizer(name, groups, lr, **chosen)


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


@lru_cache(maxsize=1)
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


def step_tables(
    lr: float,
    min_lr: float,
    decay: float,
    decay_end: float | None,
    epochs: int,
    per_epoch: int,
    warmup: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and weight decay of every step, float64 `[epochs * per_epoch]`.

    Args:
        lr: peak, for the whole batch of a step.
        warmup: `--warmup_epochs` and `--warmup_steps`.

    Raises:
        UserError: the warm-up is longer than the run.
    """
    try:
        rates = step_table(lr, min_lr, epochs, per_epoch, *warmup)
    except ValueError:
        raise UserError(
            f"--warmup_epochs, --warmup_steps: the warm-up is longer than the {epochs * per_epoch} steps of the run "
            f"({per_epoch} an epoch)"
        ) from None
    return rates, step_table(decay, decay if decay_end is None else decay_end, epochs, per_epoch)
