"""Fingerprints of training states, to see that a change of the training code changes no bit of what it computes.

The same code gives the same bits only on one kind of processor and one version of torch, so fingerprints are stored
under both (`key`), for one thread; a test skips where nothing is stored for its key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

RECORD = "STRLAB_RECORD_STATES"  # set to 1 to write the fingerprints instead of comparing with them


def key() -> str:
    """Versions of torch and OpenCV, and the instruction set of this machine."""
    torch_version = torch.__version__.split("+")[0]
    return f"torch {torch_version} {torch.backends.cpu.get_cpu_capability()} opencv {cv2.__version__}"


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, bytes]]:
    """(place, bytes) of every leaf of nested dicts and lists, in order of the places."""
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from leaves(value[name], f"{where}/{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{where}/{index}")
    elif isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8) if value.numel() else value
        yield where, f"{value.dtype} {tuple(value.shape)}".encode() + flat.numpy().tobytes()
    else:
        yield where, repr(value).encode()


def digest(value: Any) -> str:
    """SHA-256 over all leaves, 16 digits."""
    summed = hashlib.sha256()
    for where, content in leaves(value):
        summed.update(where.encode() + b"\0" + content + b"\0")
    return summed.hexdigest()[:16]


def check(stored: Path, case: str, parts: dict[str, Any]) -> None:
    """Compare the fingerprint of every part with the stored one of `case`; with `RECORD` set store them.

    Skips where the file has nothing for this processor and torch.
    """
    rows = json.loads(stored.read_text()) if stored.exists() else {}
    found = {name: digest(part) for name, part in parts.items()}
    if os.environ.get(RECORD):
        rows.setdefault(key(), {})[case] = found
        stored.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        return
    if case not in rows.get(key(), {}):
        pytest.skip(f"no fingerprints of {case} for {key()}")
    expected = rows[key()][case]
    differ = [name for name in expected if found[name] != expected[name]]
    assert not differ, f"{case}: {differ} differ"
