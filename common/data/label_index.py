"""Labels of millions of words in three numpy arrays, read once at start, with the papers' filters and their
counts.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.bad import BadSample
from common.data.exclude import read_exclusions
from common.data.lmdb import WordLmdb
from common.errors import UserError
from common.text.charset import unsupported
from common.text.coverage import Coverage


@dataclass(frozen=True)
class LabelRules:
    """What a label must be like, and what becomes of it.

    max_length: drop when `len(measure(raw))` is larger (None: no limit); `measure` defaults to the raw label, as all
    papers but PARSeq and SSM do it (they measure after whitespace and Unicode folding: `Normaliser.prepare`).
    keep: raw label -> normalised label (None: as stored). drop_empty: drop labels that are empty afterwards.
    charset with on_unsupported "skip" or "error": drop, or refuse to start with a table, when the normalised label
    has other characters. labels=False reads no label at all (pre-training on pictures). missing_label stands for a
    label that is not there (None: bad sample). exclude: a CSV file of path and number (from 1), as `strlab doctor
    --against` writes it: these samples are no part of the set.
    """

    max_length: int | None = 25
    keep: Callable[[str], str] | None = None
    drop_empty: bool = True
    charset: str | None = None
    on_unsupported: str = "keep"
    measure: Callable[[str], str] | None = None
    labels: bool = True
    missing_label: str | None = None
    exclude: str | Path | None = None

    def __post_init__(self) -> None:
        if self.on_unsupported not in ("keep", "skip", "error"):
            raise ValueError(f"on_unsupported is {self.on_unsupported!r}, expected keep, skip or error")

    def normalised(self, raw: str) -> str:
        """The label as the model is to read it."""
        return raw if self.keep is None else self.keep(raw)

    def coverage(self) -> Coverage | None:
        """A counter of what these rules do to labels; None where they leave all labels as they are."""
        if not self.labels or (self.keep is None and self.charset is None):
            return None
        return Coverage(self.normalised, self.charset, spare_blanks=getattr(self.keep, "whitespace", False))

    def judge(self, raw: str) -> tuple[str, str | None]:
        """(normalised label, None), or ("", why it is dropped: `too_long` or `empty` or `unsupported`)."""
        measured = raw if self.measure is None else self.measure(raw)
        if self.max_length is not None and len(measured) > self.max_length:
            return "", "too_long"
        label = self.normalised(raw)
        if not label and self.drop_empty:
            return "", "empty"
        if self.on_unsupported == "skip" and self.charset is not None and not set(label) <= set(self.charset):
            return "", "unsupported"
        return label, None


class LabelIndex:
    """Normalised labels as one UTF-8 blob with offsets; `source` int32 and `number` int64 [N] say where each sample
    stands.
    """

    def __init__(
        self,
        pieces: list[bytes],
        source: np.ndarray,
        number: np.ndarray,
        counts: Counter[str],
        bad: list[BadSample],
        sources: int,
        coverage: Sequence[Coverage] = (),
    ):
        lengths = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=len(pieces))
        self._offsets = np.concatenate([[0], lengths.cumsum()])
        self._blob = b"".join(pieces)
        self.source, self.number, self.counts, self.bad = source, number, counts, bad
        self.sizes = np.bincount(source, minlength=sources).tolist()

        self.coverage = list(coverage)
        """What normalisation and charset do to the labels of each source; empty where nothing is normalised."""

    def __len__(self) -> int:
        return len(self.source)

    def label(self, index: int) -> str:
        """The normalised label of sample `index`."""
        return self._blob[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogatepass")

    def fingerprint(self) -> str:
        """Eight hexadecimal digits of labels and positions, by which a resumed run recognises its data."""
        mark = zlib.crc32(self._blob)
        for array in (self._offsets, self.source, self.number):
            mark = zlib.crc32(np.ascontiguousarray(array).data, mark)
        return f"{mark:08x}"

    def longest(self) -> int:
        """Bytes of the longest label."""
        return int(np.diff(self._offsets).max(initial=0))


def index_labels(lmdbs: Sequence[WordLmdb], rules: LabelRules, usage: float = 1.0) -> LabelIndex:
    """Read every label of every LMDB once and keep what `rules` allow. Raises `UserError` for unsupported characters
    under "error".
    """
    if not usage > 0:
        raise UserError(f"data usage {usage}: give a share in (0, 1] or a number of samples")
    pieces: list[bytes] = []
    numbers: list[np.ndarray] = []
    counts: Counter[str] = Counter(stored=0, kept=0, too_long=0, empty=0, unsupported=0, bad=0)
    bad: list[BadSample] = []
    coverage = []
    excluded = read_exclusions(Path(rules.exclude)) if rules.exclude else {}
    for words in lmdbs:
        first = len(words) if usage > 1 else int(len(words) * usage)
        coverage.append(rules.coverage())
        start = len(pieces)
        kept = _index_one(words, first, rules, pieces, counts, bad, coverage[-1])
        if out := excluded.get(words.path.resolve()):
            stay = [place for place, number in enumerate(kept) if number + 1 not in out]
            counts["excluded"] += len(kept) - len(stay)
            kept, pieces[start:] = [kept[place] for place in stay], [pieces[start + place] for place in stay]
        numbers.append(np.asarray(kept, dtype=np.int64))
    source = np.repeat(np.arange(len(lmdbs), dtype=np.int32), [len(kept) for kept in numbers])
    number = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)
    if usage > 1:
        most = int(min(usage, len(source)))
        pieces, source, number = pieces[:most], source[:most], number[:most]
    counts["kept"] = len(source)
    index = LabelIndex(pieces, source, number, counts, bad, len(lmdbs), [part for part in coverage if part])
    if rules.on_unsupported == "error" and rules.charset is not None:
        _refuse_unsupported(index, rules.charset)
    return index


def _index_one(
    words: WordLmdb,
    first: int,
    rules: LabelRules,
    pieces: list[bytes],
    counts: Counter,
    bad: list[BadSample],
    coverage: Coverage | None,
) -> list[int]:
    counts["stored"] += first
    if not rules.labels:
        pieces += [b""] * first
        return list(range(first))
    kept, expected = [], 0

    def absent(until: int) -> None:
        for missing in range(expected, until):
            if rules.missing_label is None:
                bad.append(BadSample(str(words.path), missing + 1, f"no label-{missing + 1:09d}"))
                counts["bad"] += 1
            else:
                pieces.append(rules.missing_label.encode())
                kept.append(missing)

    for number, value in words.items("label"):
        if number >= first:
            break
        if number < expected:
            continue
        absent(number)
        expected = number + 1
        try:
            raw = value.decode("utf-8")
            label, why = rules.judge(raw)
        except UnicodeDecodeError:
            bad.append(BadSample(str(words.path), number + 1, "label is not UTF-8"))
            counts["bad"] += 1
            continue
        if coverage is not None and why != "too_long":
            coverage.count(raw, rules.normalised(raw) if why == "unsupported" else label)
        if why is None:
            pieces.append(label.encode("utf-8", "surrogatepass"))
            kept.append(number)
        else:
            counts[why] += 1
    absent(first)
    return kept


def _refuse_unsupported(index: LabelIndex, charset: str) -> None:
    table = unsupported((index.label(i) for i in range(len(index))), charset)
    if table:
        shown = ", ".join(f"{character!r} x {count}" for character, count in table.most_common(20))
        raise UserError(f"labels: characters outside the charset: {shown}: normalise, filter, or extend the charset")
