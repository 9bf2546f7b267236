"""TextSSR's rows for `strlab models`. They make pictures; the readers that judge them are other projects'."""

from __future__ import annotations

from common.registry import ModelRow, Weights

PAPER = "TextSSR: Diffusion-based Data Synthesis for Scene Text Recognition, ICCV 2025"
TERMS = "not stated for the weights (the authors' code is GPL-3; Stable Diffusion 2.1: CreativeML Open RAIL++-M)"
WHERE = "ModelScope, Yesianrohn/TextSSR"


def _row(name: str, build: str, size: str, side: int, status: str, weights: tuple[Weights, ...] = ()) -> ModelRow:
    return ModelRow(
        name=f"textssr/{name}",
        kind="generator",
        image_size=(side, side),
        build=f"projects.textssr.model.build:{build}",
        options={"size": size},
        meta=size == "sd21",
        weights=weights,
        paper=PAPER,
        status=status,
    )


ROWS = [
    _row("CDM", "build_unet", "sd21", 256, "parity tested",
         (Weights("step2/checkpoint-25000/unet", TERMS, WHERE),)),
    _row("VAE", "build_vae", "sd21", 256, "parity tested", (Weights("vae_ft/checkpoint-150000/vae", TERMS, WHERE),)),
    _row("CDM_mid", "build_unet", "mid", 128, "small form, additional, not published"),
    _row("CDM_tiny", "build_unet", "tiny", 64, "small form, additional, not published"),
    _row("VAE_tiny", "build_vae", "tiny", 64, "small form, additional, not published"),
]  # fmt: skip
