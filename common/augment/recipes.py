"""Augmentation recipes by name, as the papers compose them. Every recipe is a callable (image uint8 HxWx3, rng,
mask=None) -> image, or (image, mask) if a mask is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.augment.abinet import AbinetAugment
    from common.augment.randaugment import RandAugment, Selective

# Modules with operations are imported by the recipe that uses them: a training then reads and loads its own only.
Group = str | Sequence[str]
ALL_GROUPS: tuple[str, ...] = ("process", "camera", "noise", "blur", "weather", "pattern", "warp", "geometry")
STILL_GROUPS: tuple[Group, ...] = (
    "process", ("Contrast", "Brightness", "JpegCompression"), "noise", "blur", "weather", "pattern",
)  # fmt: skip
"""Groups that move no pixel: for models supervised by character masks (ACDS-STR's mask mode)."""
SSM_WEATHER: Group = ("Fog", "Frost", "Rain", "Shadow")
"""SSM's pre-training has no snow, neither in `--isrand_aug` nor in `--weather`."""
SSM_GROUPS: tuple[Group, ...] = (
    "process", "camera", "noise", "blur", SSM_WEATHER, "pattern", "warp",
)  # fmt: skip
"""What `--isrand_aug` draws from in SSM's pre-training: no geometry."""

BASELINES: dict[str, tuple[Group, ...]] = {
    "semantic": (("GaussianNoise",), ("MotionBlur",), ("Rotate", "Perspective", "Shrink")),
    "learning": (("Distort",), ("GaussianNoise",), ("MotionBlur",), ("Rotate", "Perspective")),
    "rotation": (("Rotate",),),
}
"""Groups of the comparison recipes. A fourth, "scatter", sets an attribute that nothing reads in every original, so
it augments nothing; `from_flags` keeps that.
"""


def abinet(seed: int = 0, resample: bool = False) -> AbinetAugment:
    """SIGA R and S (`--Aug`) and DiG (`--use_abi_aug`). `seed` gives what the published code draws once, for its first
    data set; `resample` draws it for each image.
    """
    from common.augment.abinet import AbinetAugment, published_strengths  # see the head of the file

    return AbinetAugment(None if resample else published_strengths(seed)[0])


def rand_augment(
    preset: str = "original", groups: Sequence[Group] = ALL_GROUPS, intact_prob: float = 0.5, augs_num: int = 3,
    augs_mag: int | None = None, fast: bool = False,
) -> RandAugment:  # fmt: skip
    """SIGA T (preset "siga"), MGP-STR and ACDS-STR ("original"), SSM pre-training ("ssm" with SSM_GROUPS), PyPI
    straug ("straug").

    Raises UserError for an unknown group or preset, or more groups to draw than there are.
    """
    from common.augment.randaugment import RandAugment  # see the head of the file

    return RandAugment(groups, preset=preset, intact_prob=intact_prob, augs_num=augs_num, augs_mag=augs_mag, fast=fast)


def selective(
    groups: Sequence[str], preset: str = "original", intact_prob: float = 0.5, fast: bool = False,
    instead: Mapping[str, Group] | None = None,
) -> Selective:  # fmt: skip
    """`--issel_aug`: one operation of every named group, for a group in `instead` one of its operations."""
    from common.augment.randaugment import Selective  # see the head of the file

    return Selective(groups, preset=preset, intact_prob=intact_prob, fast=fast, instead=instead)


def from_flags(
    flags: Mapping[str, object], preset: str = "original", groups: Sequence[Group] = ALL_GROUPS, *,
    weather: Group = "weather", rand_wins: bool = False,
) -> RandAugment | None:  # fmt: skip
    """The recipe that the published flags choose, None if none does.

    `flags` is `vars(options)` with isrand_aug, issel_aug, issemantic_aug, islearning_aug, isrotation_aug,
    isscatter_aug, intact_prob, augs_num, augs_mag, fast_aug and the group flags process .. geometry, all optional.
    `groups` is what isrand_aug draws from, `weather` the operations of the group of that name under issel_aug. With
    several switches the last of semantic, rotation, learning wins over isrand_aug, or with `rand_wins` (SSM) isrand_aug
    over them. Raises UserError as `rand_augment`.
    """
    common = {"preset": preset, "intact_prob": flags.get("intact_prob", 0.5), "fast": bool(flags.get("fast_aug"))}
    chosen: Sequence[Group] | None = groups if flags.get("isrand_aug") else None
    for flag in ("issemantic_aug", "isrotation_aug", "islearning_aug"):
        if flags.get(flag) and not (rand_wins and flags.get("isrand_aug")):
            chosen = BASELINES[flag.removeprefix("is").removesuffix("_aug")]
    if chosen is not None:
        number = flags.get("augs_num")
        return rand_augment(
            groups=chosen, augs_num=3 if number is None else number, augs_mag=flags.get("augs_mag"), **common
        )
    if flags.get("issel_aug"):
        from common.augment.randaugment import Selective  # see the head of the file

        named = [name for name in Selective.ORDER if flags.get(name)]
        return selective(named, **common, instead={"weather": weather})
    return None
