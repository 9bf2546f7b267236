"""How much memory a row takes: the peak resident set of a process of its own that makes two calls."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

from common.bench import units
from common.bench.rows import Row, all_rows, prepared


def peak_of(row: Row) -> float | None:
    """GiB of a fresh process that imports the library, builds the row and calls it twice; None where it failed."""
    command = [sys.executable, "-m", __name__, row.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def resident_peak() -> float:
    """GiB, the most that this process has held so far.

    Linux's VmHWM starts anew with each program; `ru_maxrss` would take over what the parent held.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**20


def main(name: str) -> None:
    """Build and call the row of that name; print the peak."""
    [row] = [row for row in all_rows() if row.name == name]
    with units.threads(row.threads):
        call = prepared(row.run)
        for _ in range(2):
            call()
    print(resident_peak())


if __name__ == "__main__":
    main(sys.argv[1])
