"""The whole state of a training run: generators, weights, optimizer, position; written, kept and found again."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from common.data.bad import BadSamples
from common.errors import UserError
from common.files import DiskFull
from common.train.checkpoint import clear_unfinished, git_commit, keep_last, latest, load, save_atomic
from common.train.distributed import Dist, unwrap

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
        parts: further stateful things by name: sampler, scaler (`Precision`), ema, schedule. One with an attribute
            `by_rank` (the meters of a log) differs between the processes, and each gets its own back.
        options: the run's options, as a dict of plain values.
        step: steps done, which is also the number of the next step.
        extra: plain values that the script keeps: best accuracy, sums of losses.
        data: fingerprint of the training data; a state of other data is refused. "" compares nothing.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    parts: dict[str, Stateful] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    data: str = ""

    def __post_init__(self) -> None:
        git_commit()  # remembered from the start of the run

    def save(self, path: str | Path, dist: Dist) -> Path:
        """Write the state atomically. Collective: every rank calls it (generators differ by rank), rank 0 writes.

        Raises `DiskFull` or `UserError` on every rank if rank 0 cannot write.
        """
        own = {name: part.state_dict() for name, part in self.parts.items() if hasattr(part, "by_rank")}
        ranks = dist.gather((rng_state(), own))
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
                        "rng": [generators for generators, _ in ranks],
                        "by_rank": [parts for _, parts in ranks],
                        "options": plain(self.options),
                        "data": self.data,
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
        if self.data and state.get("data") and state["data"] != self.data:
            raise UserError(
                f"{where}: written with other training data ({state['data']}; now {self.data}): the order of samples "
                "would not continue; give the data of that run, or start a new run from its weights"
            )
        try:
            unwrap(self.model).load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"{where}: model: {_mismatch(error)}; give the options of the run that wrote it") from None
        parts = state["parts"]
        if "by_rank" in state and state["world_size"] == dist.world_size:
            parts = {**parts, **state["by_rank"][dist.rank]}
        try:
            if self.optimizer is not None:
                self.optimizer.load_state_dict(state["optimizer"])
            for name, part in self.parts.items():
                if name in parts:
                    part.load_state_dict(parts[name])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: optimizer or sampler: {error}; give the options of its run") from None
        self.step, self.extra = state["step"], {**self.extra, **state["extra"]}
        if state["world_size"] == dist.world_size:
            set_rng_state(state["rng"][dist.rank])
        else:
            print(
                f"{where}: written by {state['world_size']} processes, resumed by {dist.world_size}: random draws "
                "and the order of samples continue, but not as they would have"
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


STATES = "training_state-*.pth"


def save_state(
    state: TrainingState,
    folder: Path,
    dist: Dist,
    keep: int = 2,
    on_full: str = "stop",
    name: str = STATES.replace("*", "{step:09d}"),
) -> bool:
    """Write the state of this step and delete all numbered ones but the last `keep` (0: all stay). Collective.

    Returns False if the disk is full and `on_full` is "continue"; raises `DiskFull` otherwise.
    """
    try:
        state.save(folder / name.format(step=state.step), dist)
    except DiskFull as error:
        if on_full == "stop":
            raise
        print(f"state not saved, the run continues: {error}")
        return False
    if dist.is_main and "{" in name:
        keep_last(folder, re.sub(r"{.*?}", "*", name), keep)
    return True


def newest_state(folder: Path, dist: Dist) -> tuple[Path, dict[str, Any]] | None:
    """The newest state of the folder that can be read, with its content; None where there is none."""
    if dist.is_main:
        clear_unfinished(folder)
    return latest(folder, STATES)


def is_state(content: Any) -> bool:
    """True for the content of a training state, False for that of a published checkpoint."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def refuse_changes(path: str | Path, changed: Sequence[str], allowed: bool) -> None:
    """Options that decide the result differ from those of the state: print them where that is `allowed`.

    Raises `UserError` otherwise: what follows would be neither the old run nor the new one.
    """
    if not changed:
        return
    told = f"{path}: written with other options: {'; '.join(changed)}"
    if not allowed:
        raise UserError(
            f"{told}: the result would be neither that run nor a new one; give its options, another output folder, or "
            "--allow_changes"
        )
    print(told)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed python, numpy, torch and CUDA with `seed + rank` (rank 0 gives the same draws on every rank)."""
    value = (seed + rank) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def rng_state() -> dict[str, Any]:
    """States of python, numpy, torch and CUDA generators as tensors and tuples (safe for weights-only loading)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. CUDA states are put back as far as there are devices for them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)


def share_bad(register: BadSamples, dist: Dist) -> None:
    """Every rank learns what any rank has met; rank 0, whose register has the file, writes it. Collective.

    Between two calls a rank judges what it knows. Raises `UserError` on all ranks where the lists together are above
    the limit.
    """
    if not dist.distributed:
        return
    found = dist.gather(register.rows())
    with dist.failing_together():
        register.add(row for rows in found for row in rows)
