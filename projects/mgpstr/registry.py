"""MGP-STR's and ACDS-STR's rows for `strlab models`, `read`, `eval`, `export` and `serve`."""

from __future__ import annotations

from common.registry import ModelRow, Weights
from common.text.charset import CHARSET_36
from projects.mgpstr.model.names import ACDS, ACDS_SMALL, MICRO, MODELS

MGP_PAPER = "Multi-Granularity Prediction for Scene Text Recognition, ECCV 2022"
ACDS_PAPER = "Attention Guidance by Cross-Domain Supervision Signals for Scene Text Recognition, IEEE TIP 2025"
TERMS = "Apache-2.0; code and models for research purposes only, as the authors' page says"
RELEASE = "release V1.0.1-ECCV2022-model of github.com/AlibabaResearch/AdvancedLiterateMachinery"
PUBLISHED = {
    "mgp_str_tiny_patch4_3_32_128": ("mgp_str_tiny_patch4_32_128.pth",),
    "mgp_str_small_patch4_3_32_128": ("mgp_str_small_patch4_32_128.pth",),
    "mgp_str_base_patch4_3_32_128": ("mgp_str_base_patch4_32_128.pth", "mgp_str_base_union14.pth"),
    "mgp_str_large_patch4_3_32_128": ("mgp_str_large_union14",),
    "ACDS-STR-Base": ("ACDS-STR-Base-STD", "ACDS-STR-Base-RD"),
}


def _row(transformer: str, model: str) -> ModelRow:
    name, acds = model or transformer, transformer in ACDS
    small = name in (*MICRO, *ACDS_SMALL)
    where = "a file share, linked from github.com/xuefanfu/ACDS-STR" if acds else RELEASE
    return ModelRow(
        name=f"mgpstr/{name}", kind="recogniser", image_size=(32, 128), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
        charset=CHARSET_36, build="projects.mgpstr.model.build:build_row", open="projects.mgpstr.reader:open_reader",
        options={"transformer": transformer, "model": model}, meta=not small,
        weights=tuple(Weights(file, TERMS, where) for file in PUBLISHED.get(name, ())),
        paper=ACDS_PAPER if acds else MGP_PAPER, status="small form, not published" if small else "parity tested",
    )  # fmt: skip


ROWS = [
    *(_row("char-str" if name.startswith("char") else "mgp-str", name) for name in (*MODELS, *MICRO)),
    *(_row(name, "") for name in ACDS),
]
