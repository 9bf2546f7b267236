"""`strlab data convert synthtext`: SynthText's pictures and `gt.mat` -> word crops with character boxes.

ACDS-STR trains its map on "reconstituted" SynthText words, which were never released, nor the program that made them.
Every word is cut out by the bounding box of its quadrangle; a character's box is the bounding box of its quadrangle in
pixels of that crop, stored as JSON under `boxes-%09d` (`[[x1, y1, x2, y2, character], …]`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.convert.records import each
from common.data.convert.release import need
from common.data.convert.samples import Source
from common.data.convert.scenes import word as word_of
from common.data.decode import BadImage, picture_size
from common.errors import UserError
from common.files import read_below

FIELDS = ("imnames", "wordBB", "charBB", "txt")


def read_table(file: Path) -> list[np.ndarray]:
    """The four cell arrays of a `gt.mat`, each `[pictures]`: names, word and character quadrangles, texts.

    Raises `UserError` for a file that is no such table.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(file, variable_names=FIELDS)
        columns = [content[name].ravel() for name in FIELDS]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); give SynthText's gt.mat") from None
    except (MatReadError, NotImplementedError, ValueError, TypeError) as error:
        raise UserError(f"{file}: no MATLAB table ({error}); give SynthText's gt.mat") from None
    except KeyError as error:
        raise UserError(f"{file}: has no field {error}; give SynthText's gt.mat") from None
    if len({len(column) for column in columns}) != 1 or columns[0].dtype != object:
        raise UserError(f"{file}: {', '.join(FIELDS)} must be cells, one for each picture; give SynthText's gt.mat")
    return columns


def bounds(quads: np.ndarray) -> np.ndarray:
    """Quadrangles [2, 4] or [2, 4, n] as in the table -> (left, top, right, bottom) of each, [n, 4]."""
    points = np.asarray(quads, dtype=np.float64).reshape(2, 4, -1)
    return np.concatenate([points.min(1), points.max(1)]).T


def inside(boxes: np.ndarray, root: Path, name: str) -> np.ndarray:
    """Boxes [n, 4] cut off at the sides of the picture `name`; as they are where it cannot be opened."""
    try:
        width, height = picture_size(read_below(root, name))
    except (BadImage, OSError):
        return boxes
    return boxes.clip(0, [width, height, width, height])


def relative(characters: np.ndarray, crop: np.ndarray, word: str) -> bytes:
    """Boxes [n, 4] of a word's characters in pixels of its crop, cut off at its sides, as JSON; what lies outside has
    none.
    """
    left, top = int(crop[0]), int(crop[1])
    size = np.array([round(crop[2]) - left, round(crop[3]) - top] * 2)
    boxes = np.clip(characters - [left, top, left, top], 0, size.clip(0)).round(1).tolist()
    seen = [[*box, character] for box, character in zip(boxes, word) if box[0] < box[2] and box[1] < box[3]]
    return json.dumps(seen, ensure_ascii=False).encode()


def words_of(root: Path, name: str, word_quads: np.ndarray, quads: np.ndarray, texts: list[str]) -> Iterator[Source]:
    """The words of one picture; one record that only says why, where the table's columns do not fit each other."""
    words = " ".join(texts).split()
    crops, characters = inside(bounds(word_quads), root, name), bounds(quads)
    if len(crops) != len(words) or len(characters) != sum(map(len, words)):
        yield Source.bad(name, f"{len(crops)} word and {len(characters)} character boxes for {words}")
        return
    start = 0
    for word, crop in zip(words, crops):
        own = characters[start : start + len(word)]
        start += len(word)
        if np.isfinite(crop).all() and np.isfinite(own).all():
            extras = {"boxes": relative(own, crop, word)}
            yield word_of(root, name, tuple(crop.tolist()), word, f"{name} {word}", extras)
        else:
            yield Source.bad(f"{name} {word}", "a box is not finite")


def synthtext(root: Path, file: Path | None = None) -> Iterator[Source]:
    """SynthText: all words of the table `file` (gt.mat), whose pictures lie next to it or below `root`."""
    file = file or need(root, "gt.mat", shallowest=True)[0]

    def one(row: tuple) -> Iterator[Source]:
        name, words, characters, texts = row
        base = root if (root / str(np.ravel(name)[0])).is_file() else file.parent
        yield from words_of(base, str(np.ravel(name)[0]), words, characters, [str(text) for text in np.ravel(texts)])

    rows = enumerate(zip(*read_table(file)), 1)
    yield from each(((f"{file}: picture {number}:", row) for number, row in rows), one, Source.bad)
