"""The whole state of a training run, to go on exactly where it stopped."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from common.errors import UserError
from common.train.checkpoint import git_commit, load, save_atomic
from common.train.distributed import Dist, unwrap
from common.train.seed import rng_state, set_rng_state

FORMAT = "strlab training state 1"


class Stateful(Protocol):
    """Anything with state_dict and load_state_dict."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class TrainingState:
    """What a run is made of; `save` writes it, `resume` puts it back bit for bit (CPU, fp32, same number of processes).

    Attributes:
        model: the module, wrapped or not; stored without wrapper prefixes.
        optimizer: its moments and groups.
        parts: further stateful things by name: sampler, scaler (`Precision`), ema, schedule.
        options: the run's options, as a dict of plain values.
        step: steps done, which is also the number of the next step.
        extra: plain values that the script keeps: best accuracy, sums of losses.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    parts: dict[str, Stateful] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        git_commit()  # remembered from the start of the run

    def save(self, path: str | Path, dist: Dist) -> Path:
        """Write the state atomically. Collective: every rank calls it (generators differ by rank), rank 0 writes.

        Raises `DiskFull` or `UserError` on every rank if rank 0 cannot write.
        """
        generators = dist.gather(rng_state())
        with dist.failing_together():
            if dist.is_main:
                save_atomic(
                    path,
                    {
                        "format": FORMAT,
                        "commit": git_commit(),
                        "torch": str(torch.__version__),
                        "world_size": dist.world_size,
                        "step": self.step,
                        "model": unwrap(self.model).state_dict(),
                        "optimizer": self.optimizer.state_dict() if self.optimizer else None,
                        "parts": {name: part.state_dict() for name, part in self.parts.items()},
                        "rng": generators,
                        "options": plain(self.options),
                        "extra": plain(self.extra),
                    },
                )
        return Path(path)

    def resume(self, source: str | Path | dict[str, Any], dist: Dist) -> TrainingState:
        """Put back a saved state (a path, or what `load` returned for it). Call it last, just before the loop.

        Raises:
            UserError: the file is no training state, or holds another model or optimiser.
        """
        where = str(source) if not isinstance(source, dict) else "--resume"
        state = load(source) if not isinstance(source, dict) else source
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(f"{where}: not a training state; to start from weights only use --saved_model")
        try:
            unwrap(self.model).load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"{where}: model: {_mismatch(error)}; give the options of the run that wrote it") from None
        try:
            if self.optimizer is not None:
                self.optimizer.load_state_dict(state["optimizer"])
            for name, part in self.parts.items():
                if name in state["parts"]:
                    part.load_state_dict(state["parts"][name])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: optimizer or sampler: {error}; give the options of its run") from None
        self.step, self.extra = state["step"], {**self.extra, **state["extra"]}
        if state["world_size"] == dist.world_size:
            set_rng_state(state["rng"][dist.rank])
        else:
            print(
                f"{where}: written by {state['world_size']} processes, resumed by {dist.world_size}: random draws "
                "and the order of samples go on, but not as they would have"
            )
        return self


def _mismatch(error: RuntimeError) -> str:
    """The first facts of torch's state-dict error, in one line."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    return " ".join(lines)[:240] or str(error)


def plain(value: Any) -> Any:
    """Options as what weights-only loading takes: numbers, strings, lists, dicts; anything else as text."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)) else str(value)
