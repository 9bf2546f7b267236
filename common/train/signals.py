"""Leaving in good order: SIGTERM asks the loop to save once and end with status 0."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from common.train.distributed import Dist


class StopRequest:
    """Notes SIGTERM (and SIGUSR1, which SLURM can send ahead) while used as a context manager.

    >>> with StopRequest() as stop:                       # doctest: +SKIP
    ...     for step, batch in steps:
    ...         train_step(batch)
    ...         if stop.agreed(dist, step):
    ...             save(); break

    A second signal of the same kind ends the process in the usual way, so that a hung run can still be stopped.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Handlers can be set by the main thread only; elsewhere the loop runs without them.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous.get(number, signal.SIG_DFL))

    def agreed(self, dist: Dist, step: int, every: int = 1) -> bool:
        """True on all ranks at the same step once any rank was asked to stop. Collective: all ranks call it each step.

        Args:
            dist: the process group.
            step: the same number on every rank.
            every: with several ranks, ask only each so many steps (a small all-reduce, which waits for the device).
        """
        if dist.world_size == 1:
            return self.requested
        return step % every == 0 and dist.any(self.requested)
