"""Charsets, normalisation, codecs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import UserError
from common.text import charset as sets
from common.text.codecs import CtcCodec, EosBosPadCodec, EosPadUnkCodec, GlyphCodec, GoCodec, LabelError
from common.text.normalise import Normaliser, adapt_to_charset, fold_ascii, keep_only, kept_by_regex_class

CODECS = [GlyphCodec(), GoCodec(), EosBosPadCodec(), EosPadUnkCodec(), CtcCodec(), CtcCodec(sets.CHARSET_94, 0, 97)]


def words(charset: str, count: int, longest: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(charset), rng.integers(0, longest + 1))) for _ in range(count)]


def ids_to_decode(codec, ids: np.ndarray) -> np.ndarray:
    """What a perfect model would predict: encoded targets without the start column."""
    return ids[:, 1:] if hasattr(codec, "start") and not isinstance(codec, EosPadUnkCodec) else ids


def test_charsets_are_distinct_and_sized():
    sizes = {name: len(characters) for name, characters in sets.NAMED.items()}
    assert sizes == {
        "36": 36,
        "62": 62,
        "94": 94,
        "siga36": 36,
        "LOWERCASE": 68,
        "ALLCASES": 62,
        "ALLCASES_SYMBOLS": 94,
    }
    assert set(sets.SIGA_36) == set(sets.CHARSET_36) and sets.SIGA_36.endswith("90")
    for characters in sets.NAMED.values():
        sets.check_distinct(characters)


def test_named_charset_refuses_doubles_and_nothing():
    assert sets.named_charset("åäö") == "åäö"
    for wrong in ("abca", ""):
        with pytest.raises(UserError, match="charset"):
            sets.named_charset(wrong)


def test_unsupported_counts():
    assert sets.unsupported(["café", "né!", "ok"], sets.CHARSET_36) == {"é": 2, "!": 1}


def test_normalisers():
    assert keep_only("It's É", sets.CHARSET_36, lower=True) == "its"
    assert fold_ascii("Ångström ½ 中") == "Angstrom 12 "
    assert adapt_to_charset("abcF9", "0123456789ABCDEF") == "ABCF9"
    assert set(sets.CHARSET_94) - set(kept_by_regex_class(sets.CHARSET_94)) == {"\\"}
    assert kept_by_regex_class("z-a") == "z-a"  # no valid class: kept whole
    step = Normaliser(sets.CHARSET_36, whitespace=True, ascii_fold=True, adapt=True)
    assert step("  Caf\u00e9 No 1 ") == "cafeno1"
    assert Normaliser(lower=True)("Éa ") == "éa "


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{type(codec).__name__}{len(codec.charset)}")
def test_round_trip(codec):
    labels = words(codec.charset, 200, 20)
    if isinstance(codec, CtcCodec):  # repeats need a blank between, which encode does not put
        labels = ["".join(c for c, before in zip(label, " " + label) if c != before) for label in labels]
    ids, lengths = codec.encode(labels)
    assert ids.dtype == np.int64 and lengths.dtype == np.int64 and len(ids) == len(labels)
    probabilities = np.full(ids.shape, 0.9)
    decoded = codec.decode(ids_to_decode(codec, ids), ids_to_decode(codec, probabilities))
    assert [one.text for one in decoded] == labels
    assert all(len(one.char_confidences) == len(one.text) for one in decoded)
    assert all(math.isnan(one.confidence) for one in codec.decode(ids_to_decode(codec, ids)))


@pytest.mark.parametrize(
    "codec", [GlyphCodec(truncate=False), GoCodec(), EosPadUnkCodec()], ids=lambda c: type(c).__name__
)
def test_too_long_is_refused_with_the_label(codec):
    with pytest.raises(LabelError, match=r"a{40}"):
        codec.encode(["ok", "a" * 40])


def test_foreign_character_names_label_and_character():
    for codec in (GlyphCodec(), GoCodec(), EosBosPadCodec(sets.CHARSET_36), CtcCodec()):
        with pytest.raises(LabelError, match=r"caf\u00e9.*\u00e9"):
            codec.encode(["ok", "", "café"])
    assert EosPadUnkCodec().encode(["é"])[0][0, 0] == 96


def test_empty_batch_and_beyond_the_plane():
    assert GoCodec().encode([])[0].shape == (0, 27)
    assert EosBosPadCodec().encode([])[0].shape == (0, 2)
    codec = EosBosPadCodec("a😀\ud800")
    assert codec.decode(codec.encode(["😀a\ud800"])[0][:, 1:])[0].text == "😀a\ud800"


def test_missing_end_as_published():
    full = np.full((1, 26), 5)
    chance = np.linspace(0.5, 0.99, 26)[None]
    glyph = GlyphCodec().decode(full, chance)[0]
    assert glyph.text == "e" * 25 and glyph.confidence == 0.0
    plain = GoCodec().decode(full, chance)[0]
    assert plain.text == "3" * 25 and plain.confidence == pytest.approx(np.prod(chance[0, :25]))
    assert GoCodec(through_end=True).decode(full, chance)[0].confidence == 0.0
    for codec in (EosBosPadCodec(), EosPadUnkCodec()):
        whole = codec.decode(full, chance)[0]
        assert len(whole.text) == 26 and whole.confidence == pytest.approx(np.prod(chance))


def test_confidence_rules_at_the_end():
    ids, chance = np.array([[2, 3, 1, 0, 0]]), np.array([[0.9, 0.8, 0.5, 0.1, 0.1]])
    assert GoCodec().decode(ids, chance)[0].confidence == pytest.approx(0.72)
    assert GoCodec(through_end=True).decode(ids, chance)[0].confidence == pytest.approx(0.36)
    assert EosBosPadCodec().decode(np.array([[2, 3, 0, 0, 0]]), chance)[0].confidence == pytest.approx(0.36)
    assert GoCodec().decode(np.array([[1, 2, 3, 0, 0]]), chance)[0] == ("", 0.0, ())


def test_go_before_the_end_counts_as_text():
    ids, chance = np.array([[2, 0, 3, 1, 0, 0, 0, 0]]), np.full((1, 8), 0.5)
    one = GoCodec().decode(ids, chance)[0]
    assert one.text == "0[GO]1" and one.confidence == pytest.approx(0.5**6)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shape"):
        GoCodec().decode(np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="shape"):
        GoCodec().decode(np.zeros((1, 4), dtype=np.int64), np.zeros((1, 5)))
