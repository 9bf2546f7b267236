"""Iterating over batches for a number of steps: epochs without end, the position to resume from, the time waited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from common.train.meters import Meters

Batch = TypeVar("Batch")


class Positioned(Protocol):
    """A sampler that can be put at a place: the batches of `epoch` from number `position` on."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Feed:
    """Batches without end, and the place of the next one, which is what a resumed run needs.

    A loader's workers run ahead of training, so the sampler's own position is not the consumer's; this counts what was
    consumed.

    Args:
        sampler: see `Positioned`; its state has at least "epoch" and "position" (batches done in the epoch).
        loader: iterating it gives the rest of the sampler's epoch.
        per_epoch: batches of a whole epoch on this rank.
    """

    def __init__(self, sampler: Positioned, loader: Iterable[Batch], per_epoch: int) -> None:
        self.sampler, self.loader, self.per_epoch = sampler, loader, per_epoch
        state = sampler.state_dict()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.position >= self.per_epoch:
                self.epoch, self.position = self.epoch + 1, 0
            self.sampler.load_state_dict(self._place())
            for batch in self.loader:
                # Counted before it is handed out: whoever saves after the step on this batch resumes with the next one.
                self.position += 1
                yield batch
            self.position = self.per_epoch

    def _place(self) -> dict[str, Any]:
        return {**self.sampler.state_dict(), "epoch": self.epoch, "position": self.position}

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state at the consumer's place."""
        return self._place()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to that place."""
        self.sampler.load_state_dict(state)
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


def numbered(
    feed: Iterable[Batch], start: int, total: int, meters: Meters | None = None,
    size: Callable[[Batch], int] = lambda batch: len(batch.images),
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for steps start…total-1; the meters are told each step's images and the seconds waited for them."""
    batches = iter(feed)
    for step in range(start, total):
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        waited = time.perf_counter() - asked
        yield step, batch
        if meters is not None:
            meters.count(size(batch), waited)
