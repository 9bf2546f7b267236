"""Console lines and averages of one pass over a loader, in the form that BEiT, MAE and their descendants print."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch

from common.train.distributed import Dist
from common.train.meters import Meters, Window

Item = TypeVar("Item")


class EpochLog:
    """Prints `header  [ i/N]  eta: …  name: recent (global)  time: …  data: …  max mem: …` every so many items.

    Args:
        header: what stands in front, for example "Epoch: [3]".
        every: items between lines; the last item always has one.
        recent: what is shown of the last 20 values, their mean or their median.
        last_value: meters of which only the last value is shown, with 6 decimals (learning rates).
        stamp: begin each line with [YYYY-mm-dd HH:MM:SS].
    """

    def __init__(
        self,
        header: str,
        every: int = 100,
        recent: Literal["mean", "median"] = "mean",
        last_value: Iterable[str] = ("lr", "min_lr"),
        stamp: bool = False,
    ) -> None:
        self.header, self.every, self.recent, self.stamp = header, every, recent, stamp
        self.last_value = set(last_value)
        self.meters = Meters()
        self.names: dict[str, None] = {}  # in order of first appearance
        self.iteration, self.waiting = Window(), Window()

    def add(self, n: int = 1, **values: float | torch.Tensor) -> None:
        """Add one value, standing for `n` samples, to each named meter."""
        self.names.update(dict.fromkeys(values))
        self.meters.add(n, **values)

    def over(self, items: Iterable[Item], total: int, start: int = 0) -> Iterator[tuple[int, Item]]:
        """(number, item) of each item; numbers begin at `start` and `total` is that of the whole epoch."""
        began = asked = time.perf_counter()
        for number, item in enumerate(items, start):
            self.waiting.add(time.perf_counter() - asked)
            yield number, item
            self.iteration.add(time.perf_counter() - asked)
            if number % self.every == 0 or number == total - 1:
                print(self.line(number, total), flush=True)
            asked = time.perf_counter()
        spent, done = time.perf_counter() - began, max(self.iteration.count, 1)
        print(f"{self.header} Total time: {clock(spent)} ({spent / done:.4f} s / it)", flush=True)

    def line(self, number: int, total: int) -> str:
        """The line of item `number` of `total`."""
        width = len(str(total))
        parts = [f"[{datetime.datetime.now():%Y-%m-%d %H:%M:%S}]"] if self.stamp else []
        parts += [self.header, f"[{number:>{width}}/{total}]"]
        parts.append(f"eta: {clock(self.iteration.overall * (total - number - 1))}")
        parts += [*self.fields(), f"time: {self.iteration.mean:.4f}", f"data: {self.waiting.mean:.4f}"]
        if torch.cuda.is_available():
            parts.append(f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        return "  ".join(parts)

    def fields(self) -> list[str]:
        """`name: value` of every meter."""
        return [f"{name}: {self._shown(name)}" for name in self.names]

    def _shown(self, name: str) -> str:
        window = self.meters[name]
        if name in self.last_value:
            return f"{window.last:.6f}"
        recent = window.mean if self.recent == "mean" else window.median
        return f"{recent:.4f} ({window.overall:.4f})"

    def averages(self, dist: Dist | None = None) -> dict[str, float]:
        """Mean of every meter over its samples on all ranks (a collective); prints `Averaged stats: …`."""
        sums = {name: (self.meters[name].total, self.meters[name].count) for name in self.names}
        everywhere = dist.gather(sums) if dist is not None else [sums]
        print("Averaged stats: " + "  ".join(self.fields()), flush=True)
        result = {}
        for name in self.names:
            parts = [part[name] for part in everywhere if name in part]
            result[name] = sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Sums so far, so that a resumed epoch averages over all of it."""
        return {name: [self.meters[name].total, self.meters[name].count] for name in self.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these sums."""
        self.names.update(dict.fromkeys(state))
        for name, (total, count) in state.items():
            window = self.meters[name]
            window.total, window.count = float(total), int(count)


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS ("0:00:00" for a time that is not known yet)."""
    return str(datetime.timedelta(seconds=int(seconds) if seconds == seconds else 0))
