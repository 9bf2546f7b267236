"""Which words to paint instead of a region's own: permutations of its letters, or words of a list that fit."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.errors import UserError

WIDER = 1.25
"""A word fits a region where it is at most so many times wider or narrower than the region's own word."""


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


def folds(character: str) -> bool:
    """Whether a character is a letter with one capital and one small form."""
    return character.lower() != character.upper() and len(character.lower()) == len(character.upper()) == 1


def anagrams(word: str, count: int, rng: random.Random, *, include_original: bool = False) -> list[str]:
    """Up to `count` distinct anagrams, sorted; the word itself only on request.

    Blanks stay where they are, and capitals too: letters are permuted without case, and the letter that comes to the
    place of a capital becomes one (Nick -> Kcin). A word of one distinct character has none. Where there are not more
    than asked for, all are given.
    """
    letters = [character.lower() if folds(character) else character for character in word if not character.isspace()]

    def shaped(order: Sequence[str]) -> str:
        rest = iter(order)
        made = [character if character.isspace() else next(rest) for character in word]
        return "".join(
            new.upper() if folds(new) and folds(old) and old == old.upper() else new for new, old in zip(made, word)
        )

    skipped = set() if include_original else {shaped(letters)}
    total = arrangements("".join(letters)) - len(skipped)
    if total <= count:
        return sorted({shaped(made) for made in permutations("".join(letters))} - skipped)
    found: set[str] = set()
    while len(found) < count:
        rng.shuffle(letters)
        made = shaped(letters)
        if made not in skipped:
            found.add(made)
    return sorted(found)


class WordList:
    """The words of a list, by the width that a font gives them.

    Args:
        path: a UTF-8 file, one word a line. Raises UserError for a file without words.
        width: the width of a text, in any unit.
    """

    def __init__(self, path: str | Path, width: Callable[[str], float]) -> None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: --words: cannot be read ({error}); give a UTF-8 file of one word a line"
            ) from None
        words = [word for word in dict.fromkeys(line.strip() for line in lines) if word]
        if not words:
            raise UserError(f"{path}: --words: it has no words; give one a line")
        self.width = width
        self.words = sorted(words, key=lambda word: (width(word), word))
        self.widths = [width(word) for word in self.words]

    def fitting(self, word: str, count: int, rng: random.Random) -> list[str]:
        """Up to `count` words, other than `word`, whose width is within WIDER of its width."""
        own = self.width(word)
        first, last = bisect_left(self.widths, own / WIDER), bisect_right(self.widths, own * WIDER)
        choices = [choice for choice in self.words[first:last] if choice != word]
        return rng.sample(choices, min(count, len(choices)))
