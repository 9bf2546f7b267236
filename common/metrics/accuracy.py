"""Edit-distance measures and the accumulator behind every accuracy table: per set, weighted and unweighted totals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from rapidfuzz.distance import Levenshtein

from common.metrics.protocols import PROTOCOLS, Protocol


def edit_distance(prediction: str, label: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each 1."""
    return Levenshtein.distance(prediction, label)


def one_minus_ned(prediction: str, label: str) -> float:
    """1 - distance / length of the longer word, in [0, 1]; 1 for two empty words."""
    longer = max(len(prediction), len(label))
    return 1.0 - edit_distance(prediction, label) / longer if longer else 1.0


def character_error_rate(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Sum of edit distances over the number of label characters (0 is perfect, above 1 possible); NaN without
    characters.
    """
    characters = sum(len(label) for label in labels)
    edits = sum(edit_distance(prediction, label) for prediction, label in zip(predictions, labels, strict=True))
    return edits / characters if characters else float("nan")


@dataclass
class Tally:
    """Sums over the words of one set under one protocol. `filtered`: words whose label has no character that
    counts.
    """

    samples: int = 0
    correct: int = 0
    filtered: int = 0
    similarity: float = 0.0
    edits: int = 0
    characters: int = 0

    def add(self, prediction: str, label: str) -> None:
        """One normalised pair."""
        if not label:
            self.filtered += 1
            return
        self.samples += 1
        self.correct += prediction == label
        self.similarity += one_minus_ned(prediction, label)
        self.edits += edit_distance(prediction, label)
        self.characters += len(label)

    def merge(self, other: Tally) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def accuracy(self) -> float:
        """Percent of words read exactly; NaN without words."""
        return _percent(self.correct, self.samples)

    @property
    def one_minus_ned(self) -> float:
        """Mean 1-NED in percent; NaN without words."""
        return _percent(self.similarity, self.samples)

    @property
    def cer(self) -> float:
        """Character error rate in percent; NaN without characters."""
        return _percent(self.edits, self.characters)


@dataclass(frozen=True)
class Row:
    """One line of a table, in percent: `protocols` maps 36, 62 and 94 to their tallies or, for the unweighted total,
    to means.

    `samples`: words seen; `bad`: samples that could not be read at all and are in no figure; `confidence` and
    `length` (of the prediction) are means over the words seen, NaN when unknown.
    """

    name: str
    samples: int
    bad: int
    confidence: float
    length: float
    accuracy: dict[str, float]
    one_minus_ned: dict[str, float]
    cer: dict[str, float]
    counted: dict[str, int]
    filtered: dict[str, int]


class Scores:
    """Accumulates predictions set by set; `rows()` are the sets, `weighted()` and `unweighted()` the totals.

    The weighted total counts every word once; the unweighted one is the plain mean of the sets' figures. Sums only,
    so that several processes can add theirs (`state`, `merge`). `protocols`: which protocols to keep (default 36, 62
    and 94).
    """

    def __init__(self, protocols: Sequence[Protocol] = PROTOCOLS) -> None:
        self.protocols = tuple(protocols)
        self._tallies: dict[str, dict[str, Tally]] = {}
        self._sums: dict[str, dict[str, float]] = {}

    def add(
        self, name: str, predictions: Sequence[str], labels: Sequence[str], confidences: Sequence[float] | None = None
    ) -> None:
        """Words of set `name`: raw predictions, raw labels and, where known, confidences in [0, 1]."""
        tallies, sums = self._of(name)
        for prediction, label in zip(predictions, labels, strict=True):
            for protocol in self.protocols:
                tallies[protocol.name].add(protocol.normalise(prediction), protocol.normalise(label))
        sums["samples"] += len(labels)
        sums["length"] += sum(len(prediction) for prediction in predictions)
        if confidences is not None:
            sums["confident"] += len(labels)
            sums["confidence"] += float(sum(confidences))

    def add_bad(self, name: str, count: int) -> None:
        """Samples of set `name` that could not be read."""
        self._of(name)[1]["bad"] += count

    def _of(self, name: str) -> tuple[dict[str, Tally], dict[str, float]]:
        if name not in self._tallies:
            self._tallies[name] = {protocol.name: Tally() for protocol in self.protocols}
            self._sums[name] = {"samples": 0, "bad": 0, "length": 0, "confident": 0, "confidence": 0.0}
        return self._tallies[name], self._sums[name]

    def state(self) -> dict:
        """The sums as plain dicts, to be sent to another process."""
        tallies = {name: {key: vars(tally) for key, tally in of.items()} for name, of in self._tallies.items()}
        return {"tallies": tallies, "sums": self._sums}

    def merge(self, state: Mapping) -> None:
        """Add what another process's `state()` holds."""
        for name, tallies in state["tallies"].items():
            mine, sums = self._of(name)
            for key, values in tallies.items():
                mine[key].merge(Tally(**values))
            for key, value in state["sums"][name].items():
                sums[key] += value

    def rows(self) -> list[Row]:
        """One row a set, in the order of first appearance."""
        return [self._row(name, [name]) for name in self._tallies]

    def weighted(self, names: Iterable[str] | None = None, title: str = "weighted") -> Row:
        """All words of the named sets (default: all) together."""
        return self._row(title, self._known(names))

    def unweighted(self, names: Iterable[str] | None = None, title: str = "unweighted") -> Row:
        """Plain mean of the figures of the named sets (default: all); a set without counted words is excluded from its
        mean.
        """
        rows = [self._row(name, [name]) for name in self._known(names)]
        keys = [protocol.name for protocol in self.protocols]

        def means(what: str) -> dict[str, float]:
            return {key: _mean([getattr(row, what)[key] for row in rows]) for key in keys}

        def sums(what: str) -> dict[str, int]:
            return {key: sum(getattr(row, what)[key] for row in rows) for key in keys}

        return Row(
            name=title,
            samples=sum(row.samples for row in rows),
            bad=sum(row.bad for row in rows),
            confidence=_mean([row.confidence for row in rows]),
            length=_mean([row.length for row in rows]),
            **{what: means(what) for what in ("accuracy", "one_minus_ned", "cer")},
            **{what: sums(what) for what in ("counted", "filtered")},
        )

    def _known(self, names: Iterable[str] | None) -> list[str]:
        return list(self._tallies) if names is None else [name for name in names if name in self._tallies]

    def _row(self, title: str, names: list[str]) -> Row:
        total = {protocol.name: Tally() for protocol in self.protocols}
        sums = dict.fromkeys(("samples", "bad", "length", "confident", "confidence"), 0.0)
        for name in names:
            for key, tally in self._tallies[name].items():
                total[key].merge(tally)
            for key, value in self._sums[name].items():
                sums[key] += value

        def of(what: str) -> dict:
            return {key: getattr(tally, what) for key, tally in total.items()}

        return Row(
            name=title,
            samples=int(sums["samples"]),
            bad=int(sums["bad"]),
            confidence=_percent(sums["confidence"], sums["confident"]),
            length=sums["length"] / sums["samples"] if sums["samples"] else float("nan"),
            counted=of("samples"),
            **{what: of(what) for what in ("accuracy", "one_minus_ned", "cer", "filtered")},
        )


def _percent(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else float("nan")


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")
