"""Which words to paint instead of a region's own: permutations of its letters, or words of a list that fit."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError


def arrangements(word: str) -> int:
    """How many distinct orders the characters of a word have."""
    return math.factorial(len(word)) // math.prod(math.factorial(count) for count in Counter(word).values())


def permutations(word: str) -> Iterator[str]:
    """All distinct orders of the characters, sorted."""
    counts = Counter(word)

    def extend(prefix: str) -> Iterator[str]:
        if len(prefix) == len(word):
            yield prefix
            return
        for character in sorted(counts):
            if counts[character]:
                counts[character] -= 1
                yield from extend(prefix + character)
                counts[character] += 1

    return extend("")


def anagrams(word: str, count: int, rng: random.Random, *, include_original: bool = False) -> list[str]:
    """Up to `count` distinct anagrams, sorted; the word itself only on request.

    A word of one distinct character has none. Where there are not more than asked for, all are given.
    """
    skipped = set() if include_original else {word}
    total = arrangements(word) - len(skipped)
    if total <= count:
        return [made for made in permutations(word) if made not in skipped]
    found: set[str] = set()
    letters = list(word)
    while len(found) < count:
        rng.shuffle(letters)
        made = "".join(letters)
        if made not in skipped:
            found.add(made)
    return sorted(found)


def read_list(path: str | Path) -> dict[int, list[str]]:
    """One word a line -> words by length. Raises UserError for a file without words."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: --words: cannot be read ({error}); give a UTF-8 file of one word a line") from None
    by_length: dict[int, list[str]] = defaultdict(list)
    for word in dict.fromkeys(line.strip() for line in lines):
        if word:
            by_length[len(word)].append(word)
    if not by_length:
        raise UserError(f"{path}: --words: it has no words; give one a line")
    return dict(by_length)


def fitting(word: str, by_length: dict[int, Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """Up to `count` words of the list that take about the space of `word`: those of the nearest length."""
    nearest = min(by_length, key=lambda length: (abs(length - len(word)), length))
    choices = [choice for choice in by_length[nearest] if choice != word]
    return rng.sample(choices, min(count, len(choices)))
