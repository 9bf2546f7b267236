"""Exact comparison of what runs leave behind."""

from __future__ import annotations

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
