"""One rendered word: truth that fits the picture, the same picture every time."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.data.decode import decode_rgb
from common.data.synth import SynthOptions, render_word
from common.data.synth.fonts import coverage_report, find_faces
from common.data.synth.geometry import Warp
from common.data.synth.lexicon import SPLITS, TextSource, split_of
from common.errors import UserError
from common.text.charset import CHARSET_94

FEW = ("roboto", "arvo", "lobster", "poppins", "bitter")  # the last two are kept for evaluation
STYLES = ("MJ", "ST", "CUTE80", "SVTP", "IC15_1811")


@pytest.mark.parametrize("difficulty", ["plain", "easy", "medium", "hard"])
@pytest.mark.parametrize("style", STYLES)
def test_mask_and_boxes_fit_the_picture(difficulty, style):
    for seed, text in enumerate(("Quay", "HELLO", "minimum", "a", "B2b", "Wavy!")):
        word = render_word(text, SynthOptions(difficulty=difficulty, fonts=FEW), seed, style)
        height, width = word.image.shape[:2]
        assert (
            word.image.dtype == np.uint8 and word.mask.shape == (height, width) and set(np.unique(word.mask)) == {0, 1}
        )
        assert len(word.boxes) == len(text) and 8 <= height <= 128 and 8 <= width <= 512
        covered = np.zeros_like(word.mask)
        for x1, y1, x2, y2 in word.boxes:
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert word.mask[y1:y2, x1:x2].any()
            covered[y1:y2, x1:x2] = 1
        assert (word.mask & covered).sum() >= 0.98 * word.mask.sum()
        centres = [x1 + x2 for x1, _, x2, _ in word.boxes]
        assert centres == sorted(centres)


def test_easy_letters_stand_out():
    """In easy crops the letters' luma differs from the background's."""
    apart = []
    for seed in range(40):
        word = render_word("Signal", SynthOptions(difficulty="easy", fonts=FEW), seed)
        grey = word.image @ np.array([0.299, 0.587, 0.114])
        apart.append(abs(grey[word.mask == 1].mean() - grey[word.mask == 0].mean()))
    assert np.median(apart) > 60 and min(apart) > 25


def test_same_seed_same_word_other_seed_other_word():
    options = SynthOptions(fonts=FEW)
    first, again, other = (render_word("Same", options, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and first.boxes == again.boxes and first.jpeg() == again.jpeg()
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_stored_forms():
    word = render_word("Form", SynthOptions(fonts=FEW), 1)
    mask = Image.open(io.BytesIO(word.mask_png()))
    assert mask.mode == "L" and np.array_equal(np.asarray(mask), word.mask)
    assert np.asarray(mask.convert("I")).max() == 1  # as SIGA opens it
    boxes = json.loads(word.boxes_json())
    assert [box[4] for box in boxes] == list("Form") and [tuple(box[:4]) for box in boxes] == word.boxes
    assert decode_rgb(word.jpeg()).shape == word.image.shape


@pytest.mark.parametrize("arc, wave", [(0.0, (0.0, 0.0)), (1.2, (0.0, 0.0)), (-0.8, (0.0, 0.0)), (0.0, (4.0, 1.0))])
def test_warp_draws_where_it_says(arc, wave):
    """A dot drawn by the inverse map lies where the forward map puts it."""
    matrix = np.array([[1.1, 0.1, 30.0], [-0.08, 0.9, 40.0], [1e-3, 5e-4, 1.0]])
    warp = Warp(matrix, arc, wave, (120, 30))
    for x, y in ((12, 6), (60, 15), (104, 24)):
        line = np.zeros((30, 120), np.uint8)
        line[y - 1 : y + 2, x - 1 : x + 2] = 255
        drawn = warp.apply(line, 200, 120)
        rows, columns = np.nonzero(drawn > 100)
        assert np.abs(np.array([columns.mean(), rows.mean()]) - warp.forward(np.array([[x, y]]))[0]).max() < 0.7


def test_characters_outside_the_fonts_are_refused():
    with pytest.raises(UserError, match="no training font can draw"):
        render_word("漢字", SynthOptions(fonts=FEW))
    with pytest.raises(UserError, match="at least two families"):
        render_word("word", SynthOptions(fonts=("roboto",)))
    with pytest.raises(UserError, match="neither all, an installed family"):
        render_word("word", SynthOptions(fonts=("roboto", "no such font")))


def test_fonts_of_evaluation_are_not_those_of_training(tmp_path):
    faces = find_faces((), CHARSET_94)
    training, evaluation = ({face.family for face in faces if face.held_out is held} for held in (False, True))
    assert not training & evaluation and len(training) > 30 and len(evaluation) > 8
    assert {"bebas_neue", "luckiest_guy"} <= {face.family for face in faces if face.capitals_only}
    assert any("^" in line for line in coverage_report(faces)) or not coverage_report(faces)
    broken = tmp_path / "Broken-Regular.ttf"
    broken.write_bytes(b"not a font")
    with pytest.raises(UserError, match="cannot be opened as a font"):
        find_faces(("roboto", str(broken)), "abc")


def test_numbers_of_ten_digits_need_no_word():
    options = SynthOptions(charset="10", min_length=2, max_length=2, digit_share=0, punctuation_share=0, random_share=1)
    drawn = {split: set(TextSource(options, split).draw(200, np.random.default_rng(0))) for split in SPLITS}
    assert all(len(text) == 2 and text.isdecimal() for texts in drawn.values() for text in texts)
    assert not drawn["train"] & drawn["evaluation"]
    with pytest.raises(UserError, match="no train word"):
        TextSource(replace(options, random_share=0.5), "train")


@pytest.mark.parametrize("charset", ["36", "62", "94"])
def test_texts_keep_to_lengths_charset_and_split(charset):
    options = SynthOptions(charset=charset, min_length=2, max_length=6, vocabulary=8000)
    drawn = {}
    for split in ("train", "validation", "evaluation"):
        texts = TextSource(options, split).draw(600, np.random.default_rng(3))
        assert len(texts) == 600 and all(2 <= len(text) <= 6 and split_of(text) == split for text in texts)
        assert set("".join(texts)) <= set(options.characters) - {"_"}
        drawn[split] = {"".join(filter(str.isalnum, text)).lower() for text in texts} - {""}
    assert not drawn["train"] & drawn["evaluation"] and not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["evaluation"]


def test_case_and_digits_are_mixed_like_ic03():
    texts = TextSource(SynthOptions(vocabulary=20000), "train").draw(4000, np.random.default_rng(0))
    words = [text for text in texts if text.isalpha() and len(text) > 2]
    assert abs(np.mean([word.isupper() for word in words]) - 0.43) < 0.04
    assert abs(np.mean([word.islower() for word in words]) - 0.27) < 0.04
    assert 0.04 < np.mean([any(c.isdigit() for c in text) for text in texts]) < 0.14


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"difficulty": "odd"}, "difficulty"),
        ({"min_length": 5, "max_length": 4}, "min-length"),
        ({"max_length": 40}, "max-length"),
        ({"train": -1}, "train"),
        ({"train": 0, "validation": 0, "evaluation": 0}, "train"),
        ({"charset": "37"}, "charset"),
        ({"charset": "36", "case": "upper"}, "case"),
        ({"digit_share": 0.9, "punctuation_share": 0.3}, "digit-share"),
    ],
)
def test_bad_options_name_the_flag(changes, field):
    with pytest.raises(UserError, match=field):
        SynthOptions(**changes).check()


def test_unknown_language_is_refused():
    with pytest.raises(UserError, match="no word list"):
        TextSource(SynthOptions(languages=("xx",)), "train")


def test_other_languages_lose_accents_or_keep_them():
    plain = TextSource(SynthOptions(languages=("fr",), vocabulary=3000), "train").words
    accented = TextSource(SynthOptions(languages=("fr",), vocabulary=3000, charset="94+éèàâêçù"), "train").words
    assert all(word.isascii() for word in plain) and any("é" in word for word in accented)
