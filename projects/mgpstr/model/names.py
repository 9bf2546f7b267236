"""Names and sizes of the models, without torch: the command line and the registry need no more."""

from __future__ import annotations

SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
}
MODELS = {
    **{f"mgp_str_{size}_patch4_3_32_128": sizes for size, sizes in SIZES.items()},
    "char_str_base_patch4_3_32_128": SIZES["base"],
}
# additional, for machines without a GPU: 0.8 M parameters in the encoder, 32 tokens instead of 256. Patches (height,
# width) as narrow as a letter's strokes are learnt from fewer words than wide ones.
_SMALL = {"dim": 128, "depth": 4, "heads": 4, "patch": (16, 8)}
MICRO = {"mgp_str_micro_patch16x8_3_32_128": _SMALL, "char_str_micro_patch16x8_3_32_128": _SMALL}
ACDS = {
    "ACDS-STR-Base": {"depth": 10, "first_guided": 7, "dim": 768, "heads": 12},
    "ACDS-STR-Small": {"depth": 6, "first_guided": 3, "dim": 768, "heads": 12},
    "ACDS-STR-Micro": {
        "depth": 4, "first_guided": 1, "dim": 128, "heads": 4, "stage_widths": (16, 16, 24, 32, 48, 64),
    },
    "ACDS-STR-Nano": {
        "depth": 3, "first_guided": 0, "dim": 64, "heads": 1, "stage_widths": (8, 8, 8, 16, 24, 32),
    },
}  # fmt: skip
ACDS_SMALL = ("ACDS-STR-Micro", "ACDS-STR-Nano")  # additional
TRANSFORMERS = ("mgp-str", "char-str", *ACDS)
