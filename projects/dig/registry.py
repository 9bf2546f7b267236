"""DiG's rows for `strlab models`, `read`, `eval`, `export` and `serve`."""

from __future__ import annotations

from common.registry import ModelRow, Weights
from common.text.charset import DIG_ALLCASES_SYMBOLS

PAPER = "Reading and Writing: discriminative and generative modelling for self-supervised text recognition, ACM MM 2022"
TERMS = "MIT for academic research, with a patent notice (branch master); CC-BY-NC 4.0 (branch main)"
WHERE = "the authors' drive, linked from github.com/ayumiymk/DiG"
SIZES = {"tiny": 4, "small": 4, "base": 4, "micro": 8}  # side of a patch
PUBLISHED = {
    "simmim_vit_small_patch4_32x128": (Weights("fine-tuned ViT-small", TERMS, WHERE),),
    "pretrain_simmim_moco_ori_vit_small_patch4_32x128": (Weights("pre-trained ViT-small", TERMS, WHERE),),
}


def _row(name: str, size: str, **more: object) -> ModelRow:
    own = size == "micro"
    return ModelRow(
        name=f"dig/{name}",
        image_size=(32, 128),
        weights=PUBLISHED.get(name, ()),
        meta=not own,
        paper=PAPER,
        status="small form, additional, not published" if own else "parity tested",
        **more,
    )


def _recogniser(size: str, patch: int) -> ModelRow:
    """The recogniser of one encoder size; the decoder is an option."""
    name = f"simmim_vit_{size}_patch{patch}_32x128"
    options = {"model": name} | ({"decoder_name": "micro_tf_decoder"} if size == "micro" else {})
    return _row(
        name,
        size,
        kind="recogniser",
        charset=DIG_ALLCASES_SYMBOLS,
        build="projects.dig.model.recogniser:build_recogniser",
        open="projects.dig.reader:open_reader",
        options=options,
    )


def _pretrainer(kind: str, size: str, patch: int) -> ModelRow:
    name = f"pretrain_{kind}_ori_vit_{size}_patch{patch}_32x128"
    build = "projects.dig.model.pretraining:build_pretrainer"
    small = {"mlp_dim": 64, "dim": 32} if size == "micro" else {}
    return _row(name, size, kind="pre-trainer", build=build, options={"model": name}, test_options=small)


KINDS = ("simmim_moco", "simmim", "moco")
ROWS = [
    *(_recogniser(size, patch) for size, patch in SIZES.items()),
    *(_pretrainer(kind, size, patch) for kind in KINDS for size, patch in SIZES.items()),
]
