"""The one kind of error that a user caused and can fix, and how a command shows it."""

from __future__ import annotations

import functools
import io
import os
import re
import select
import sys
import textwrap
import time
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file or flag, the field, and the fix, in one line."""


def printable(text: object) -> str:
    """A file name or other foreign text in one line: control characters are written as escapes, as `\\x1b`.

    >>> printable("a\\nb")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1] for c in str(text))


def is_first() -> bool:
    """Whether this is the process of rank 0, by what torchrun, mpirun or srun have set; there may be no group yet."""
    ranks = (os.environ.get(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank), "0") == "0"


# What torch raises for a GPU, for the processor's memory, and for cuBLAS
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
_PROCESSES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a script's `main` so that a `UserError` prints one line and gives exit status 2, without a traceback;
    so does memory that does not suffice.

    What the terminal's encoding cannot write, such as file names that are no UTF-8, is printed as an escape.
    Where the reader of our output has gone (`… | head`), the script ends quietly with status 141, as others do.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return status
        except UserError as error:
            return _refuse(error)
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
            if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                raise
            return _refuse(
                f"out of memory ({textwrap.shorten(str(error), 150)}): make the batch smaller (--batch_size and the "
                "like); on a GPU, half precision (--amp) also halves most of what is kept"
            )
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:
            if not _output_is_closed():
                raise
            return 141
        finally:
            if "torch.distributed" in sys.modules and any(
                os.environ.get(name, "1") not in ("", "1") for name in _PROCESSES
            ):
                # One of gloo's threads may still hold the tensors of the last collective; if it frees them while
                # Python ends, the process aborts (pytorch#179291). Nothing reports when it has, so give it time.
                time.sleep(0.3)

    return wrapped


def _refuse(error: object) -> int:
    """Print the one line of an error; returns the exit status."""
    if not is_first():
        # where all processes met it, rank 0 shows it, and the launcher ends this one meanwhile
        time.sleep(2)
    sys.stderr.write(f"error: {printable(error)}\n")  # not print, which is silent on these ranks
    sys.stderr.flush()
    return 2


def _output_is_closed() -> bool:
    """Whether it was our output that broke, not another pipe; what is left of it then goes nowhere."""
    try:
        output = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # no such call on Windows, or no real output
        return False
    poll.register(output, select.POLLOUT)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return closed
