"""The sizes of SIGA's models: the three published ones, RBA, and a small documented one of each (not published).

A variant is data: what a builder needs and what the losses of that variant use (siga paper, section 4.2; the small ones
keep the architecture, shrink widths and depths so that a processor trains them in minutes, and begin with a
rectification that does nothing; the published start is slanted and counts on trained TPS weights).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from common.errors import UserError


@dataclass(frozen=True)
class LossSettings:
    """Constants in which the published variants differ.

    Coverage uses sigmoid(`slope` (attention - `threshold`)); the sequence-attention term is weighted with
    `correct_weight` while the iteration is below 20 000, else with `correct_weight_late`. `replicas`: the published
    run was one process over so many GPUs (DataParallel), where the overlap term is a mean over their sums; 0: each
    process has its own sum.
    """

    slope: float = 70.0
    threshold: float = 0.1
    correct_weight: float = 1.0
    correct_weight_late: float = 0.3
    replicas: int = 0


@dataclass(frozen=True)
class Variant:
    """Everything that fixes an architecture but the character set and the word length.

    `family`: R (TPS + ResNet-45), S (TPS + SVTR) or T (ViT). `widths`, `depths`, `heads` are the backbone's: R stem and
    five stages / blocks per stage and of the two stages of the column tail; S and T stage widths, blocks and heads.
    `columns` is the width of the visual sequence V; `glyph_width` that of the glyph head's maps.
    """

    name: str
    family: str
    image_size: tuple[int, int]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = ()
    columns: int = 512
    hidden: int = 256
    glyph_width: int = 128
    tps_widths: tuple[int, ...] = (64, 128, 256, 512)
    fiducials: int = 20
    published: bool = True
    loss: LossSettings = field(default_factory=LossSettings)

    @property
    def has_tps(self) -> bool:
        return bool(self.tps_widths)


TRBA = Variant("TRBA", "R", (32, 128), (32, 32, 64, 128, 256, 512), (3, 4, 6, 6, 3, 2, 1))
TSBA = Variant(
    "TSBA",
    "S",
    (48, 160),
    (192, 256, 512),
    (3, 9, 9),
    (6, 8, 16),
    columns=384,
    loss=LossSettings(85.0, 0.08, 0.1, 0.1, replicas=3),
)
CHAR_STR = Variant(
    "char_str_base_patch4_3_32_128",
    "T",
    (32, 128),
    (768,),
    (12,),
    (12,),
    tps_widths=(),
    loss=LossSettings(70.0, 0.1, 0.15, 0.15),
)
_SMALL = {"hidden": 64, "published": False}

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        TRBA,
        replace(TRBA, name="RBA", tps_widths=()),
        TSBA,
        CHAR_STR,
        replace(
            TRBA,
            name="TRBA_small",
            image_size=(32, 96),
            widths=(8, 16, 24, 48, 64, 80),
            depths=(1, 1, 1, 1, 1, 0, 0),
            columns=80,
            glyph_width=16,
            tps_widths=(8, 16, 16, 16),
            **_SMALL,
        ),
        replace(
            TSBA,
            name="TSBA_small",
            image_size=(32, 128),
            widths=(48, 64, 96),
            depths=(1, 2, 2),
            heads=(3, 4, 6),
            columns=96,
            glyph_width=32,
            tps_widths=(8, 16, 32, 32),
            **_SMALL,
        ),
        replace(
            CHAR_STR,
            name="char_str_small",
            widths=(64,),
            depths=(6,),
            heads=(2,),
            columns=64,
            glyph_width=16,
            **_SMALL,
        ),
    )
}
ALIASES = {"SIGA_R": "TRBA", "SIGA_S": "TSBA", "SIGA_T": CHAR_STR.name, "ViT": CHAR_STR.name}


def variant(name: str) -> Variant:
    """The variant called `name` (or its alias). Raises UserError for anything else, CRNN with its reason."""
    if name == "CRNN":
        raise UserError(
            "--model_name: CRNN: a CTC reader has no glyph unit and never worked here; choose TRBA, RBA or TSBA"
        )
    try:
        return VARIANTS[ALIASES.get(name, name)]
    except KeyError:
        known = ", ".join([*VARIANTS, *ALIASES])
        raise UserError(f"--model_name: {name}: not a SIGA model; choose one of {known}") from None
