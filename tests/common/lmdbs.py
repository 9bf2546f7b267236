"""Small word LMDBs for tests: noise pictures with known bytes, and ways to damage them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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


def write_words(
    path: Path,
    labels: Sequence[str],
    broken: Sequence[int] = (),
    masks: bool = False,
    *,
    size: tuple[int, int] = (16, 40),
    picture: Callable[[str, int], bytes] | None = None,
    extras: Callable[[str, int], dict[str, bytes]] = lambda label, i: {},
    pairs: bool = False,
    **options,
) -> Path:
    """An LMDB of these words; those at `broken` (0-based) hold no picture.

    Args:
        masks: store a mask of each picture too.
        size: height and width of the pictures, which are noise.
        picture: (label, number) -> the picture to write instead of noise.
        extras: (label, number) -> further values of a word, by their prefixes.
        pairs: store each picture at two sizes too, as super-resolution takes it.
        options: of `LmdbWriter`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with LmdbWriter(path, **options) as writer:
        for i, label in enumerate(labels):
            pixels, more = noise(i, *size), extras(label, i)
            data = picture(label, i) if picture else encoded(pixels)
            if i in broken:
                data = b"no picture"
            if masks:
                more["mask"] = encoded((pixels[..., 0] > 128).astype(np.uint8))
            if pairs:
                more |= {"image_hr": data, "image_lr": encoded(np.ascontiguousarray(pixels[::2, ::2]))}
            writer.add(data, label, **more)
    return path


def write_corpus(root: Path, words: Sequence[str], sizes: dict[str, int], **how) -> Path:
    """Word LMDBs in folders of `root`, each with the first so many words; `how` goes to `write_words`."""
    for name, count in sizes.items():
        write_words(root / name, words[:count], **how)
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
