"""Start and end of a script: processes, seeds, precision, and the copy of the console in `screen.txt`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.errors import UserError
from common.train.distributed import Dist, process_group
from common.train.run import check_writable, command_line, precision_note, settle_amp
from common.train.seed import seed_everything

MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


class Tee:
    """Writes to the console and to a file; everything else is the console's."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self.console, self.file = console, file

    def write(self, text: str) -> int:
        """Both get the text."""
        self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Both are flushed."""
        self.file.flush()
        self.console.flush()

    def __getattr__(self, name: str):
        return getattr(self.console, name)


@contextlib.contextmanager
def session(options: argparse.Namespace) -> Iterator[Dist]:
    """The process group, seeded generators and `screen.txt` (rank 0, appended to) for the time of a run."""
    check_writable(options.output_dir, "--output_dir")
    if options.log_dir:
        check_writable(options.log_dir, "--log_dir")
    if options.dist_on_itp:
        os.environ.update({ours: os.environ[theirs] for ours, theirs in MPI.items() if theirs in os.environ})
    with process_group(options.device, options.dist_url, options.local_rank) as dist:
        if options.world_size not in (1, dist.world_size):
            raise UserError(
                f"--world_size: {options.world_size} was given and {dist.world_size} processes were started; "
                "start them with torchrun, SLURM or mpirun, which set the number"
            )
        seed_everything(options.seed, dist.rank)
        print(options)
        with screen(Path(options.output_dir) / "screen.txt" if dist.is_main else None):
            print(f"Command: {command_line()}")
            print(precision_note(settle_amp(options, dist.device), options.compile, options.tf32, dist.device))
            yield dist


@contextlib.contextmanager
def screen(path: Path | None) -> Iterator[None]:
    """Copy what is printed into a file; the console stays open afterwards."""
    if path is None:
        yield
        return
    console = sys.stdout
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        sys.stdout = Tee(console, file)
        try:
            yield
        finally:
            sys.stdout = console
