"""Exponential moving averages of parameters, in a few fused calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def ema_update(averaged: Iterable[torch.Tensor], current: Iterable[torch.Tensor], momentum: float) -> None:
    """averaged <- momentum·averaged + (1 - momentum)·current, in place, tensor by tensor in the given order."""
    averaged, current = list(averaged), [tensor.detach() for tensor in current]
    if not averaged:
        return
    torch._foreach_mul_(averaged, momentum)
    torch._foreach_add_(averaged, current, alpha=1.0 - momentum)


class Ema:
    """Averaged copy of a module's parameters and floating-point buffers.

    Args:
        model: the module to follow (unwrapped: names without `module.`).
        decay: momentum of each update.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """Move towards the model's present values; integer buffers are copied."""
        averaged, current = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.values[name])
                current.append(value)
            else:
                self.values[name].copy_(value)
        ema_update(averaged, current, self.decay if decay is None else decay)

    def state_dict(self) -> dict[str, Any]:
        """Decay and averaged tensors."""
        return {"decay": self.decay, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; devices of the present tensors are kept."""
        self.decay = state["decay"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)
