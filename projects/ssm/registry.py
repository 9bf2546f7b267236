"""SSM's rows for `strlab models`, `read`, `eval`, `export` and `serve`."""

from __future__ import annotations

from common.registry import ModelRow, Weights
from common.text.charset import CHARSET_94

PAPER = "Symmetric Superimposition Modeling for self-supervised scene text recognition, IJCAI 2024"
TERMS = "weights: not stated; code: fine-tuning half Apache-2.0, pre-training half not stated"
WHERE = "the authors' cloud folder, linked from their repository"
RECOGNISERS = ("TransOCR", "ClusterSeq", "PARSeq", "ViTSTR", "CRNN", "TRBA", "TRBC", "ABINet")
PRETRAINERS = (
    *("flipae_sim_vit_small_str", "flipae_sim_vit_small_dec256d4b", "flipae_vit_small_str"),
    *("flipae_vit_small_dec256d4b", "flipae_vit_tiny_str", "flipae_vit_tiny_dec128d4b"),
    *(f"flipae_vit_small_strdec{depth}" for depth in (1, 2, 6, 8)),
    *(f"flipae_vit_small_dec256d{depth}b" for depth in (1, 2, 6, 8)),
    *("flipae_vit_small_strdim384", "flipae_vit_small_dec384d4b", "ssm_micro_patch16x8"),
)


def _recogniser(name: str) -> ModelRow:
    """A row of the fine-tuning suite; sizes are its constructor's, a checkpoint says its own."""
    sizes = {"img_size": (32, 128), "patch_size": (4, 8)} if name == "ViTSTR" else {}
    published = (Weights("fine-tuned small and base models", TERMS, WHERE),) if name == "TransOCR" else ()
    return ModelRow(
        name=f"ssm/{name}",
        kind="recogniser",
        image_size=(32, 128),
        charset=CHARSET_94,
        build="projects.ssm.model.build:build_row",
        open="projects.ssm.finetune.reader:open_reader",
        options={"name": name, "charset": CHARSET_94, **sizes},
        weights=published,
        meta=True,
        paper=PAPER,
        status="parity tested",
    )


def _pretrainer(name: str) -> ModelRow:
    """A row of the pre-training script."""
    own = name == "ssm_micro_patch16x8"
    published = (Weights("checkpoint-19.pth of the small model", TERMS, WHERE),)
    return ModelRow(
        name=f"ssm/{name}",
        kind="pre-trainer",
        image_size=(32, 128),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        build="projects.ssm.model.pretrainer:build_pretrainer",
        options={"name": name},
        test_options={} if own else {"depth": 1, "mlp_dim": 16},
        weights=published if name == "flipae_sim_vit_small_str" else (),
        paper=PAPER,
        status="small form, additional, not published" if own else "parity tested",
    )


RECOGNISE = "projects.ssm.weights:registry_entry"
ROWS = [*map(_recogniser, RECOGNISERS), *map(_pretrainer, PRETRAINERS)]
