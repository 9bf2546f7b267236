"""A corpus of a few words in the usual layout, made in a fraction of a second, and the shortest training commands on
it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.common import lmdbs

WORDS = ["ab", "cat", "dog", "10", "sun", "tea", "ice", "map", "x1", "owl"]
SIZES = ["--imgW", "64", "--batch_max_length", "5"]


def crop(word: str, seed: int) -> bytes:
    """A PNG of the word, light on dark."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (24, 48, 3), dtype=np.uint8)
    cv2.putText(image, word, (3, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (230, 240, 220), 1, cv2.LINE_AA)
    return cv2.imencode(".png", image)[1].tobytes()


def write_words(folder: Path, words: list[str]) -> Path:
    """One LMDB of these words."""
    return lmdbs.write_words(folder, words, picture=crop)


def write_corpus(root: Path) -> Path:
    """training/{MJ,ST} of 20 words each, evaluation/{SVT,CUTE80} of 6."""
    for name in ("MJ", "ST"):
        write_words(root / "training" / name, WORDS * 2)
    for name in ("SVT", "CUTE80"):
        write_words(root / "evaluation" / name, WORDS[:6])
    return root


def command(corpus: Path, out: Path, model: str = "TRBA_small", *more: object) -> list[str]:
    """Arguments of a four-step run of a small model on the CPU."""
    family = ["--batch_ratio", "0.5-0.5"] if model.startswith("char_str") else []
    return [
        str(word)
        for word in (
            "--model_name",
            model,
            "--train_data",
            corpus / "training",
            "--select_data",
            "synth",
            "--output",
            out,
            "--device",
            "cpu",
            "--batch_size",
            4,
            "--num_iter",
            4,
            "--val_interval",
            4,
            "--workers",
            0,
            "--check_data",
            2,
            "--print_interval",
            1,
            "--exp_name",
            "run",
            "--mask_path",
            "",
            *SIZES,
            *family,
            *more,
        )
    ]
