"""Exact comparison of what runs leave behind."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def same(first: object, second: object, where: str = "") -> None:
    """Assert equality bit for bit and type for type, through all containers."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second)):
            same(*pair, f"{where}/{index}")
    else:
        assert first == second, where


def digest(thing: object) -> str:
    """Sixteen hex digits over all leaves of nested containers and their places."""
    found = hashlib.sha256()

    def add(value: object, where: str) -> None:
        if isinstance(value, dict):
            for name in sorted(value, key=str):
                add(value[name], f"{where}/{name}")
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                add(item, f"{where}/{number}")
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            found.update(f"{where}:".encode() + np.ascontiguousarray(torch.as_tensor(value).numpy()).tobytes())
        else:
            found.update(f"{where}={value!r};".encode())

    add(thing, "")
    return found.hexdigest()[:16]
