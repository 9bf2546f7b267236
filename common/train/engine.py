"""Iterating over batches for a number of steps, and the time waited for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from common.train.meters import Meters


class Sized(Protocol):
    """A batch knows how many samples it has."""

    def __len__(self) -> int: ...


SomeBatch = TypeVar("SomeBatch", bound=Sized)


def numbered(
    batches: Iterable[SomeBatch], start: int, total: int, meters: Meters | None = None, accumulate: int = 1
) -> Iterator[tuple[int, list[SomeBatch]]]:
    """(step, its `accumulate` batches) for steps start…total-1.

    The meters are told each step's images and the seconds waited for them, once the step is done. Ends early where the
    batches end; an incomplete last group is left out.
    """
    source = iter(batches)
    for step in range(start, total):
        asked = time.perf_counter()
        group = [batch for _, batch in zip(range(accumulate), source)]
        if len(group) < accumulate:
            return
        waited = time.perf_counter() - asked
        yield step, group
        if meters is not None:
            meters.count(sum(len(batch) for batch in group), waited)


def endless(epochs: Iterable[SomeBatch], set_epoch: Any = None, start_epoch: int = 0) -> Iterator[SomeBatch]:
    """The batches of one epoch after another, for loaders that end; `set_epoch(e)` is called before each."""
    epoch = start_epoch
    while True:
        if set_epoch is not None:
            set_epoch(epoch)
        yield from epochs
        epoch += 1
