"""Learning rates (and momenta, and weight decays) as plain functions or tables of the step.

A schedule is any `Callable[[int], float]`: step n, counted from 0, to the value that step n uses. It has no state, so a
resumed run asks for its step and is exact. Tables are float64 arrays; `from_table` makes a schedule of one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step: value


def one_cycle(
    max_lr: float, total_steps: int, *, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Two cosine arcs: max_lr/div_factor up to max_lr at step pct_start·total - 1, then down to start/final_div_factor.

    The numbers of torch's OneCycleLR without momentum cycling (Smith & Topin 2018); steps past the end keep the last.
    """
    start = max_lr / div_factor
    peak = pct_start * total_steps - 1
    last = total_steps - 1

    def value(step: int) -> float:
        step = min(step, last)
        if step <= peak:
            return _arc(start, max_lr, step / peak if peak > 0 else 1.0)
        return _arc(max_lr, start / final_div_factor, (step - peak) / (last - peak))

    return value


def _arc(begin: float, end: float, share: float) -> float:
    """Half a cosine from `begin` (share 0) to `end` (share 1)."""
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


def cosine(base: float, total_steps: int, final: float = 0.0) -> Schedule:
    """Cosine from `base` at step 0 to `final` at step `total_steps`, and `final` after it (no restart)."""
    return lambda step: _arc(base, final, min(step / total_steps, 1.0))


def cosine_restarts(base: float, period: int, final: float = 0.0) -> Schedule:
    """Cosine annealing with warm restarts each `period` steps (SGDR with multiplier 1)."""
    return lambda step: _arc(base, final, (step % period) / period)


def step_decay(base: float, milestones: Sequence[int], rate: float) -> Schedule:
    """`base`, multiplied by `rate` at each milestone step."""
    ordered = sorted(milestones)
    return lambda step: base * rate ** bisect.bisect_right(ordered, step)


def warmup_cosine(base: float, total: float, warmup: float, final: float = 0.0) -> Callable[[float], float]:
    """Continuous form: base·t/warmup below `warmup`, then cosine to `final` at `total` (t may be fractional epochs)."""

    def value(t: float) -> float:
        if t < warmup:
            return base * t / warmup
        return _arc(base, final, (t - warmup) / (total - warmup))

    return value


def warmup_cosine_table(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Table of `total_steps` values: `linspace(start, base, warmup)` with both ends, then cosine from `base` again.

    The cosine never quite reaches `final`: value i of N is final + (base - final)/2·(1 + cos(πi/N)).
    Raises ValueError if the warm-up is longer than the run.
    """
    if warmup_steps > total_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps in a run of {total_steps}")
    rest = total_steps - warmup_steps
    wave = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1)))
    return np.concatenate([np.linspace(start, base, warmup_steps), wave])


def from_table(table: Sequence[float] | np.ndarray) -> Schedule:
    """Value n of the table at step n; the last value after its end."""
    values = np.asarray(table, dtype=np.float64)
    return lambda step: float(values[min(step, len(values) - 1)])


def lagging(schedule: Schedule, first: float) -> Schedule:
    """The schedule set *after* each step, as some published loops do: `first` at step 0, then value n-1 at step n."""
    return lambda step: first if step == 0 else schedule(step - 1)


def momentum_cosine(base: float, total: float) -> Callable[[float], float]:
    """EMA momentum that rises from `base` to 1: 1 - (1 - base)·(1 + cos(πt/total))/2 (BYOL, MoCo v3)."""
    return lambda t: 1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * t / total)) / 2.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float | None = None) -> None:
    """Set each group's lr to `lr` times its "lr_scale" (1 if absent); `weight_decay` reaches only decaying groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if weight_decay is not None and group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay
