"""A training process keeps the memory that its steps free, also of blocks over the 32 MB that glibc learns to keep."""

import subprocess
import sys

import pytest

from common.models.cpu import SWITCH, keep_freed_memory

FAULTS = """
import resource
import numpy as np
from common.models.cpu import keep_freed_memory
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(20):
        np.ones(40_000_000, np.uint8)
work()
before = faults()
work()
print(faults() - before)
"""


def page_faults(call: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_blocks_are_used_again():
    assert page_faults("assert keep_freed_memory()") * 10 < page_faults("pass")


def test_the_switch_leaves_the_allocator_alone(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not keep_freed_memory()
