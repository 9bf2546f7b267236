"""Run a training script that is disturbed at one definite step, as `python -m tests.runs.disturbed HOW STEP MODULE …`.

HOW is `kill`: SIGKILL to rank 0 when it has written half of the training state of that step (0: never), or `leave`:
SIGTERM to the last rank alone, so that all save their state after that step.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.train import checkpoint
from common.train.loop import Loop


def kill_while_writing(step: int) -> None:
    """Half of the state of this step reaches its temporary file; this process can do nothing any more then."""
    save = checkpoint.torch.save

    def half(thing: object, file, **how: object) -> None:
        if isinstance(thing, dict) and step in (thing.get("step"), thing.get("global_step")):  # or Lightning's
            file.write(b"PK half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(thing, file, **how)

    checkpoint.torch.save = half


def ask_to_leave(after: int) -> None:
    """The signal comes during the step, before the processes agree on whether to leave."""
    agree = Loop.agree

    def asked(self: Loop, *args: object) -> tuple[bool, float, float]:
        dist = self.engine.dist
        if self.clock.step + 1 == after and dist.rank == dist.world_size - 1:
            signal.raise_signal(signal.SIGTERM)
        return agree(self, *args)

    Loop.agree = asked


@contextmanager
def not_finite(where: str, after: int) -> Iterator[list[int]]:
    """From then on every convolution and linear layer in training sees ("input") or sends back ("gradient") NaN.

    Yields the list that holds the number of optimizer steps.
    """
    steps = [0]

    def due(layer: nn.Module) -> bool:
        layers = (nn.Conv2d, nn.Linear)
        return steps[0] >= after and isinstance(layer, layers) and layer.training and torch.is_grad_enabled()

    def before(layer: nn.Module, inputs: tuple) -> tuple | None:
        return (inputs[0] * float("nan"), *inputs[1:]) if where == "input" and due(layer) else None

    def behind(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if where == "gradient" and due(layer) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def count(*_: object) -> None:
        steps[0] += 1

    handles = [
        hooks.register_module_forward_pre_hook(before),
        hooks.register_module_forward_hook(behind),
        register_optimizer_step_post_hook(count),
    ]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    how, step, module, *words = sys.argv[1:]
    {"kill": kill_while_writing, "leave": ask_to_leave}[how](int(step))
    sys.exit(importlib.import_module(module).main(words))
