"""Inputs from the texts that describe them: `images('name',(shape)[,low,high])` wherever it stands in a recipe."""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np
import torch

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
IMAGES = re.compile(rf"images\('([^']+)',\s*(\([\d,\s]+\)|same)((?:,\s*{NUMBER}){{0,2}})\)")


def number(pattern: str, text: str, default: float) -> float:
    """The first group of `pattern`, in which N stands for a number, where `text` has it."""
    found = re.search(pattern.replace("N", f"({NUMBER})"), text)
    return float(found.group(1)) if found else default


def picture(filler: ModuleType, recipe: str, same: tuple[int, ...] = ()) -> np.ndarray:
    """The first array that a recipe names, without running the recipe as code; `same` is the shape that the word
    "same" means.
    """
    name, shape, bounds = IMAGES.search(recipe).groups()
    limits = [float(part) for part in bounds.split(",") if part.strip()]
    sides = same if shape == "same" else tuple(int(part) for part in shape.strip("()").split(",") if part.strip())
    return filler.images(name, sides, *limits)


def images(filler: ModuleType, recipe: str, same: tuple[int, ...] = ()) -> torch.Tensor:
    """`picture` as a tensor; "repeated 8" after it enlarges it 8 times each way, "repeated 4x8" by height and width."""
    array = picture(filler, recipe, same)
    if times := re.search(r"repeated (\d+)(?:x(\d+))?", recipe):
        rows, columns = times.groups()
        array = array.repeat(int(rows), 2).repeat(int(columns or rows), 3)
    return torch.from_numpy(array)


def stride_of(shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[slice, ...]:
    """The index by which a tensor of `shape` was thinned to the stored one, where the case does not say it."""
    return tuple(slice(None, None, -(-side // kept)) for side, kept in zip(shape, stored))


def steps(note: str) -> tuple[slice, ...]:
    """The index of a note such as "[:, :, ::3, ::3]" or "[:, :4]"."""
    parts = re.search(r"\[([\d:,\s]*:[\d:,\s]*)\]", note).group(1).split(",")
    return tuple(slice(*(int(n) if n.strip() else None for n in part.split(":"))) for part in parts)
