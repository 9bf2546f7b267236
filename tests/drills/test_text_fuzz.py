"""Drill 11: hostile labels. Every one has a stated fate, the same on every run, and is counted."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.lmdb import LmdbWriter
from common.data.words import WordDataset
from common.metrics.accuracy import Scores
from common.text.charset import CHARSET_36, CHARSET_94, unsupported
from common.text.codecs import CtcCodec, EosBosPadCodec, EosPadUnkCodec, GlyphCodec, GoCodec, LabelError
from common.text.normalise import Normaliser
from tests.common.lmdbs import encoded, noise, put

LABELS = {
    "empty": "",
    "long": "x" * 10_000,
    "control": "a\x00b\x07c",
    "bidi": "\u202eabc\u202c",
    "emoji": "ok👍🏽",
    "combining": "e\u0301a\u0308",
    "tab": "a\tb",
    "newline": "a\r\nb",
    "zero width": "a\u200bb",
    "cjk": "中文",
    "turkish": "İIıi",
    "sharp s": "Straße",
    "ligature": "ﬁne",
    "special names": "[s][GO][E]",
    "glyph end": "░x",
    "regex": "]^-\\[a-z]",
}
FATES = {  # under the 36 characters, lower-cased, at most 25 raw characters; None: dropped
    **dict.fromkeys(("empty", "long", "cjk")),
    **dict.fromkeys(("control", "bidi"), "abc"),
    **dict.fromkeys(("tab", "newline", "zero width"), "ab"),
    "emoji": "ok",
    "combining": "ea",
    "turkish": "iii",
    "sharp s": "strae",
    "ligature": "ne",
    "special names": "sgoe",
    "glyph end": "x",
    "regex": "az",
}


def test_fates_in_a_data_set(tmp_path):
    path = tmp_path / "x"
    with LmdbWriter(path) as writer:
        for label in LABELS.values():
            writer.add(encoded(noise(0)), label)
        writer.add(encoded(noise(0)), "surrogate")
    put(path, (f"label-{len(LABELS) + 1:09d}".encode(), b"\xed\xa0\x80"))  # a lone surrogate is no UTF-8
    for _ in range(2):
        dataset = WordDataset([path], keep=Normaliser(CHARSET_36, lower=True))
        assert [dataset.label(i) for i in range(len(dataset))] == [
            FATES[name] for name in LABELS if FATES[name] is not None
        ]
        assert dataset.counts["too_long"] == 1 and dataset.counts["empty"] == 2 and dataset.counts["bad"] == 1
        assert dataset.index_bad[0].reason == "label is not UTF-8"


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    ranges = [
        (32, 127),
        (0, 256),
        (0x300, 0x370),
        (0x4E00, 0x9FFF),
        (0xD800, 0xE000),
        (0x1F300, 0x1F700),
        (0x200B, 0x2070),
    ]
    texts = []
    for _ in range(count):
        low, high = ranges[rng.integers(0, len(ranges))]
        texts.append("".join(map(chr, rng.integers(low, high, rng.integers(0, 30)))))
    return texts


@pytest.mark.parametrize(
    "codec", [GlyphCodec(truncate=False), GoCodec(), EosBosPadCodec(), EosPadUnkCodec(), CtcCodec()]
)
def test_codecs_take_or_refuse(codec):
    refused = 0
    for text in [*random_texts(1000), *LABELS.values()]:
        try:
            ids, lengths = codec.encode([text])
        except LabelError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert ids.min(initial=0) >= 0 and lengths[0] >= len(text)
        assert unsupported([text], codec.charset) == {} or isinstance(codec, EosPadUnkCodec)
    assert refused > 100


def test_normalising_gives_only_the_charset_and_is_stable():
    for charset in (CHARSET_36, CHARSET_94, "äöü"):
        for step in (
            Normaliser(charset, lower=True),
            Normaliser(charset, whitespace=True, ascii_fold=True, adapt=True),
        ):
            for text in random_texts(500, 1):
                once = step(text)
                assert set(once) <= set(charset) and step(once) == once


def test_decoding_takes_any_ids():
    rng = np.random.default_rng(3)
    for codec in (GlyphCodec(), EosBosPadCodec(), EosPadUnkCodec(), CtcCodec()):
        ids = rng.integers(-5, 300, (200, 26))
        for one in codec.decode(ids, rng.random((200, 26))):
            assert set(one.text) <= set(codec.charset) and 0 <= one.confidence <= 1


def test_scores_take_anything():
    scores = Scores()
    texts = random_texts(500, 2)
    scores.add("x", texts, texts[::-1])
    row = scores.rows()[0]
    assert row.samples == 500 and all(row.counted[key] + row.filtered[key] == 500 for key in ("36", "62", "94"))
