"""TextSSR's rows for `strlab models`. They make pictures; the readers that judge them are other projects'."""

from __future__ import annotations

import json
from pathlib import Path

from common.registry import ModelRow, Weights

PAPER = "TextSSR: Diffusion-based Data Synthesis for Scene Text Recognition, ICCV 2025"
TERMS = "not stated for the weights (the authors' code is GPL-3; Stable Diffusion 2.1: CreativeML Open RAIL++-M)"
WHERE = "ModelScope, Yesianrohn/TextSSR"
CARD = Path(__file__).with_name("weights") / "painter.json"


def _shipped() -> tuple[Weights, ...]:
    """The painter that ships, where it is installed; `projects/textssr/shipped.py` without its imports."""
    if not CARD.is_file():
        return ()
    facts = json.loads(CARD.read_text("utf-8"))
    where = f"ships with the library (strlab paint). {facts['readable']}"
    digest = facts["sha256"]["unet/diffusion_pytorch_model.safetensors"]
    return (Weights("weights/unet", facts["licence"], where, digest),)


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
    _row("CDM_small", "build_unet", "small", 64, "small form, additional, not published; ships trained", _shipped()),
    _row("CDM_tiny", "build_unet", "tiny", 64, "small form, additional, not published"),
    _row("VAE_tiny", "build_vae", "tiny", 64, "small form, additional, not published"),
]  # fmt: skip
