"""The words that TextSSR paints: anagrams, and how strictly a reader must agree with them."""

from __future__ import annotations

import random

import pytest

from common.errors import UserError
from projects.textssr import synthesize, word_choice


def test_anagrams() -> None:
    rng = random.Random(0)
    assert word_choice.anagrams("aaa", 5, rng) == word_choice.anagrams("Aa", 5, rng) == []
    assert word_choice.anagrams("ab", 5, rng) == ["ba"]
    assert word_choice.anagrams("aab", 9, rng, include_original=True) == ["aab", "aba", "baa"]
    made = word_choice.anagrams("NICKNAME", 20, random.Random(1))
    assert len(set(made)) == 20 and "NICKNAME" not in made and all(sorted(w) == sorted("NICKNAME") for w in made)
    assert made == word_choice.anagrams("NICKNAME", 20, random.Random(1))
    assert word_choice.anagrams("a" * 20 + "b", 30, rng)[0] == "a" * 19 + "ba"


@pytest.mark.parametrize("word", ["Nick", "Open now", "iPhone 7", "A to Z", "straße"])
def test_anagrams_keep_blanks_and_capitals_in_place(word: str) -> None:
    for count in (5, 5000):
        made = word_choice.anagrams(word, count, random.Random(0))
        assert made and len(set(made)) == len(made)
        for one in made:
            assert len(one) == len(word) and sorted(one.lower()) == sorted(word.lower()) and one != word
            assert [at for at, c in enumerate(one) if c == " "] == [at for at, c in enumerate(word) if c == " "]
            assert all(new.isupper() == old.isupper() for new, old in zip(one, word) if new.isalpha() and old.isalpha())


def test_the_match_is_one_that_the_reader_can_satisfy(capsys) -> None:
    assert synthesize.settle_match(None, None, ["Ab!"]) == "exact"
    assert synthesize.settle_match(None, "Abc!", ["Ab!"]) == "exact"
    assert synthesize.settle_match(None, "abc", ["Ab!"]) == "36"
    assert synthesize.settle_match("exact", "abc", ["Ab", "ab"]) == "exact"
    assert "1 of 2 words need them" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot give 'A'"):
        synthesize.settle_match("exact", "abc", ["Ab", "A"])
