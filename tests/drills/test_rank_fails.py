"""Drill 7: one rank fails. The other ends too, soon, and the first traceback is the one that is shown."""

from __future__ import annotations

from pathlib import Path

from tests.common.processes import run, torchrun

SCRIPT = """
import torch
from common.train.distributed import setup_distributed

dist = setup_distributed("cpu")
value = torch.ones(1)
for step in range(1000):
    if step == 3 and dist.rank == 1:
        raise RuntimeError("planted failure of rank 1")
    torch.distributed.all_reduce(value)
"""


def test_one_rank_raises_and_all_end(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, "utf-8")
    done = run(*torchrun(), script)
    assert done.returncode != 0
    assert "planted failure of rank 1" in done.stderr
    first = done.stderr.index("Traceback")
    assert done.stderr.find("planted failure", first) != -1
