"""A toy training for tests of the loop: a linear model on fixed batches, in one process or under torchrun.

python -m tests.common.train.toy_run OUT.pt [name=value …]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from common.errors import command
from common.train.distributed import Dist, process_group, wrap
from common.train.loop import Clock, Engine, Loop
from common.train.optim import Precision, build_optimizer

BATCHES = 6  # of an epoch, on each rank


@dataclass
class ToyBatch:
    """Features float [n, 3] and targets float [n, 1]."""

    x: torch.Tensor
    y: torch.Tensor
    indices: torch.Tensor
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class ToyLoader:
    """Fixed batches by (epoch, position, rank); those in `empty` have no readable sample."""

    rank: int = 0
    size: int = 4
    empty: set[tuple[int, int]] = field(default_factory=set)  # (rank, position)
    endless: bool = False
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = SimpleNamespace(epoch=0, position=0)

    def __iter__(self):
        place = self.sampler
        while True:
            while place.position < BATCHES:
                epoch, position = place.epoch, place.position
                self.asked.append((epoch, position))
                place.position += 1
                yield self.batch(epoch, position)
            if not self.endless:
                return
            place.epoch, place.position = place.epoch + 1, 0

    def batch(self, epoch: int, position: int) -> ToyBatch:
        generator = torch.Generator().manual_seed(1000 * self.rank + 100 * epoch + position)
        weight = 0.0 if (self.rank, position) in self.empty else 1.0
        x = torch.randn(self.size, 3, generator=generator)
        y = torch.randn(self.size, 1, generator=generator)
        return ToyBatch(x, y, torch.arange(self.size) + 10 * position, weight)


@dataclass
class ToyMethod:
    """Mean squared error; `poison` = (rank, step) gives a loss that is not a number."""

    model: nn.Module
    rank: int = 0
    poison: tuple[int, int] = (-1, -1)
    moved: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)

    def losses(self, batch: ToyBatch, clock: Clock, number: int):
        self.seen.append((clock.step, number))
        loss = (self.model(batch.x) - batch.y).square().mean()
        if (self.rank, clock.step) == self.poison:
            loss = loss * float("nan")
        return loss, {"loss": loss.detach()}

    def rates(self, step: int):
        return 0.1 / (1 + step), None

    def stepped(self, clock: Clock) -> None:
        self.moved += 1


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def build(total: int, per_epoch: int | None = None, dist: Dist | None = None, **more) -> Loop:
    """A loop on the toy; `more`: empty, poison, and attributes of `Loop` and `Clock`."""
    dist = dist or Dist()
    loader = ToyLoader(dist.rank, empty=more.pop("empty", set()), endless=per_epoch is None)
    wrapped = wrap(model(), dist)
    method = ToyMethod(wrapped, dist.rank, more.pop("poison", (-1, -1)))
    optimizer = build_optimizer("adamw", wrapped.parameters(), 0.1)
    clock = Clock(total, per_epoch, stop_at=more.pop("stop_at", 0))
    engine = Engine(wrapped, optimizer, Precision("no", dist.device), dist)
    return Loop(method, clock, loader, engine, **more)


@command
def main() -> None:
    """Run the toy as the arguments say and store the weights of each rank."""
    out, settings = Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])
    pair = {"empty": set(), "poison": (-1, -1)}
    if "empty" in settings:
        pair["empty"] = {tuple(map(int, settings["empty"].split(",")))}
    if "poison" in settings:
        pair["poison"] = tuple(map(int, settings["poison"].split(",")))
    with process_group("cpu", "env://", -1) as dist:
        loop = build(
            int(settings["total"]), None, dist, accumulate=int(settings.get("accumulate", 1)), max_norm=1.0, **pair
        )
        steps = []
        loop.engine.optimizer.register_step_post_hook(lambda *_: steps.append(loop.clock.step))
        try:
            loop.run()
        finally:
            weights = {name.removeprefix("module."): value for name, value in loop.engine.model.state_dict().items()}
            torch.save({"weights": weights, "steps": steps}, f"{out}.{dist.rank}")


if __name__ == "__main__":
    sys.exit(main())
