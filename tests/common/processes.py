"""Processes that tests start: their environment, their launcher, and their end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil

from tests.conftest import ROOT

LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """One thread a process, this tree on the path, no GPU, and nothing of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **more}


def torchrun(processes: int = 2, how: str = "run") -> list[str]:
    """The start of a command line under torchrun (`how="run"`) or torch.distributed.launch, on a free port."""
    return [sys.executable, "-m", f"torch.distributed.{how}", "--standalone", f"--nproc_per_node={processes}"]


def run(*command: object, **more: str) -> subprocess.CompletedProcess:
    """Run a command from the repository's root to its end; `more` are variables of its environment."""
    words, variables = [str(word) for word in command], environment(**more)
    return subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1800, check=False)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a process that a test has started, and to all that it has started: torchrun's workers have sessions
    of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
