"""Optimisers, parameter groups, averages of weights, precision, accumulation, and the check before every step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.models import cpu
from common.train.checkpoint import write_json

Named = Iterable[tuple[str, nn.Parameter]]


def no_decay(name: str, parameter: nn.Parameter) -> bool:
    """The usual exception from weight decay: vectors, scalars and biases."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def parameter_groups(
    named: Named,
    weight_decay: float,
    *,
    skip: Iterable[str] = (),
    layer_of: Callable[[str], int] | None = None,
    layers: int = 0,
    layer_decay: float = 1.0,
    exempt: Callable[[str, nn.Parameter], bool] = no_decay,
) -> list[dict[str, Any]]:
    """Trainable parameters in groups by decay and, with `layer_of`, by depth.

    Args:
        named: (name, parameter) pairs; those that need no gradient are skipped.
        weight_decay: of the decaying groups; the others get 0.
        skip: further names that do not decay.
        layer_of: name -> layer id in 0…layers; None for two groups only.
        layers: the last layer id (the head's).
        layer_decay: group "lr_scale" is layer_decay^(layers - id).
        exempt: rule of the parameters that do not decay.

    Returns:
        Groups in order of first appearance with keys params, weight_decay, lr_scale, group_name ("decay", "no_decay" or
        "layer_3_decay") and names.
    """
    skip = set(skip)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        free = exempt(name, parameter) or name in skip
        key, scale = ("no_decay" if free else "decay"), 1.0
        if layer_of is not None:
            layer = layer_of(name)
            key, scale = f"layer_{layer}_{key}", layer_decay ** (layers - layer)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "weight_decay": 0.0 if free else weight_decay,
                "lr_scale": scale,
                "group_name": key,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


PIECE = 1 << 17  # elements; five float32 pieces of this size stay in the last-level cache, and threads have work


class Adadelta(torch.optim.Adadelta):
    """torch.optim.Adadelta whose step on a CPU goes through memory once instead of ten times, with equal numbers.

    torch's step is a chain of element-wise operations over whole tensors; for models of 100 M parameters each of them
    streams the tensor through the memory bus. Here the chain runs on pieces that fit into a cache, for plain float32
    CPU tensors; all else is torch's own. Every element goes through the same operations in the same order, so
    parameters and state are equal bit for bit. State names and `state_dict` are torch's. STRLAB_CPU_KERNELS=0 turns it
    off; `common/models/cpu.py` has the figure.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure` as in torch."""
        if not cpu.enabled() or any(not self._simple(group) for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return loss

    @staticmethod
    def _simple(group: dict) -> bool:
        """True when no option asks for more than the plain rule on dense float32 CPU tensors."""
        options = ("maximize", "capturable", "differentiable", "weight_decay")
        return not any(group.get(name) for name in options) and all(
            p.grad is None
            or (
                p.device.type == "cpu"
                and p.dtype == p.grad.dtype == torch.float32
                and p.is_contiguous()
                and p.grad.is_contiguous()
            )
            for p in group["params"]
        )

    def _step_one(self, parameter: torch.Tensor, group: dict) -> None:
        """Update one parameter piece by piece."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["square_avg"] = torch.zeros_like(parameter)
            state["acc_delta"] = torch.zeros_like(parameter)
        state["step"] += 1
        rho, eps, lr = group["rho"], group["eps"], float(group["lr"])
        tensors = (parameter, parameter.grad, state["square_avg"], state["acc_delta"])
        for values, gradient, squares, deltas in zip(*(tensor.view(-1).split(PIECE) for tensor in tensors)):
            squares.mul_(rho).addcmul_(gradient, gradient, value=1 - rho)
            deviation = squares.add(eps).sqrt_()
            delta = deltas.add(eps).sqrt_()
            delta.div_(deviation).mul_(gradient)
            deltas.mul_(rho).addcmul_(delta, delta, value=1 - rho)
            values.add_(delta, alpha=-lr)


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

    timm's `ModelEmaV3` rounds otherwise in the last bit, and the states of runs are compared bit by bit.

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
        return {"decay": self.decay, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; devices of the present tensors are kept."""
        self.decay = state["decay"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adadelta": Adadelta,
    "adafactor": torch.optim.Adafactor,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def build_optimizer(name: str, params: Iterable[Any], lr: float, **options: Any) -> torch.optim.Optimizer:
    """torch's optimiser of that name (case does not matter) with its options.

    Raises `UserError` for an unknown name or an option that it does not take.
    """
    if name.lower() not in OPTIMIZERS:
        raise UserError(f"--optimizer: {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name.lower()](params, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"--optimizer: {name}: {error}") from None


class NonFinite(UserError):
    """A loss, gradient or input that is not a number. Nothing was stepped; `where` holds the batch."""


def check_finite(
    loss: torch.Tensor | float, *, step: int, what: str = "loss", batch_ids: Any = None, folder: Path | None = None
) -> None:
    """Stop before the optimizer when a value is not finite.

    Args:
        loss: a tensor of any shape, or a number.
        step: for the message.
        what: for the message: loss, gradient norm, name of a term.
        batch_ids: sample indices of the batch; written to `folder/non_finite_<step>.json` with the value.
        folder: where to write; None writes nothing.

    Raises:
        NonFinite: one line that names the step and the file.
    """
    value = float(loss.detach().sum()) if isinstance(loss, torch.Tensor) else float(loss)
    if math.isfinite(value):
        return
    note = ""
    if folder is not None:
        ids = batch_ids.tolist() if hasattr(batch_ids, "tolist") else list(batch_ids if batch_ids is not None else [])
        path = Path(folder) / f"non_finite_{step}.json"
        write_json(path, {"step": step, "what": what, "value": repr(value), "batch": ids})
        note = f"; the batch's sample numbers are in {path}"
    raise NonFinite(
        f"step {step}: {what} is {value}, nothing was stepped{note}; lower --lr, train with --amp no, or look at these"
        " samples"
    )


class Precision:
    """`--amp {no,fp16,bf16}` as one object: the forward's context, the backward, and the step.

    Args:
        amp: no (fp32), fp16 (with a dynamic loss scale; CUDA only) or bf16.
        device: where the model computes.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        if amp not in ("no", "fp16", "bf16"):
            raise UserError(f"--amp: {amp!r} is none of no, fp16, bf16")
        if amp == "fp16" and device.type != "cuda":
            raise UserError("--amp: fp16 needs a CUDA device; use bf16 or no")
        self.amp, self.device = amp, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of the forward pass: lower precision where `amp` asks for it, nothing with "no"."""
        if self.amp == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.amp == "fp16" else torch.bfloat16)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward of the loss, multiplied by the loss scale under fp16."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> torch.Tensor | None:
        """Unscale, clip the global L2 norm, step. Returns the norm before clipping, None if `max_norm` is None or 0.

        With fp16 a non-finite gradient skips the step and lowers the scale; without, it raises through `check_finite`
        if the caller checks the norm that `clip` returns.
        """
        norm = self.clip(optimizer, max_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return norm

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> torch.Tensor | None:
        """Unscale and clip only (to check the norm before `step` with max_norm None)."""
        if not max_norm:
            return None
        self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


@contextlib.contextmanager
def accumulating(module: nn.Module, last: bool):
    """Gradient accumulation: without communication between ranks unless it is the `last` micro-batch of the step."""
    silent = contextlib.nullcontext() if last or not hasattr(module, "no_sync") else module.no_sync()
    with silent:
        yield
