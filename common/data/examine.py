"""What is in one LMDB: which keys, which pictures decode, what the labels hold. The eyes of `strlab doctor`.

The keys decide what kind it is: words (pictures with labels), pictures alone (for pre-training, or scenes with their
own annotations), or the masks that mirror pictures elsewhere, where single numbers may be absent.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from common.data.decode import BadImage, decode_rgb
from common.data.numbering import PUBLISHED, Numbering
from common.data.pictures import one_colour
from common.data.sources import open_words
from common.errors import UserError

CHUNK = 2000  # samples that a worker looks at in one go
SPARSE = 100  # so many times more numbers than keys: something else than a word LMDB
WORDS, PICTURES, MASKS = "words", "pictures without labels", "masks of pictures elsewhere"
# Findings that make a sample unusable, so that a repair leaves it out.
UNUSABLE = ("missing image", "missing label", "undecodable image", "label not UTF-8")
# Findings about labels that are usable: reported, kept by a repair.
REMARKS = (
    "empty label",
    "one colour",
    "control characters",
    "outside charset",
    "too long",
    "duplicate image",
    "conflicting duplicate",
)


@dataclass(frozen=True)
class Wishes:
    """What labels should be like: `charset` (None: anything), `max_length`; whether pictures are decoded, and compared
    with each other; whether sizes and sharpness of all pictures are kept."""

    charset: str | None = None
    max_length: int | None = None
    decode: bool = True
    duplicates: bool = False
    statistics: bool = False


@dataclass
class Examination:
    """Findings about one LMDB; sample numbers are 1-based, as in the keys.

    `fatal`: why nothing could be read (then the rest is empty). `kind`: WORDS, PICTURES or MASKS. `stored`: the text
    under num-samples. `counts`: keys of every prefix. `highest`: the highest number of an image or label, or of a mask
    where there are only masks. `findings`: what is wrong -> [(number, detail)]. `foreign`:
    characters outside the charset with their counts. `sizes`: smallest, median and largest (width, height).
    `characters`: all characters of the labels.
    """

    path: Path
    fatal: str = ""
    kind: str = WORDS
    numbering: Numbering = PUBLISHED
    stored: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    findings: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    foreign: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    shapes: np.ndarray | None = None  # int32 [N, 2]: width and height of every picture, where statistics were wished
    sharpness: np.ndarray | None = None  # float32 [N]: see `sharpness_of`

    @property
    def count_is_right(self) -> bool:
        """Whether num-samples is the highest number used; masks may be missing at the end."""
        if self.number is None:
            return False
        return self.number >= self.highest if self.kind == MASKS else self.number == self.highest

    @property
    def number(self) -> int | None:
        """num-samples as a number, None where it is missing or no number."""
        return int(self.stored) if re.fullmatch(r"[0-9]{1,18}", self.stored or "") else None

    @property
    def unusable(self) -> dict[int, str]:
        """Number of every sample that cannot be used -> why."""
        return {number: kind for kind in reversed(UNUSABLE) for number, _ in self.findings.get(kind, ())}

    @property
    def lost_elsewhere(self) -> int:
        """Samples that programs which expect the published numbering cannot find."""
        numbers = range(self.numbering.first, self.numbering.first + self.highest)
        if self.numbering.is_published:
            return 0
        width = self.numbering.width
        return sum(number == 0 or len(b"%0*d" % (width, number)) != PUBLISHED.width for number in numbers)

    @property
    def faults(self) -> int:
        """Number of things that a repair would fix."""
        if self.fatal:
            return 1
        return len(self.unusable) + (not self.count_is_right) + (not self.numbering.is_published)


@dataclass
class Seen:
    """What a worker saw of one chunk."""

    findings: list[tuple[str, int, str]] = field(default_factory=list)
    foreign: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: np.ndarray | None = None  # int32 [N, 2]: width, height
    sharpness: list[float] = field(default_factory=list)
    digests: np.ndarray | None = None  # int64 [N, 3]: picture, label, number
    examples: list[str] = field(default_factory=list)


def examine(
    path: Path, wishes: Wishes, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Examination:
    """Look at every sample of the LMDB in folder `path`; `progress(done, total)` is called after every chunk.

    Reading happens in other processes, so that a damaged file that crashes LMDB is reported instead of ending the
    command.
    """
    result = Examination(path)
    chunks: list[Seen] = []
    try:
        with ProcessPoolExecutor(max(workers, 1), mp_context=multiprocessing.get_context("spawn")) as pool:
            keys = pool.submit(_keys, path).result()
            result.stored, result.counts, result.kind, result.highest, result.numbering = keys
            if result.kind == MASKS:
                return result
            starts = range(0, result.highest, CHUNK)
            for done, seen in enumerate(pool.map(chunk_of(path, wishes, result), starts), 1):
                chunks.append(seen)
                if progress is not None:
                    progress(min(done * CHUNK, result.highest), result.highest)
    except UserError as error:
        result.fatal = str(error)
        return result
    except BrokenProcessPool:
        result.fatal = (
            f"{path / 'data.mdb'}: a process that read it was killed: damaged pages (copy the folder again), or memory "
            "that ran out (use fewer --workers)"
        )
        return result
    gather(result, chunks)
    return result


def look_at_keys(result: Examination) -> None:
    """Fill in what follows from the keys of a set. Raises `UserError` for what is no word set."""
    result.stored, result.counts, result.kind, result.highest, result.numbering = _keys(result.path)


class chunk_of:
    """Picklable call: start -> what the samples start .. start + CHUNK - 1 hold."""

    def __init__(self, path: Path, wishes: Wishes, about: Examination) -> None:
        self.path, self.wishes, self.highest, self.labelled = path, wishes, about.highest, about.kind == WORDS
        self.size = CHUNK

    def __call__(self, start: int) -> Seen:
        words, seen, sizes, digests = open_words(self.path), Seen(), [], []
        for index in range(start, min(start + self.size, self.highest)):
            raw = words.value("label", index) if self.labelled else None
            if self.labelled:
                _look_at_label(raw, index + 1, self.wishes, seen)
            image = words.value("image", index)
            if _look_at_image(image, index + 1, self.wishes, seen, sizes) and self.wishes.duplicates:
                digests.append((_digest(image), _digest(raw or b""), index + 1))
        seen.sizes = np.asarray(sizes, dtype=np.int32).reshape(-1, 2)
        seen.digests = np.asarray(digests, dtype=np.int64).reshape(-1, 3)
        return seen


def _keys(path: Path) -> tuple[str | None, dict[str, int], str, int, Numbering]:
    """(num-samples as stored, number of keys by prefix, kind, number of the last sample counted from 1, numbering).

    Raises `UserError` for what is no word LMDB.
    """
    words = open_words(path)
    stored, counts, tops = words.stored_count(), {}, {}
    for prefix in words.prefixes():
        for number in words.numbers(prefix):
            counts[prefix] = counts.get(prefix, 0) + 1
            tops[prefix] = max(tops.get(prefix, 0), number + 1)
    kind = WORDS if "label" in counts else PICTURES if "image" in counts else MASKS if "mask" in counts else WORDS
    counted = ("mask",) if kind == MASKS else ("image", "label")
    highest = max((tops.get(prefix, 0) for prefix in counted), default=0)
    known = sum(counts.get(prefix, 0) for prefix in counted)
    if highest > SPARSE * known + CHUNK:
        raise UserError(f"{path}: {known} keys, but numbers up to {highest}: not a word LMDB")
    text = None if stored is None else stored[:40].decode("utf-8", "replace")
    return text, counts, kind, highest, words.numbering


def _look_at_image(image: bytes | None, number: int, wishes: Wishes, seen: Seen, sizes: list) -> bool:
    """Whether a picture can be used; appends its (width, height)."""
    if image is None:
        seen.findings.append(("missing image", number, ""))
        return False
    if wishes.decode:
        try:
            pixels = decode_rgb(image)
        except BadImage as error:
            seen.findings.append(("undecodable image", number, str(error)))
            return False
        if one_colour(pixels):
            seen.findings.append(("one colour", number, ""))
        sizes.append(pixels.shape[1::-1])
        if wishes.statistics:
            seen.sharpness.append(sharpness_of(pixels))
    return True


def _look_at_label(raw: bytes | None, number: int, wishes: Wishes, seen: Seen) -> None:
    if raw is None:
        seen.findings.append(("missing label", number, ""))
        return
    try:
        label = raw.decode("utf-8")
    except UnicodeDecodeError:
        seen.findings.append(("label not UTF-8", number, repr(raw[:40])))
        return
    seen.characters.update(label)
    seen.lengths[len(label)] += 1
    if len(seen.examples) < 3:
        seen.examples.append(label)
    if not label:
        seen.findings.append(("empty label", number, ""))
    if any(character != " " and not character.isprintable() for character in label):
        seen.findings.append(("control characters", number, printable(label[:60])))
    if wishes.max_length is not None and len(label) > wishes.max_length:
        seen.findings.append(("too long", number, f"{len(label)} characters"))
    if wishes.charset is not None:
        foreign = Counter(character for character in label if character not in wishes.charset)
        if foreign:
            seen.foreign.update(foreign)
            seen.findings.append(("outside charset", number, printable(label[:60])))


def sharpness_of(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of a picture uint8 [H, W, 3] at a height of 32 pixels, in grey levels squared: below
    about 100 a word is blurred."""
    width = max(8, round(32 * pixels.shape[1] / pixels.shape[0]))
    grey = cv2.cvtColor(cv2.resize(pixels, (min(width, 512), 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def printable(text: str) -> str:
    """The text in quotes, as it is but for control characters and the like, which become escapes."""
    return repr(text)


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def gather(result: Examination, chunks: list[Seen]) -> None:
    """Put together what the chunks of a set hold, in their order."""
    for seen in chunks:
        for kind, number, detail in seen.findings:
            result.findings.setdefault(kind, []).append((number, detail))
        result.foreign.update(seen.foreign)
        result.characters.update(seen.characters)
        result.lengths.update(seen.lengths)
        result.examples += seen.examples if len(result.examples) < 8 else []
    if not chunks:
        return
    sizes = np.concatenate([seen.sizes for seen in chunks])
    if any(seen.sharpness for seen in chunks):
        result.shapes = sizes
        result.sharpness = np.concatenate([np.asarray(seen.sharpness, dtype=np.float32) for seen in chunks])
    order = np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")
    result.sizes = [tuple(sizes[order[i]].tolist()) for i in (0, len(order) // 2, -1)] if len(order) else []
    for number, first, same_label in _duplicates(np.concatenate([seen.digests for seen in chunks])):
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
