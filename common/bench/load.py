"""Training next to a process that keeps one core busy: how much of one free core's rate is left.

The child chooses its threads as every training script does (`choose_threads`), once and at its start; OpenMP's threads
that wait for one another on a core that is taken would cost far more than the core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from common.bench.rows import Row

STEPS, BATCH = 10, 16
CHILD = f"""
import sys, common, torch
from common.models.compact import CompactReader
from common.train.distributed import choose_threads
print(choose_threads(), flush=True)
model = CompactReader(95)
optimizer = torch.optim.AdamW(model.parameters())
images = torch.randn({BATCH}, 3, 32, 128)
for _ in sys.stdin:
    for _ in range({STEPS}):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    print("done", flush=True)
"""


class Trainer:
    """A child that trains `STEPS` steps at each call; `busy` starts a loop on the last core before it."""

    def __init__(self, busy: bool, **environment: str) -> None:
        self.processes = ExitStack()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        if busy:
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
            loop = (
                f"import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {{{cores[-1]}}})\nwhile 1: 0"
            )
            self._end_with(subprocess.Popen([sys.executable, "-c", loop]))
            time.sleep(1)  # the child looks at the load of the moment
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD], env=kept | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._end_with(self.child)
        self.choice = self.child.stdout.readline().strip()

    def _end_with(self, process: subprocess.Popen) -> None:
        self.processes.callback(lambda: (process.kill(), process.wait()))

    def __call__(self) -> None:
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        if self.child.stdout.readline() != "done\n":
            raise RuntimeError(f"the training process ended with status {self.child.wait()}")

    def __del__(self) -> None:
        self.processes.close()


def loaded() -> Callable[[], None]:
    """Threads as chosen, one core taken."""
    return Trainer(busy=True)


def rows() -> list[Row]:
    """Rates of training under load, as a share of what one free core gives."""
    name = "threads: training with one core taken, by one free core"
    note = "needs a machine that does nothing else"
    images, free = STEPS * BATCH, partial(Trainer, busy=False, OMP_NUM_THREADS="1")
    return [Row(name, loaded, "x", images, target=0.6, versus=free, note=note)]
