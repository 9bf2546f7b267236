"""The STR RandAugment family: groups of operations, and the recipes that draw from them. Specs: mgpstr and siga,
section 4.

A recipe draws an operation and its magnitude just before it is applied, as the originals do, so that their stream of
numbers can be replayed with `np.random.RandomState`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from common.augment import blur, camera, fast, geometry, noise, pattern, process, warp, weather
from common.augment.operation import PRESETS, Operation
from common.augment.rng import Rng, distinct, integers, pick
from common.errors import UserError

GROUPS: dict[str, tuple[Operation, ...]] = {
    "process": process.operations(),
    "camera": camera.operations(),
    "noise": noise.operations(),
    "blur": blur.operations(),
    "weather": weather.operations(),
    "pattern": pattern.operations(),
    "warp": warp.operations(),
    "geometry": geometry.operations(),
}
OPERATIONS: dict[str, Operation] = {operation.name: operation for group in GROUPS.values() for operation in group}

Group = str | Sequence[str]
Step = tuple[Operation, int]


def resolve(groups: Sequence[Group]) -> list[tuple[Operation, ...]]:
    """Groups by name ("blur"), or as lists of operation names. Raises UserError for an unknown name."""
    try:
        return [
            GROUPS[group] if isinstance(group, str) else tuple(OPERATIONS[name] for name in group) for group in groups
        ]
    except KeyError as error:
        raise UserError(f"augmentation: {error.args[0]}: unknown; groups are {', '.join(GROUPS)}") from None


class RandAugment:
    """Callable (image uint8 HxWx3, rng, mask=None) -> image, or (image, mask) if a mask (0/1, HxW) is given. Sizes
    stay.

    With probability `intact_prob` nothing; else `augs_num` different groups, one operation of each, at magnitude
    `augs_mag` or one of 0, 1, 2, all uniformly. `fast` draws the same and changes pixels in cheaper ways (see
    `common.augment.fast`).
    """

    def __init__(
        self, groups: Sequence[Group], *, preset: str = "original", intact_prob: float = 0.5, augs_num: int = 3,
        augs_mag: int | None = None, fast: bool = False,
    ):  # fmt: skip
        self.groups = resolve(groups)
        if preset not in PRESETS:
            raise UserError(f"augmentation preset: {preset}: unknown; one of {', '.join(PRESETS)}")
        if not 0 <= augs_num <= len(self.groups):
            raise UserError(
                f"--augs_num: {augs_num}: this recipe has {len(self.groups)} groups; give at most that many"
            )
        self.preset, self.intact_prob, self.augs_num, self.augs_mag, self.fast = (
            preset,
            intact_prob,
            augs_num,
            augs_mag,
            fast,
        )

    def plan(self, rng: Rng) -> Iterator[Step]:
        """The operations and magnitudes of one image, drawn as they are asked for."""
        for index in distinct(rng, len(self.groups), self.augs_num):
            operation = pick(rng, self.groups[index])
            yield operation, integers(rng, 0, 3) if self.augs_mag is None else self.augs_mag

    def __call__(self, image: np.ndarray, rng: Rng, mask: np.ndarray | None = None):
        if rng.uniform(0, 1) < self.intact_prob:
            return image if mask is None else (image, mask)
        return apply_plan(self.plan(rng), image, rng, mask, self.preset, self.fast)


class Selective(RandAugment):
    """Every group in turn, one operation each at a random magnitude (`--issel_aug` with the group flags).

    A Rotate after a Curve keeps the canvas. `instead` gives a named group other operations.
    """

    ORDER = ("process", "noise", "blur", "weather", "camera", "pattern", "warp", "geometry")

    def __init__(
        self, groups: Sequence[str], *, preset: str = "original", intact_prob: float = 0.5, fast: bool = False,
        instead: Mapping[str, Group] | None = None,
    ):  # fmt: skip
        unknown = set(groups) - set(self.ORDER)
        if unknown:
            raise UserError(f"augmentation: {sorted(unknown)[0]}: unknown; groups are {', '.join(self.ORDER)}")
        chosen = [(instead or {}).get(name, name) for name in self.ORDER if name in groups]
        super().__init__(chosen, preset=preset, intact_prob=intact_prob, augs_num=len(chosen), fast=fast)

    def plan(self, rng: Rng) -> Iterator[Step]:
        """One operation of every group, magnitude first, drawn as they are asked for."""
        curved = False
        for group in self.groups:
            magnitude = integers(rng, 0, 3)
            operation = pick(rng, group)
            yield (geometry.ROTATE_INSIDE if curved and operation.name == "Rotate" else operation), magnitude
            curved |= operation.name == "Curve"


def apply_plan(steps: Iterator[Step], image: np.ndarray, rng: Rng, mask: np.ndarray | None, preset: str, quick: bool):
    """Apply (operation, magnitude) pairs in turn; see `RandAugment` for the rest."""
    if quick:
        return fast.apply_plan(steps, image, rng, mask, preset)
    for operation, magnitude in steps:
        result = operation(image, rng, magnitude, preset=preset, mask=mask)
        image, mask = result if mask is not None else (result, None)
    return image if mask is None else (image, mask)
