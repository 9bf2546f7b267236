"""Which strings are drawn: words as often as a language uses them, numbers, codes and random letters.

Training, validation and evaluation never share a string: a hash of the letters and digits (lower case, so that the
36-character protocol cannot see the same word twice) gives each string to one split.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib
from bisect import bisect
from pathlib import Path

import numpy as np

from common.data.lists import read_text
from common.data.synth.options import SynthOptions
from common.errors import UserError
from common.text.charset import UPPER

_BOUNDS = (0.82, 0.88)  # upper ends of train and validation; the rest is evaluation
SPLITS = ("train", "validation", "evaluation")
# Word statistics of the 1,156 IC03 training words: 43 % capitals, 27 % lower case, the rest mixed.
_IC03_CASE = (0.43, 0.70)
# Frequencies to this power: common words stay commoner, yet a crop in ten thousand is not always "the".
_FLATTEN = 0.25
# Corpora land in reports that people look at.
_UNFIT = re.compile(
    "fuck|shit|cunt|nigg|fagg|porn|whore|slut|bitch|penis|vagina|pussy|nazi|pedophil|semiti[sc]|suicid|hitler|incest|"
    "molest|erotic|virginity|^(raped?|rapes|rapist|cocks?|dicks?|cum|tits|sex|an[au][ls]|boobs|kampf|negro|negroes)$"
)
_WORD_MARKS = ("{}.", "{},", "{}!", "{}?", "{}:", "({})", '"{}"', "{}'s", "'{}'", "{}.com", "@{}", "#{}", "&{}", "{}&",
               "{}-", "*{}", "{};", "{}/", "[{}]", "{}...", "+{}", "<{}>", "={}", "~{}")  # fmt: skip
_NUMBER_MARKS = ("${}", "{}%", "£{}", "{}.99", "{}:30", "#{}", "+{}", "{}-{}", "{}/{}", "{}.{}", "No.{}", "({})")
_NUMBER_LETTERS = ("A{}", "M{}", "B{}", "{}mm", "{}cm", "{}km", "{}p", "{}th", "{}A", "{}B", "{}x", "{}am", "{}pm")


def split_of(text: str) -> str:
    """The split that a string belongs to, whatever its case and punctuation."""
    key = text if text.islower() and text.isalpha() else "".join(filter(str.isalnum, text.casefold())) or text
    # Bits of a CRC of similar strings are alike; multiplying by an odd constant spreads them.
    value = (zlib.crc32(key.encode()) * 2654435761 % 2**32) / 2**32
    return SPLITS[bisect(_BOUNDS, value)]


@functools.lru_cache(maxsize=4)
def vocabulary(languages: tuple[str, ...], size: int, characters: str) -> tuple[list[str], np.ndarray]:
    """The words of the languages that can be written with `characters`, lower case, with flattened frequencies.

    `size` is the number of most frequent words looked at per language. An accented letter outside `characters`
    loses its accent where that helps. Raises `UserError` for a language that the word list does not have.
    """
    import wordfreq

    known = wordfreq.available_languages()
    allowed = set(characters) | set(characters.lower())
    weights: dict[str, float] = {}
    for language in languages:
        if language not in known:
            raise UserError(f"--languages: {language!r} has no word list; there are {', '.join(sorted(known))}")
        seen = 0
        for centibels, words in enumerate(wordfreq.get_frequency_list(language)):
            for word in words[: size - seen]:
                fitted = _fit(word, allowed)
                if fitted:
                    weights[fitted] = weights.get(fitted, 0.0) + 10 ** (-centibels / 100 * _FLATTEN)
            seen += len(words)
            if seen >= size:
                break
    return list(weights), np.fromiter(weights.values(), np.float64, len(weights))


@functools.lru_cache(maxsize=4)
def own_words(file: str, characters: str) -> tuple[list[str], np.ndarray]:
    """The words of a list, one a line, with case as written; a number after a tab is the word's weight.

    Words with characters outside `characters` are not used. Raises `UserError` for a file that is no list of words.
    """
    text, _ = read_text(Path(file))
    weights: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, _, weight = line.strip().partition("\t")
        if not word or not set(characters).issuperset(word):
            continue
        try:
            weights[word] = weights.get(word, 0.0) + (float(weight) if weight else 1.0)
        except ValueError:
            raise UserError(f"--words {file}: line {number}: {weight!r} is no weight") from None
    if not weights or not min(weights.values()) > 0:
        raise UserError(f"--words {file}: no word of the charset's characters with a weight above 0 in it")
    return list(weights), np.fromiter(weights.values(), np.float64, len(weights))


def _fit(word: str, allowed: set[str]) -> str | None:
    if not word.isalpha() or _UNFIT.search(word):
        return None
    if allowed.issuperset(word):
        return word
    folded = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    return folded if folded and allowed.issuperset(folded) else None


class TextSource:
    """Draws the labels of one split. `draw(n, rng)` gives n strings within the lengths and the charset."""

    def __init__(self, options: SynthOptions, split: str):
        self.options, self.split = options, split
        self.allowed = set(options.characters)
        self.upper = bool(self.allowed & set(UPPER))
        words, weights = (
            own_words(options.words, options.characters)
            if options.words
            else vocabulary(options.languages, options.vocabulary, options.characters)
        )
        short = max(1, options.min_length - 2)  # a mark may lengthen a word that is too short by itself
        keep = [i for i, w in enumerate(words) if short <= len(w) <= options.max_length and split_of(w) == split]
        self.words = [words[i] for i in keep]
        words_wanted = options.digit_share + options.punctuation_share + options.random_share < 1
        if words_wanted and not any(options.min_length <= len(w) for w in self.words):
            if options.words:
                raise UserError(
                    f"--words {options.words}: no {split} word of {options.min_length} to {options.max_length} letters "
                    f"of the charset {options.charset}: give more words, or widen the lengths or the charset"
                )
            raise UserError(
                f"--languages {' '.join(options.languages)}: no {split} word of {options.min_length} to "
                f"{options.max_length} letters in charset {options.charset}: widen the lengths or the charset"
            )
        self.cumulative = np.cumsum(weights[keep])
        # ACDS's box labels are split at every "_", so none is drawn.
        self.random_letters = [c for c in options.characters if c != "_"]
        self.plain_letters = [c for c in self.random_letters if c.isalnum()]

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Return `count` strings; strings that do not fit are drawn again."""
        options, drawn = self.options, []
        shares = np.cumsum([options.digit_share, options.punctuation_share, options.random_share])
        while len(drawn) < count:
            u = rng.random((count - len(drawn) + 16, 3))
            for kind, case, pick in u:
                makers = (self._number, self._marked, self._random, self._plain)
                text = makers[int(np.searchsorted(shares, kind, side="right"))](rng, case, pick)
                if self._fits(text):
                    drawn.append(text)
        return drawn[:count]

    def _fits(self, text: str) -> bool:
        return (
            self.options.min_length <= len(text) <= self.options.max_length
            and self.allowed.issuperset(text)
            and split_of(text) == self.split
        )

    def _plain(self, rng: np.random.Generator, case: float, pick: float) -> str:
        word = self.words[int(np.searchsorted(self.cumulative, pick * self.cumulative[-1], side="right"))]
        return word if self.options.words else self._cased(word, case)

    def _cased(self, word: str, u: float) -> str:
        mode = self.options.case
        if mode == "ic03":
            mode = ("upper", "lower", "title")[bisect(_IC03_CASE, u)]
        if mode == "lower" or not self.upper:
            return word
        return word.upper() if mode == "upper" else word[0].upper() + word[1:]

    def _marked(self, rng: np.random.Generator, case: float, pick: float) -> str:
        if rng.random() < 0.25:
            mark = _NUMBER_MARKS[int(rng.integers(len(_NUMBER_MARKS)))]
            return mark.format(self._digits(rng, 3), self._digits(rng, 2))
        return _WORD_MARKS[int(rng.integers(len(_WORD_MARKS)))].format(self._plain(rng, case, pick))

    def _number(self, rng: np.random.Generator, case: float, pick: float) -> str:
        if case < 0.3:
            text = _NUMBER_LETTERS[int(pick * len(_NUMBER_LETTERS))].format(self._digits(rng, 3))
            return text if self.upper else text.lower()
        if case < 0.45:
            return str(int(rng.integers(1850, 2030)))
        return self._digits(rng, min(6, self.options.max_length), max(1, self.options.min_length))

    @staticmethod
    def _digits(rng: np.random.Generator, longest: int, shortest: int = 1) -> str:
        length = int(rng.integers(min(shortest, longest), longest + 1))
        return "".join(map(str, rng.integers(0, 10, length)))

    def _random(self, rng: np.random.Generator, case: float, pick: float) -> str:
        low, high = self.options.min_length, min(self.options.max_length, max(self.options.min_length, 8))
        length = low + int(pick * (high - low + 1))
        letters = self.random_letters if case < 0.4 else self.plain_letters
        return "".join(letters[i] for i in rng.integers(0, len(letters), length))


@functools.lru_cache(maxsize=8)
def text_source(options: SynthOptions, split: str) -> TextSource:
    """A cached `TextSource`: the six sets of evaluation share one."""
    return TextSource(options, split)
