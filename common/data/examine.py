"""What is in one word LMDB: which keys, which pictures decode, what the labels hold. The eyes of `strlab doctor`."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import WordLmdb
from common.errors import UserError

CHUNK = 2000  # samples that a worker looks at in one go
SPARSE = 100  # so many times more numbers than keys: something else than a word LMDB
# Findings that make a sample unusable, so that a repair leaves it out.
UNUSABLE = ("missing image", "missing label", "undecodable image", "label not UTF-8")
# Findings about labels that are usable: told, kept by a repair.
REMARKS = (
    "empty label",
    "control characters",
    "outside charset",
    "too long",
    "duplicate image",
    "conflicting duplicate",
)


@dataclass(frozen=True)
class Wishes:
    """What labels should be like: `charset` (None: anything), `max_length`; and whether pictures are decoded."""

    charset: str | None = None
    max_length: int | None = None
    decode: bool = True


@dataclass
class Examination:
    """Findings about one LMDB; sample numbers are 1-based, as in the keys.

    `fatal`: why nothing could be read (then the rest is empty). `stored`: the text under num-samples. `counts`: keys
    of every prefix.
    `highest`: the highest number of an image or label. `findings`: what is wrong -> [(number, detail)]. `foreign`:
    characters outside the charset with their counts. `sizes`: smallest, median and largest (width, height).
    `characters`: all characters of the labels.
    """

    path: Path
    fatal: str = ""
    stored: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    findings: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    foreign: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def count_is_right(self) -> bool:
        """Whether num-samples is the highest number used."""
        return self.stored is not None and self.stored.isdigit() and int(self.stored) == self.highest

    @property
    def unusable(self) -> dict[int, str]:
        """Number of every sample that cannot be used -> why."""
        return {number: kind for kind in reversed(UNUSABLE) for number, _ in self.findings.get(kind, ())}

    @property
    def faults(self) -> int:
        """Number of things that a repair would mend."""
        return 1 if self.fatal else len(self.unusable) + (not self.count_is_right)


@dataclass
class _Seen:
    """What a worker saw of one chunk."""

    findings: list[tuple[str, int, str]] = field(default_factory=list)
    foreign: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[tuple[int, int, int]] = field(default_factory=list)  # picture, label, number
    examples: list[str] = field(default_factory=list)


def examine(
    path: Path, wishes: Wishes, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Examination:
    """Look at every sample of the LMDB in folder `path`; `progress(done, total)` is called after every chunk.

    Reading happens in other processes, so that a damaged file that crashes LMDB is reported instead of ending the
    command.
    """
    result = Examination(path)
    chunks: list[_Seen] = []
    try:
        with ProcessPoolExecutor(max(workers, 1), mp_context=multiprocessing.get_context("spawn")) as pool:
            result.stored, result.counts, result.highest = pool.submit(_keys, path).result()
            starts = range(0, result.highest, CHUNK)
            for done, seen in enumerate(pool.map(_chunk_of(path, wishes, result.highest), starts), 1):
                chunks.append(seen)
                if progress is not None:
                    progress(min(done * CHUNK, result.highest), result.highest)
    except UserError as error:
        result.fatal = str(error)
        return result
    except BrokenProcessPool:
        result.fatal = (
            f"{path / 'data.mdb'}: reading it crashes LMDB, so pages inside are damaged: copy the folder again"
        )
        return result
    _gather(result, chunks)
    return result


class _chunk_of:
    """Picklable call: start -> what the samples start .. start + CHUNK - 1 hold."""

    def __init__(self, path: Path, wishes: Wishes, highest: int) -> None:
        self.path, self.wishes, self.highest = path, wishes, highest

    def __call__(self, start: int) -> _Seen:
        words, seen = WordLmdb(self.path), _Seen()
        for index in range(start, min(start + CHUNK, self.highest)):
            _look(words, index, self.wishes, seen)
        return seen


def _keys(path: Path) -> tuple[str | None, dict[str, int], int]:
    words = WordLmdb(path)
    stored, counts, highest = words.stored_count(), {}, 0
    for prefix in words.prefixes():
        numbers = [number for number, _ in words.items(prefix)]
        counts[prefix] = len(numbers)
        if prefix in ("image", "label"):
            highest = max(highest, max(numbers, default=-1) + 1)
    known = counts.get("image", 0) + counts.get("label", 0)
    if highest > SPARSE * known + CHUNK:
        raise UserError(f"{path}: {known} images and labels, but numbers up to {highest}: not a word LMDB")
    return None if stored is None else stored.decode("utf-8", "replace"), counts, highest


def _look(words: WordLmdb, index: int, wishes: Wishes, seen: _Seen) -> None:
    image, raw = words.value("image", index), words.value("label", index)
    label = None
    if raw is None:
        seen.findings.append(("missing label", index + 1, ""))
    else:
        try:
            label = raw.decode("utf-8")
        except UnicodeDecodeError:
            seen.findings.append(("label not UTF-8", index + 1, repr(raw[:40])))
    if label is not None:
        _look_at_label(label, index + 1, wishes, seen)
    if image is None:
        seen.findings.append(("missing image", index + 1, ""))
        return
    if wishes.decode:
        try:
            height, width = decode_rgb(image).shape[:2]
            seen.sizes.append((width, height))
        except BadImage as error:
            seen.findings.append(("undecodable image", index + 1, str(error)))
            return
    seen.digests.append((_digest(image), _digest(raw or b""), index + 1))


def _look_at_label(label: str, number: int, wishes: Wishes, seen: _Seen) -> None:
    seen.characters.update(label)
    seen.lengths[len(label)] += 1
    if len(seen.examples) < 3:
        seen.examples.append(label)
    if not label:
        seen.findings.append(("empty label", number, ""))
    if any(character != " " and not character.isprintable() for character in label):
        seen.findings.append(("control characters", number, ascii(label[:60])))
    if wishes.max_length is not None and len(label) > wishes.max_length:
        seen.findings.append(("too long", number, f"{len(label)} characters"))
    if wishes.charset is not None:
        foreign = Counter(character for character in label if character not in wishes.charset)
        if foreign:
            seen.foreign.update(foreign)
            seen.findings.append(("outside charset", number, ascii(label[:60])))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _gather(result: Examination, chunks: list[_Seen]) -> None:
    for seen in chunks:
        for kind, number, detail in seen.findings:
            result.findings.setdefault(kind, []).append((number, detail))
        result.foreign.update(seen.foreign)
        result.characters.update(seen.characters)
        result.lengths.update(seen.lengths)
        result.examples += seen.examples if len(result.examples) < 8 else []
    sizes = sorted((size for seen in chunks for size in seen.sizes), key=lambda size: size[0] * size[1])
    result.sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else []
    digests = [digest for seen in chunks for digest in seen.digests]
    for number, first, same_label in _duplicates(np.asarray(digests, dtype=np.int64).reshape(-1, 3)):
        kind = "duplicate image" if same_label else "conflicting duplicate"
        result.findings.setdefault(kind, []).append((number, f"same picture as {first}"))


def _duplicates(digests: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """(number, number of the first with the same picture, whether the labels agree) of every repeated picture."""
    order = np.argsort(digests[:, 0], kind="stable")
    pictures, labels, numbers = digests[order].T
    first = 0
    for i in range(1, len(pictures)):
        if pictures[i] != pictures[first]:
            first = i
        else:
            yield int(numbers[i]), int(numbers[first]), bool(labels[i] == labels[first])
