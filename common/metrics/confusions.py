"""Which characters a reader takes for which, from pairs of truth and prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein

NOTHING = ""  # stands for "no character": a missed or an invented one


def edits(truth: str, prediction: str) -> list[tuple[str, str]]:
    """The differing characters of a shortest edit path, as (true, read); `NOTHING` where one side has none.

    >>> edits("house", "hause"), edits("cat", "cart"), edits("cart", "cat")
    ([('o', 'a')], [('', 'r')], [('r', '')])
    """
    pairs = []
    for kind, source, target in Levenshtein.editops(truth, prediction):
        true = truth[source] if kind in ("replace", "delete") else NOTHING
        read = prediction[target] if kind in ("replace", "insert") else NOTHING
        pairs.append((true, read))
    return pairs


def confusions(pairs: Iterable[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often each (true, read) occurs over (truth, prediction) pairs, most frequent first by `most_common`."""
    counts: Counter[tuple[str, str]] = Counter()
    for truth, prediction in pairs:
        if truth != prediction:
            counts.update(edits(truth, prediction))
    return counts
