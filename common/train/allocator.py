"""The C allocator of a training process on a CPU: keep the memory that a step frees for the next one."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h: how much free memory goes back to the system, and from which size on a block is mapped alone
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell glibc not to give freed tensors back to the system. Says whether it was done: False without glibc.

    By default each large tensor is mapped anew in every step and its pages are zeroed again, which takes up to a fifth
    of the CPU time of small models. The process then keeps the memory of its largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20), (MMAP_THRESHOLD, 1 << 30))
    done = [mallopt(which, value) == 1 for which, value in settings]
    return all(done)
