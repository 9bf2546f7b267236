"""The training loop of every script: forward, backward, clip, step, and after each step the jobs that are due.

A project writes a `Method` (its losses, its rates, what moves after a step); the script builds `Loop` from it and calls
`run`. The loop counts optimisation steps on a `Clock`, alone or with epochs, so a run resumes at any step.

>>> loop = Loop(method, Clock(total=300_000), loader, Engine(model, optimizer, precision, dist))    # doctest: +SKIP
>>> loop.jobs = [Job(every(2000), evaluate), Job(every(2000), save)]
>>> loop.run()
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.train.distributed import Dist
from common.train.optim import NonFinite, Precision, accumulating, check_finite
from common.train.schedule import set_learning_rate


@dataclass
class Clock:
    """How far a run is: `step` optimisation steps are done of `total`; with `per_epoch` they are counted in epochs too.

    Attributes:
        total: the step at which the run ends.
        per_epoch: steps of an epoch; None for a loader without end.
        step: steps done, which is also the number, from 0, of the next step.
        stop_at: leave after this step as on SIGTERM (`--max_steps`); 0: never.
    """

    total: int
    per_epoch: int | None = None
    step: int = 0
    stop_at: int = 0

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.step // self.per_epoch if self.per_epoch else 0

    @property
    def inside(self) -> int:
        """Steps done of that epoch; 0 right after an epoch has ended."""
        return self.step % self.per_epoch if self.per_epoch else self.step

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self.step >= self.total

    def groups(self, loader: Any, size: int) -> Iterator[tuple[list, float]]:
        """(the batches of a step, seconds waited for them) from this step to the last; the caller counts `step`.

        `loader.sampler` is put at the clock's position at the start of every epoch, so that a run resumes inside one.
        The last group of an epoch is shorter where `per_epoch` counts what `size` leaves over.
        """
        source = None if self.per_epoch else iter(loader)
        while not self.done:
            if self.per_epoch and (source is None or not self.inside):
                loader.sampler.epoch, loader.sampler.position = self.epoch, self.inside * size
                source = iter(loader)
            asked = time.perf_counter()
            group = list(itertools.islice(source, size))
            if not group:
                raise RuntimeError(f"the loader ended at step {self.step} of {self.total}: it must give {size} batches")
            yield group, time.perf_counter() - asked


@dataclass
class Step:
    """What the meters learn of the step just done.

    Attributes:
        batches: its micro-batches on this rank.
        parts: the named values that the method returned for each of them that had a readable sample.
        norm: 2-norm of the gradient before clipping; None where nothing was stepped.
        lr: learning rate of groups without a scale of their own.
        images: readable samples on this rank.
        waited, seconds: time spent waiting for the batches, and in all.
    """

    batches: list
    parts: list[dict[str, float | Tensor]]
    norm: Tensor | None
    lr: float
    images: int
    waited: float
    seconds: float

    def means(self) -> dict[str, float | Tensor]:
        """Mean over the micro-batches of every named value."""
        return {name: sum(part[name] for part in self.parts) / len(self.parts) for name in self.parts[0]}


class Method(Protocol):
    """What a paper adds to the loop."""

    def losses(self, batch: Any, clock: Clock, number: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Forward pass of micro-batch `number` of the step: the mean loss to minimise (a scalar with a graph), and
        named detached values for the meters. The method chooses what runs under autocast."""
        ...

    def rates(self, step: int) -> tuple[float, float | None]:
        """Learning rate and weight decay (None: as it is) of step `step`, counted from 0."""
        ...

    def stepped(self, clock: Clock) -> None:
        """What moves after an optimisation step, such as an averaged copy; `clock.step` has counted it."""
        ...


class Engine:
    """Gradients on torch's own means, in one process or many; TextSSR has the same five methods on accelerate.

    Args:
        model: perhaps under DistributedDataParallel.
        optimizer: over parameters of `model`.
        precision: `--amp`.
        dist: the process group.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, dist: Dist) -> None:
        self.model, self.optimizer, self.precision, self.dist = model, optimizer, precision, dist

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        """Context of a micro-batch: ranks add up their gradients only in the step's last one."""
        return accumulating(self.model, last)

    def backward(self, loss: Tensor, micro_batches: int) -> None:
        """Add the gradient of one of the step's micro-batches."""
        self.precision.backward(loss / micro_batches)

    def sums(self, *values: float) -> list[float]:
        """Sum of each value over the ranks. Collective."""
        return self.dist.sums(*values)

    def clip(self, max_norm: float | None, scale: float = 1.0) -> Tensor:
        """Unscale the gradients, multiply them by `scale`, clip their global 2-norm; returns the norm before that."""
        self.precision.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters], scale)
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if max_norm:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    @property
    def rescales(self) -> bool:
        """True where a gradient that is not finite only lowers the loss scale and skips the step (fp16)."""
        return self.precision.scaler.is_enabled()

    def step(self) -> None:
        """Step with the present gradients."""
        self.precision.step(self.optimizer)

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)


@dataclass
class Job:
    """Something to do after each step for which `due(clock)` is true; the clock has counted the step."""

    due: Callable[[Clock], bool]
    do: Callable[[Clock], object]


@dataclass
class Loop:
    """The training of a script.

    Attributes:
        method: the paper's part.
        clock: where the run is; a resumed run sets its `step`.
        loader: iterable of batches with `indices`, a length and a `weight` (0 for a stand-in, see `word_loader`).
        engine: gradients.
        max_norm: largest 2-norm of the gradient; None or 0: it is not clipped.
        accumulate: micro-batches of a step.
        note: called with the clock and what was done, after every step that had a readable sample.
        jobs: done in this order, after `note`.
        leave: writes the state of a run that was asked to stop.
        folder: where the sample numbers of a batch with a loss that is not finite are written.
        stop: the request to leave.
    """

    method: Method
    clock: Clock
    loader: Any
    engine: Engine
    max_norm: float | None = None
    accumulate: int = 1
    note: Callable[[Clock, Step], None] = lambda clock, step: None
    jobs: list[Job] = field(default_factory=list)
    leave: Callable[[Clock], object] = lambda clock: None
    folder: Path | None = None
    stop: StopRequest = field(default_factory=lambda: StopRequest())

    def run(self) -> bool:
        """Train to the clock's end. Returns False where the run was asked to leave before it and has saved its state.

        Raises:
            NonFinite: on all ranks, where a loss or gradient is not finite on one of them; nothing was stepped.
        """
        clock, engine, method = self.clock, self.engine, self.method
        with self.stop, self.worker_errors():
            for group, waited in clock.groups(self.loader, self.accumulate):
                began = time.perf_counter() - waited
                lr, decay = method.rates(clock.step)
                set_learning_rate(engine.optimizer, lr, decay)
                parts, losses = [], []
                for number, batch in enumerate(group):
                    if not batch.weight and not engine.dist.distributed:
                        continue
                    with engine.accumulating(last=number == len(group) - 1):
                        loss, shown = method.losses(batch, clock, number)
                        # a rank whose batch holds no readable sample stays in step with a stand-in of weight zero
                        engine.backward(loss if batch.weight else loss * 0.0, len(group))
                    losses.append((loss.detach(), batch))
                    if batch.weight:
                        parts.append(shown)
                leaving, weight, everything = self.agree(losses, len(parts), len(group))
                norm = None
                if weight:
                    norm = engine.clip(self.max_norm, everything / weight)
                    if not engine.rescales:
                        self.check_gradient(norm, group)
                    engine.step()
                else:
                    print(f"step {clock.step}: no sample of its batches can be read: the weights stay as they are")
                engine.clear()
                clock.step += 1
                if weight:
                    method.stepped(clock)
                if parts:
                    images = sum(len(batch) for batch in group if batch.weight)
                    spent = time.perf_counter() - began
                    self.note(clock, Step(group, parts, norm, lr, images, waited, spent))
                for job in self.jobs:
                    if job.due(clock):
                        job.do(clock)
                if leaving and not clock.done:
                    self.leave(clock)
                    return False
        return True

    @contextlib.contextmanager
    def worker_errors(self) -> Iterator[None]:
        """A loader's process that has ended is reported wherever the main process is; the loader says which it was."""
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker") or not hasattr(self.loader, "lost_worker"):
                raise
            raise self.loader.lost_worker(error) from None

    def agree(self, losses: list[tuple[Tensor, Any]], usable: int, count: int) -> tuple[bool, float, float]:
        """All ranks learn, in one collective, whether to leave and how many micro-batches of how many had a sample;
        a loss that is not finite on any of them ends the run before the step. Returns (leaving, usable, all)."""
        bad = [(loss, batch) for loss, batch in losses if not bool(torch.isfinite(loss).all())]
        failed, asked, usable, count = self.engine.sums(len(bad), self.stop.requested, usable, count)
        if failed:
            with self.engine.dist.failing_together():
                for loss, batch in bad:
                    print(f"Loss is {float(loss)}, stopping training", flush=True)
                    check_finite(loss, step=self.clock.step, batch_ids=batch.indices, folder=self.folder)
        leaving = bool(asked) or self.clock.step + 1 == self.clock.stop_at
        return leaving, usable, count

    def check_gradient(self, norm: Tensor, group: list) -> None:
        """Raise `NonFinite` on every rank for a gradient norm that is not finite, which all of them see."""
        indices = [index for batch in group for index in batch.indices.tolist()]
        try:
            check_finite(norm, step=self.clock.step, what="gradient norm", batch_ids=indices, folder=self.folder)
        except NonFinite as error:
            error.shared = True  # rank 0 alone reports it
            raise


class StopRequest:
    """Leaving in good order: notes SIGTERM (and SIGUSR1, which SLURM can send ahead) while used as a context manager.

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
