"""Options of `strlab data synth`: own fonts, pictures and words, vertical words, several lines, every installed
family.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.cli import main
from common.data.lmdb import WordLmdb
from common.data.synth import SynthOptions, render_word
from common.data.synth.backgrounds import photos
from common.data.synth.fonts import find_faces
from common.data.synth.lexicon import text_source
from common.data.synth.options import BUNDLED
from common.errors import UserError
from tests.common.lmdbs import encoded, noise


def centres(word) -> np.ndarray:
    boxes = np.array(word.boxes, dtype=float)
    return np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)


def test_vertical_words_run_downwards() -> None:
    options = SynthOptions(difficulty="plain", vertical_share=1.0)
    for seed in range(3):
        word = render_word("Signal", options, seed=seed)
        height, width = word.image.shape[:2]
        steps = np.diff(centres(word), axis=0)
        assert height > width and height <= 192 and (steps[:, 1] > 0).all()
        assert len(word.boxes) == 6 and word.mask.shape == (height, width)


def test_words_on_two_lines() -> None:
    word = render_word("Bakery", SynthOptions(difficulty="plain", lines_share=1.0), seed=1)
    places = centres(word)
    assert places[:3, 1].max() < places[3:, 1].min() and word.text == "Bakery"
    assert (np.diff(places[:3, 0]) > 0).all() and (np.diff(places[3:, 0]) > 0).all()
    for (x1, y1, x2, y2), _ in zip(word.boxes, word.text):
        assert word.mask[y1:y2, x1:x2].any()


def test_own_words_are_drawn_as_written(tmp_path: Path) -> None:
    lines = [f"Brand{number}x" for number in range(300)] + ["BRAND7x\t50", "größe", ""]
    (tmp_path / "words.txt").write_text("\n".join(lines), "utf-8")
    options = SynthOptions(words=str(tmp_path / "words.txt"), digit_share=0, punctuation_share=0, random_share=0)
    drawn = text_source(options, "train").draw(200, np.random.default_rng(0))
    assert set(drawn) <= set(lines) - {"größe"} | {"BRAND7x"}
    (tmp_path / "other.txt").write_text("a\tmany\n")
    with pytest.raises(UserError, match="line 1: 'many' is no weight"):
        text_source(SynthOptions(words=str(tmp_path / "other.txt")), "train")


def test_own_pictures_and_fonts(tmp_path: Path) -> None:
    (tmp_path / "grounds").mkdir()
    for number in range(6):
        (tmp_path / "grounds" / f"{number}.png").write_bytes(encoded(noise(number, 80, 90)))
    (tmp_path / "grounds" / "bad.png").write_bytes(b"no")
    (tmp_path / "grounds" / "small.png").write_bytes(encoded(noise(9, 8, 8)))
    grounds = str(tmp_path / "grounds")
    assert len(photos(False, grounds)) == 4 and len(photos(True, grounds)) == 2
    bundled = find_faces((BUNDLED,), "abc")
    (tmp_path / "fonts").mkdir()
    face = bundled[0]
    (tmp_path / "fonts" / "Mine-Regular.ttf").write_bytes(Path(face.path).read_bytes())
    faces = find_faces(SynthOptions(fonts_dir=(str(tmp_path / "fonts"),)).font_sources, "abc")
    assert {one.family for one in faces} == {one.family for one in bundled} | {"mine"}
    with pytest.raises(UserError, match="--grounds-dir"):
        SynthOptions(grounds_dir=str(tmp_path / "nowhere")).check()


def test_every_installed_family() -> None:
    faces = find_faces(("all",), "abc")
    families = {face.family for face in faces}
    assert {face.family for face in find_faces((), "abc")} <= families
    assert any(face.held_out for face in faces) and any(not face.held_out for face in faces)


def test_later_options_leave_older_corpora_alone(tmp_path: Path, capsys) -> None:
    assert not {"words", "vertical_share", "grounds_dir", "fonts_dir", "lines_share"} & set(SynthOptions().as_dict())
    command = ["data", "synth", str(tmp_path / "c"), "--train", "6", "--validation", "0", "--evaluation", "0"]
    command += ["--workers", "0", "--vertical-share", "0.5"]
    assert main(command) == 0 and "on each of 1 cores" in capsys.readouterr().out
    card = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert card["options"]["vertical_share"] == 0.5 and len(WordLmdb(tmp_path / "c/training/MJ")) == 3
    assert main([*command[:-1], "0.4"]) == 2 and "vertical_share 0.5 -> 0.4" in capsys.readouterr().err


def test_several_difficulties_take_turns() -> None:
    from common.data.synth.corpus import render_range
    from common.data.synth.options import Part

    both = SynthOptions(difficulty="easy+hard", fonts=("roboto", "arvo"))
    faces, part = find_faces(both.fonts, both.characters), Part("training/MJ", 4, "train", "MJ")
    texts = ["cat", "dog", "fig", "hen"]
    mixed = render_range(part, both, faces, 0, texts)
    for remainder, level in enumerate(("easy", "hard")):
        alone = render_range(part, SynthOptions(difficulty=level, fonts=both.fonts), faces, 0, texts)
        for number in range(4):
            same = np.array_equal(mixed[number].image, alone[number].image)
            assert same == (number % 2 == remainder), (level, number)
    with pytest.raises(UserError, match="nor several"):
        SynthOptions(difficulty="easy+odd").check()


def test_without_any_font_package_nothing_is_written(tmp_path, monkeypatch, capsys) -> None:
    from common.data.synth import fonts
    from common.reader import data

    monkeypatch.setattr(fonts, "_package_fonts", lambda name: [])
    monkeypatch.setattr(data.pkgutil, "iter_modules", lambda: iter(()))
    find_faces.cache_clear()
    for words in (["data", "synth", "--train", "4", "--evaluation", "0"], ["train", "--device", "cpu", "--out"]):
        assert main([*words, str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "no fontpkg-* package is installed" in error and len(error.splitlines()) == 1
        assert not list(tmp_path.rglob("*.mdb")) and not list(tmp_path.rglob("*.pth"))
