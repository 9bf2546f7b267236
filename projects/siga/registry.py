"""SIGA's rows for `strlab models`, `read`, `eval`, `export` and `serve`."""

from __future__ import annotations

from common.registry import ModelRow, Weights
from common.text.charset import CHARSET_36, SIGA_36
from projects.siga.model.variants import VARIANTS, Variant

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
UNSCALED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PUBLISHED = {"TRBA": "SIGA_R", "TSBA": "SIGA_S", "char_str_base_patch4_3_32_128": "SIGA_T"}
TERMS = "academic use (the authors' README says 2-clause BSD, but academic only; the repository has no licence file)"


def _row(variant: Variant) -> ModelRow:
    weights = ()
    if variant.name in PUBLISHED:
        weights = (Weights(PUBLISHED[variant.name], TERMS, "Google Drive, linked from github.com/TongkunGuan/SIGA"),)
    return ModelRow(
        name=f"siga/{variant.name}",
        kind="recogniser",
        image_size=variant.image_size,
        charset=CHARSET_36 if variant.family == "T" else SIGA_36,
        build="projects.siga.model.build:build_row",
        open="projects.siga.reader:open_reader",
        options={"name": variant.name},
        weights=weights,
        meta=variant.published,
        paper="Self-Supervised Implicit Glyph Attention for Text Recognition, CVPR 2023",
        status="parity tested" if variant.published else "small form, additional, not published",
        **(UNSCALED if variant.family == "T" else IMAGENET),
    )


ROWS = [_row(variant) for variant in VARIANTS.values()]
