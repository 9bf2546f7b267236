"""Small word LMDBs for tests: noise pictures with known bytes, and ways to damage them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from common.data.lmdb import LmdbWriter


def noise(seed: int, height: int = 16, width: int = 40) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def write_words(path: Path, labels: Sequence[str], broken: Sequence[int] = (), masks: bool = False, **options) -> Path:
    """An LMDB of noise pictures with these labels; those at `broken` (0-based) hold no picture."""
    with LmdbWriter(path, **options) as writer:
        for i, label in enumerate(labels):
            extras = {"mask": encoded((noise(i)[..., 0] > 128).astype(np.uint8))} if masks else {}
            writer.add(b"no picture" if i in broken else encoded(noise(i)), label, **extras)
    return path


def write_corpus(root: Path, words: Sequence[str], sizes: dict[str, int]) -> Path:
    """Word LMDBs in folders of `root`, each with the first so many words."""
    for name, count in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_words(root / name, words[:count])
    return root


def put(path: Path, *pairs: tuple[bytes, bytes | None]) -> None:
    """Set (or with None delete) raw keys of an LMDB."""
    with (
        lmdb.open(str(path), map_size=1 << 26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for name, value in pairs:
            if value is None:
                transaction.delete(name)
            else:
                transaction.put(name, value)
