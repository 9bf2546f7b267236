"""What SSM's pre-training shows the two networks: views superimposed on their own flips (spec, section 3.3).

Everything is a lookup of source pixels, so a whole batch is a few gathers, on whatever device the images are. Flips,
the teacher's affine map (nearest neighbour) and their compositions are index tables, made once per picture size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms import functional

from common.errors import UserError

ORIGINAL, HORIZONTAL, VERTICAL, ROTATION = range(4)
"""Direction ids: as it is, flipped left-right, flipped upside down, turned by 180 degrees."""

DEGREES, SHIFT, SHEAR_X, SHEAR_Y, GREY = 10.0, 0.1, -25.0, 10.0, 0.2


@dataclass(frozen=True)
class TeacherParameters:
    """Teacher transform: angle and shear (x, y) in degrees, translation (x, y) in whole pixels, grey or colour."""

    angle: float
    translate: tuple[int, int]
    shear: tuple[float, float]
    grey: bool


@dataclass(frozen=True)
class Views:
    """Float [B, 3, H, W] in [0, 1]: student and teacher view, their flips, the means of both; direction ids int64
    [B].
    """

    student_mix: torch.Tensor
    student: torch.Tensor
    student_flipped: torch.Tensor
    teacher_mix: torch.Tensor
    teacher: torch.Tensor
    teacher_flipped: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


def draw_directions(mode: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Direction id int64 [count] of every image's flip; `mode` is HF, VF, Hybrid or aug_pool. Raises UserError
    otherwise.
    """
    if mode in ("HF", "VF"):
        return np.full(count, HORIZONTAL if mode == "HF" else VERTICAL)
    u = rng.random(count)
    if mode == "Hybrid":
        return np.where(u > 0.5, HORIZONTAL, VERTICAL)
    if mode == "aug_pool":
        return np.where(u > 0.66, HORIZONTAL, np.where(u > 0.33, VERTICAL, ROTATION))
    raise UserError(f"--direction: {mode}: unknown; one of HF, VF, Hybrid, aug_pool")


def teacher_parameters(seed: int, height: int, width: int) -> TeacherParameters:
    """Parameters that the published transform draws after seeding with `seed` (there: the position in the batch).

    The x shear is always -25 degrees: its published range is [-25, -25].
    """
    generator = torch.Generator().manual_seed(int(seed))

    def uniform(low: float, high: float) -> float:
        return float(torch.empty(1).uniform_(low, high, generator=generator).item())

    angle = uniform(-DEGREES, DEGREES)
    reach = SHIFT * height
    translate = (round(uniform(0.0, 0.0)), round(uniform(-reach, reach)))
    shear = (uniform(SHEAR_X, SHEAR_X), uniform(-SHEAR_Y, SHEAR_Y))
    return TeacherParameters(angle, translate, shear, bool(torch.rand(1, generator=generator) < GREY))


@lru_cache(maxsize=4096)
def _teacher_table(seed: int, height: int, width: int) -> tuple[torch.Tensor, bool]:
    """(source pixel int32 [H W] of every output pixel, H W where it is outside; whether the view turns grey)."""
    given = teacher_parameters(seed, height, width)
    # An index picture goes through the very transform; 0 marks what lies outside. Indices are exact in single
    # precision.
    indices = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, height, width)
    moved = functional.affine(indices, given.angle, list(given.translate), 1.0, list(given.shear)).flatten().int() - 1
    moved[moved < 0] = height * width
    return moved.to(torch.int32), given.grey


@lru_cache(maxsize=8)
def _flip_table(height: int, width: int) -> torch.Tensor:
    """Source pixel int64 [4, H W + 1] of every output pixel and direction; the last entry stays outside."""
    grid = torch.arange(height * width).reshape(height, width)
    rows = [grid, grid.flip(1), grid.flip(0), grid.flip(0, 1)]
    outside = torch.full((4, 1), height * width)
    return torch.cat([torch.stack(rows).reshape(4, -1), outside], dim=1)


def _gather(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 [B, 3, H W (+ 1)] looked up by int64 [B, H W] -> float [B, 3, H W] in [0, 1]."""
    return pixels.gather(2, table[:, None].expand(-1, pixels.shape[1], -1)).float().div_(255)


def _to_grey(view: torch.Tensor, chosen: torch.Tensor) -> None:
    """Replace the chosen rows of float [B, 3, H W] by their luma, in place."""
    rows = view[chosen]
    weights = torch.tensor([0.2989, 0.587, 0.114], device=view.device)
    view[chosen] = (rows * weights[:, None]).sum(dim=1, keepdim=True).expand_as(rows)


def superimpose(
    student: torch.Tensor, teacher: torch.Tensor, directions: np.ndarray, seeds: np.ndarray | None = None
) -> Views:
    """Views of a batch.

    Args:
        student, teacher: uint8 [B, H, W, 3], the resized images; equal, or two augmentations of them.
        directions: int [B], the flip of every image (`draw_directions`).
        seeds: int [B], from which the teacher's transforms are drawn. By default the position in the batch, as
            published: position i has the same transform in every batch.
    """
    count, height, width, _ = student.shape
    device = student.device
    seeds = np.arange(count) if seeds is None else seeds
    tables = [_teacher_table(int(seed), height, width) for seed in seeds]
    affine = torch.stack([table for table, _ in tables]).to(device).long()
    grey = torch.tensor([grey for _, grey in tables], device=device)
    negative = torch.as_tensor(np.asarray(directions, np.int64)).to(device)
    flips = _flip_table(height, width).to(device)[negative]

    pixels = student.reshape(count, -1, 3).permute(0, 2, 1).contiguous()
    view, flipped = pixels.float().div_(255), _gather(pixels, flips[:, :-1])
    pixels = torch.nn.functional.pad(teacher.reshape(count, -1, 3).permute(0, 2, 1), (0, 1))
    # The flip comes first, so the affine map looks up what is already flipped.
    moved, moved_flipped = _gather(pixels, affine), _gather(pixels, flips.gather(1, affine))
    if bool(grey.any()):
        _to_grey(moved, grey)
        _to_grey(moved_flipped, grey)
    pictures = (view.add(flipped).mul_(0.5), view, flipped, moved.add(moved_flipped).mul_(0.5), moved, moved_flipped)
    shaped = [picture.reshape(count, 3, height, width) for picture in pictures]
    return Views(*shaped, positive=torch.zeros_like(negative), negative=negative)
