"""One line of the benchmark: what is timed, in which unit, what was published and what is asked of us.

A module `common/bench/<topic>.py` or `projects/<name>/bench.py` offers `rows() -> list[Row]`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common import bench as package
from common import registry
from common.bench import units

NOT_ROWS = {"command", "gpu_check", "memory", "rows", "serve_load", "units"}


@dataclass(frozen=True)
class Row:
    """A timed thing.

    Attributes:
        name: `area: what`, for example "siga: train step R, batch 4".
        run: called once; if it returns a function, that one is timed (so a row builds its model only when it is
            chosen), else `run` itself is.
        unit: u or v (seconds an image over the unit's seconds, lower is better), items/s (higher is better), or
            x (how many times as fast as `versus`, higher is better).
        images_per_call: images that one call works on.
        published: the original's figure in the same unit.
        target: our figure must be at most this (u, v) or at least this (items/s, x); without it, below `published`.
        threads: of PyTorch and OpenCV.
        versus: for unit x: as `run`, the slow way.
        note: a few words next to the row.
        least: fewest timed calls; more follow while they are quick.
        memory: whether the command also reports the peak memory (`common.bench.memory`).
    """

    name: str
    run: Callable[[], object]
    unit: Literal["u", "v", "items/s", "x"] = "u"
    images_per_call: int = 1
    published: float | None = None
    target: float | None = None
    threads: int = 1
    versus: Callable[[], object] | None = None
    note: str = ""
    least: int = 5
    memory: bool = False


@dataclass(frozen=True)
class Result:
    """A measured row. `value` is in the row's unit; `unit_drift` is how far the unit moved from before to after, as a
    share."""

    row: Row
    value: float
    milliseconds: float
    spread: float
    unit_drift: float

    @property
    def passed(self) -> bool | None:
        """True or False against the target, or the published figure; None where the row has neither."""
        higher = self.row.unit in ("items/s", "x")
        if self.row.target is not None:
            return self.value >= self.row.target if higher else self.value <= self.row.target
        if self.row.published is not None:
            return self.value > self.row.published if higher else self.value < self.row.published
        return None


class Bench:
    """Measures rows; the unit measured after one row serves as the one before the next."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], float] = {}

    def measure(self, row: Row) -> Result:
        """Time one row between two measurements of its unit."""
        call = prepared(row.run)
        before = self._unit(row, fresh=False)
        with units.threads(row.threads):
            timing = units.measure(call, least=row.least)
            slow = units.measure(prepared(row.versus), least=row.least) if row.versus else None
        after = self._unit(row, fresh=True)
        seconds = timing.median / row.images_per_call
        if row.unit == "items/s":
            value = 1.0 / seconds
        elif slow is not None:
            value = slow.median / timing.median
        else:
            value = seconds / ((before + after) / 2)
        drift = abs(after - before) / min(after, before) if before else 0.0
        return Result(row, value, seconds * 1000, timing.spread, drift)

    def _unit(self, row: Row, fresh: bool) -> float:
        """Seconds of the row's unit now; the last measurement, if that is recent enough for the caller."""
        key = (row.unit, row.threads)
        if row.unit not in ("u", "v"):
            return 0.0
        if fresh or key not in self._last:
            self._last = {key: units.measure_u() if row.unit == "u" else units.measure_v(row.threads)}
        return self._last[key]


def prepared(run: Callable[[], object]) -> Callable[[], object]:
    """The function to be timed."""
    first = run()
    return first if callable(first) else run


def all_rows() -> list[Row]:
    """Rows of the library, then of the projects; a project's module is imported here, its models are not built."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name not in NOT_ROWS)
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    modules += [registry.project_module(project, "bench") for project in sorted(registry.project_modules())]
    return [row for module in modules if module is not None for row in module.rows()]
