"""What every kind of word set offers to training, evaluation and the data commands, whatever its form on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from common.data.numbering import PUBLISHED, Numbering

# Names of lists that are found in a folder, the first that is there; another list can be named itself.
LIST_NAMES = ("labels.txt", "labels.tsv", "labels.csv", "labels.jsonl", "metadata.csv", "metadata.jsonl", "gt.txt",
              "gt.csv", "label.txt", "labels.json", "train.jsonl", "test.jsonl", "val.jsonl")  # fmt: skip
SAVED = "state.json"  # in a folder that `datasets.save_to_disk` has written


class WordSource:
    """Pictures with labels, numbered from 0, in a fixed order; read only.

    A subclass gives `__len__`, `image_bytes` and `label`; the rest follows. Sources open their files at the first
    access in each process, so they may be forked, spawned and pickled. `path` is what they were opened from.
    """

    path: Path
    numbering: Numbering = PUBLISHED

    def __len__(self) -> int:
        raise NotImplementedError

    def image_bytes(self, index: int) -> bytes:
        """The encoded picture of sample `index`. Raises KeyError (naming it) when it is missing."""
        raise NotImplementedError

    def label(self, index: int) -> str:
        """The label as stored. Raises KeyError when it is missing, UnicodeDecodeError when it is not UTF-8."""
        raise NotImplementedError

    def value(self, prefix: str, index: int) -> bytes | None:
        """The picture, the label, or what else is stored with the sample (mask, boxes, …); None where it is not."""
        if not 0 <= index < len(self):
            return None
        try:
            if prefix == "image":
                return self.image_bytes(index)
            return self.label(index).encode("utf-8") if prefix == "label" else None
        except KeyError:
            return None

    def items(self, prefix: str) -> Iterator[tuple[int, bytes]]:
        """(index, value) of all samples that have the value, in order."""
        values = ((index, self.value(prefix, index)) for index in range(len(self)))
        return ((index, value) for index, value in values if value is not None)

    def numbers(self, prefix: str) -> Iterator[int]:
        """The indices of the samples that have a picture or a label, in order; nothing is read."""
        return iter(range(len(self)) if prefix in self.prefixes() else ())

    def prefixes(self) -> list[str]:
        """Which values there are."""
        return ["image", "label"]

    def stored_count(self) -> bytes | None:
        """The number of samples as an LMDB would store it."""
        return b"%d" % len(self)

    def close(self) -> None:
        """Close this process's files; the next access opens them again."""


class Texts:
    """Many strings in two arrays, for a quick pickle and without an object for each."""

    def __init__(self, texts: Iterable[str]) -> None:
        pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=len(pieces))
        self._offsets, self._blob = np.concatenate([[0], lengths.cumsum()]), b"".join(pieces)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self._blob[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogatepass")
