"""What a comparison of readers knows: each reader's words, its facts, and the paired test of two of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.metrics.intervals import mcnemar, wilson

UNKNOWN = "not stated"


@dataclass(frozen=True)
class Word:
    """What a reader made of one word: `correct` has the protocols under which the label counts."""

    set: str
    index: int
    label: str
    text: str
    confidence: float
    correct: dict[str, bool]


@dataclass
class Entry:
    """One reader of the comparison.

    Attributes:
        label: what the table calls it; several entries may share one (seeds).
        path, model: its checkpoint and registry entry.
        data, images_seen, commit: as its metadata state them.
        parameters, flops: numbers; operations of one image (2 for each multiply-add).
        speed: images a second on one core, by batch size.
        words: one for each word that could be read, in the order of the sets.
        number: from 1 among the readers with this label, 0 where it has the label alone.
    """

    label: str
    path: Path
    model: str
    data: str
    images_seen: int | None
    commit: str
    sha256: str
    parameters: int = 0
    flops: int = 0
    speed: dict[int, float] = field(default_factory=dict)
    words: list[Word] = field(default_factory=list)
    number: int = 0

    @property
    def name(self) -> str:
        """The label, with a number where several readers share it."""
        return f"{self.label} #{self.number}" if self.number else self.label

    def accuracy(self, protocol: str, name: str | None = None) -> tuple[float, float, float, int] | None:
        """(accuracy, low, high) in % and the number of words of a set, or of all words; None without words."""
        marks = [w.correct[protocol] for w in self.words if protocol in w.correct and name in (None, w.set)]
        if not marks:
            return None
        low, high = wilson(sum(marks), len(marks))
        return 100 * sum(marks) / len(marks), 100 * low, 100 * high, len(marks)


def paired(first: Entry, other: Entry, protocol: str = "36") -> tuple[int, int, float]:
    """Words that only the first reads, words that only the other reads, and McNemar's p-value."""
    mine = {(w.set, w.index): w.correct.get(protocol) for w in first.words}
    theirs = {(w.set, w.index): w.correct.get(protocol) for w in other.words}
    common = [key for key in mine if mine[key] is not None and theirs.get(key) is not None]
    only_first = sum(bool(mine[key]) and not theirs[key] for key in common)
    only_other = sum(bool(theirs[key]) and not mine[key] for key in common)
    return only_first, only_other, mcnemar(only_first, only_other)
