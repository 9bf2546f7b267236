"""Words with character boxes in the usual layout, and the shortest commands of MGP-STR's scripts on them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.common import lmdbs
from tests.siga.corpus import WORDS, crop

MICRO = ["--Transformer", "mgp-str", "--TransformerModel", "mgp_str_micro_patch16x8_3_32_128"]
CHARACTERS = ["--Transformer", "char-str", "--TransformerModel", "char_str_micro_patch16x8_3_32_128"]
ACDS = ["--Transformer", "ACDS-STR-Micro"]


def boxes_of(word: str) -> list[list]:
    """A box for each character of `crop(word)`, a picture of 48x24 pixels."""
    return [[3 + 11 * i, 4, 13 + 11 * i, 20, character] for i, character in enumerate(word)]


def write_corpus(root: Path) -> Path:
    """training/{MJ,ST} of 10 words each with boxes, validation of 4, evaluation/{SVT,CUTE80} of 4."""
    sizes = {"training/MJ": 10, "training/ST": 10, "validation": 4, "evaluation/SVT": 4, "evaluation/CUTE80": 4}
    boxes = lambda word, number: {"boxes": json.dumps(boxes_of(word)).encode()}  # noqa: E731
    return lmdbs.write_corpus(root, WORDS, sizes, picture=crop, extras=boxes)


def command(corpus: Path, out: Path, *more: object, model: list[str] = CHARACTERS) -> list[str]:
    """Arguments of a four-step run on the CPU."""
    folders = {"train_data": corpus / "training", "valid_data": corpus / "validation", "saved_path": out}
    sizes = {"batch_size": 4, "num_iter": 4, "valInterval": 4, "workers": 0, "print_interval": 1}
    fixed = {"device": "cpu", "exp_name": "run", **folders, **sizes}
    return [*model, *(f"--{name}={value}" for name, value in fixed.items()), *map(str, more)]
