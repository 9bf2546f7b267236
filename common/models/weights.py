"""Published state dicts -> our modules, strictly, with an error that can be acted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from common.errors import UserError


@dataclass(frozen=True)
class LoadReport:
    """What a load did: names taken over, names of the module left as they were, names of the file not used."""

    kept: list[str]
    missing: list[str]
    unexpected: list[str]


def strip_prefix(state: Mapping[str, torch.Tensor], prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Names without `prefix` (repeated as often as it stands in front), as (Distributed)DataParallel adds it."""
    renamed = {}
    for name, tensor in state.items():
        while name.startswith(prefix):
            name = name[len(prefix) :]
        renamed[name] = tensor
    return renamed


def add_prefix(state: Mapping[str, torch.Tensor], prefix: str = "module.") -> dict[str, torch.Tensor]:
    """The names with `prefix` in front: the form in which the published trainers wrote their files."""
    return {prefix + name: tensor for name, tensor in state.items()}


def _some(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def load_strict(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None] | None = None,
    *,
    what: str = "checkpoint",
    allow_missing: Callable[[str], bool] = lambda name: False,
    allow_unexpected: Callable[[str], bool] = lambda name: False,
) -> LoadReport:
    """Load `state` into `module`; every name and shape must agree, but for those the two `allow_*` rules let pass.

    A leading `module.` is removed first; `rename` then maps a published name to ours (None: drop it). `what` stands at
    the head of the error. Raises UserError that lists the names missing, not known, or of another shape.
    """
    renamed = {}
    for name, tensor in strip_prefix(state).items():
        ours = rename(name) if rename else name
        if ours is not None:
            renamed[ours] = tensor
    # Pre-hooks may accept names that are not in our state dict (constants), so they run before names are compared.
    accepted = dict(renamed)
    for prefix, child in module.named_modules():
        for hook in child._load_state_dict_pre_hooks.values():
            hook(accepted, prefix + "." if prefix else "", {}, True, [], [], [])
    own = module.state_dict()
    missing = [name for name in own if name not in accepted and not allow_missing(name)]
    unexpected = [name for name in accepted if name not in own and not allow_unexpected(name)]
    shapes = [
        f"{name} {tuple(accepted[name].shape)} here {tuple(own[name].shape)}"
        for name in own
        if name in accepted and accepted[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", missing), ("not known", unexpected), ("other shape", shapes))
        if names
    ]
    if problems:
        cure = "is it of another model, variant or character set?"
        raise UserError(f"{what}: weights: {'; '.join(problems)} ({cure})")
    module.load_state_dict({name: accepted[name] for name in own if name in accepted}, strict=False)
    kept = [name for name in own if name in accepted]
    left = [name for name in own if name not in accepted]
    return LoadReport(kept, left, [name for name in accepted if name not in own])
