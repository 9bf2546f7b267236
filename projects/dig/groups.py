"""Which parameters train, with which weight decay and at which share of the learning rate (sections 4.1 and 4.2; BEiT's rule)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def layer_id(name: str, depth: int) -> int:
    """Layer of a recogniser's parameter: 0 embedding, 1 … `depth` blocks, `depth` + 1 everything after the encoder's blocks."""
    if name.startswith("encoder"):
        name = name.replace("encoder.", "")
        if name.startswith(("mask_token", "patch_embed")):
            return 0
        if name.startswith("blocks"):
            return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, skip: tuple[str, ...] = (), layer_decay: float = 1.0, depth: int = 12
) -> list[dict]:
    """Optimizer groups with `name`, `weight_decay`, `lr_scale`, `params`, `param_names`, in order of first use.

    Vectors, biases and names in `skip` do not decay. With `layer_decay` < 1 the groups are split by layer and `lr_scale` is
    layer_decay ** (depth + 1 - layer). Frozen parameters are left out.
    """
    layer_of: Callable[[str], int] | None = (lambda name: layer_id(name, depth)) if layer_decay < 1 else None
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name.endswith(".bias") or name in skip
        kind, scale = "no_decay" if plain else "decay", 1.0
        if layer_of is not None:
            layer = layer_of(name)
            kind, scale = f"layer_{layer}_{kind}", layer_decay ** (depth + 1 - layer)
        fresh = {"name": kind, "weight_decay": 0.0 if plain else weight_decay, "lr_scale": scale, "params": [], "param_names": []}
        group = groups.setdefault(kind, fresh)
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def freeze_encoder(model: nn.Module, layers: int) -> list[str]:
    """`--fixed_encoder_layers`: from 1 on the patch embedding is frozen, and for k > 1 the first k - 1 blocks.

    Counts above depth + 1 freeze all blocks; the final norm and the mask token stay trainable. Returns the frozen names.
    """
    encoder = model.encoder
    frozen = [encoder.patch_embed, *encoder.blocks[: max(layers - 1, 0)]] if layers >= 1 else []
    for module in frozen:
        module.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
