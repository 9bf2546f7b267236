"""Inputs from the texts that describe them: `images('name',(shape)[,low,high])` wherever it stands in a recipe."""

from __future__ import annotations

import re
from types import ModuleType

import torch

IMAGES = re.compile(r"images\('([^']+)',\s*\(([\d,\s]+)\)((?:,\s*-?[\d.]+){0,2})")


def images(filler: ModuleType, recipe: str) -> torch.Tensor:
    """The first batch that a recipe names, without running the recipe as code."""
    name, shape, bounds = IMAGES.search(recipe).groups()
    limits = [float(part) for part in bounds.split(",") if part.strip()]
    return torch.from_numpy(filler.images(name, tuple(int(part) for part in shape.split(",")), *limits))
