"""`strlab doctor` between sets: leaks, likely label errors, corrected copies, and the page of statistics."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from common.cli import main
from common.data.decode import decode_rgb
from common.data.leaks import find_leaks
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.synth import SynthOptions, render_corpus
from common.data.words import WordDataset
from tests.common import toy
from tests.common.lmdbs import encoded, noise, write_words

PLANTED = 60  # changed copies among 900 words; the slow test plants 200 among 20,000


def changed(pixels: np.ndarray, kind: int, rng: np.random.Generator) -> bytes:
    """A copy that was cut a little (0), resized (1), or both (2), and stored again."""
    height, width = pixels.shape[:2]
    if kind != 1:
        top, bottom, left, right = rng.uniform(0, 0.06, 4)
        pixels = pixels[
            int(top * height) : height - int(bottom * height), int(left * width) : width - int(right * width)
        ]
    if kind != 0:
        scale = rng.uniform(0.5, 1.6)
        size = (max(8, int(pixels.shape[1] * scale)), max(8, int(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), int(rng.integers(40, 95)), "RGB", "420")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return plant(tmp_path_factory.mktemp("leaks"), 900, PLANTED)


def plant(root: Path, words: int, leaks: int, workers: int = 0) -> Path:
    """Rendered words, and a set with changed copies of some of them under labels of another case."""
    options = SynthOptions(train=words, validation=0, evaluation=0, seed=5)
    render_corpus(root / "corpus", options, workers=workers, progress=False)
    words, rng = WordLmdb(root / "corpus/training/MJ"), np.random.default_rng(1)
    with LmdbWriter(root / "planted") as writer:
        for place, index in enumerate(rng.permutation(len(words))[:leaks].tolist()):
            copy = changed(decode_rgb(words.image_bytes(index)), place % 3, rng)
            writer.add(copy, words.label(index).swapcase(), meta=b"%d" % (index + 1))
    return root


def found_leaks(corpus: Path, workers: int) -> tuple[int, int]:
    """(leaks that were planted, others) that are found in all words of a corpus."""
    folders = [corpus / "corpus/training/MJ", corpus / "corpus/training/ST"]
    found = find_leaks(folders, [corpus / "planted"], workers=workers)
    truth = {int(value) for _, value in WordLmdb(corpus / "planted").items("meta")}
    right = [leak for leak in found if leak.path == str(folders[0]) and leak.number in truth]
    return len(right), len(found) - len(right)


def test_planted_leaks_are_found_and_no_others(corpus: Path) -> None:
    right, wrong = found_leaks(corpus, workers=1)
    assert right >= 0.95 * PLANTED and wrong <= 0.01 * PLANTED


@pytest.mark.slow
def test_200_leaks_among_20000_words(tmp_path: Path) -> None:
    right, wrong = found_leaks(plant(tmp_path, 20_000, 200, workers=2), workers=2)
    print(f"{right} of 200 planted leaks, {wrong} other pairs")
    assert right >= 0.95 * 200 and wrong <= 0.01 * (right + wrong)


@pytest.mark.slow
def test_100_wrong_labels_among_the_first_200_suggestions(tmp_path: Path, capsys) -> None:
    """The shipped reader judges 2,000 rendered words, of which 100 have the label of another one."""
    options = SynthOptions(difficulty="easy", train=2000, validation=0, evaluation=0, seed=8)
    render_corpus(tmp_path / "corpus", options, workers=0, progress=False)
    wrong = set(np.random.default_rng(2).permutation(2000)[:100].tolist())
    with LmdbWriter(tmp_path / "words") as writer:
        for folder in ("MJ", "ST"):
            words = WordLmdb(tmp_path / "corpus" / "training" / folder)
            for index in range(len(words)):
                other = (index + 7) % len(words) if writer.count in wrong else index
                writer.add(words.image_bytes(index), words.label(other))
    suspects = tmp_path / "suspects.csv"
    command = ["doctor", str(tmp_path / "words"), "--with", "--device", "cpu", "--suspects", str(suspects)]
    assert main([*command, "--no-decode"]) == 0
    first = [int(row["number"]) - 1 for row in csv.DictReader(suspects.open())][:200]
    right = len(wrong & set(first))
    print(f"{right} of 100 wrong labels among the first {len(first)} suggestions")
    assert right >= 70


def test_leaks_are_listed_and_excluded(corpus: Path, tmp_path: Path, capsys) -> None:
    data, listed = corpus / "corpus/training/MJ", tmp_path / "leaks.csv"
    command = ["doctor", str(data), "--workers", "1"]
    assert main([*command, "--against", str(corpus / "planted"), "--leaks", str(listed)]) == 0
    rows = list(csv.DictReader(listed.open()))
    assert len(rows) >= 0.95 * PLANTED and f"{len(rows)} words are also in" in capsys.readouterr().out
    assert main([*command, "--exclude", str(listed), "--repair", str(tmp_path / "clean")]) == 0
    assert len(WordLmdb(tmp_path / "clean")) == len(WordLmdb(data)) - len(rows)
    assert "listed in leaks.csv" in (tmp_path / "clean" / "removed.csv").read_text()
    assert main(["doctor", str(data), "--exclude", str(listed)]) == 2
    dataset = WordDataset([data], exclude=listed)
    left_out = {int(row["number"]) - 1 for row in rows}
    assert dataset.counts["excluded"] == len(rows) and len(dataset) == len(WordLmdb(data)) - len(rows)
    assert not left_out & {dataset.location(index)[1] for index in range(len(dataset))}
    assert dataset.label(len(dataset) - 1) == WordLmdb(data).label(dataset.location(len(dataset) - 1)[1])


def test_likely_label_errors(tmp_path: Path, monkeypatch, capsys) -> None:
    """The toy reads how bright a picture is; three labels of thirty are wrong."""
    toy.install(monkeypatch)
    letters = ["abc"[number % 3] for number in range(30)]
    wrong = {4: "c", 11: "a", 27: "b"}
    with LmdbWriter(tmp_path / "data" / "set") as writer:
        for number, letter in enumerate(letters):
            writer.add(toy.crop(letter), wrong.get(number, letter), mask=b"%d" % number)
    suspects = tmp_path / "suspects.csv"
    command = ["doctor", str(tmp_path / "data"), "--with", str(toy.save_toy(tmp_path / "toy.pth"))]
    assert main([*command, "--model", "toy/brightness", "--device", "cpu", "--suspects", str(suspects)]) == 0
    rows = list(csv.DictReader(suspects.open()))
    assert {int(row["number"]) - 1 for row in rows} == set(wrong)
    assert cv2.imread(str(tmp_path / "suspects.png")).shape[1] == 1250
    for row in rows:
        row["new_label"] = "-" if row["number"] == "12" else letters[int(row["number"]) - 1]
    with suspects.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    copy = ["doctor", str(tmp_path / "data"), "--apply", str(suspects), "--repair", str(tmp_path / "new")]
    assert main(copy) == 0 and "2 labels are corrected" in capsys.readouterr().out
    words = WordLmdb(tmp_path / "new" / "set")
    expected = [letter for number, letter in enumerate(letters) if number != 11]
    assert [words.label(index) for index in range(len(words))] == expected
    assert words.value("mask", 11) == b"12"


def test_statistics_page(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "data" / "one", ["a", "bcd", "efg<h>"])
    write_words(tmp_path / "data" / "two", ["é"] * 4)
    assert main(["doctor", str(tmp_path / "data"), "--page", str(tmp_path / "stats.html")]) == 0
    page = (tmp_path / "stats.html").read_text("utf-8")
    assert page.count("<svg") == 4 and "Sharpness" in page and "é" in page and "<h>" not in page
    assert (tmp_path / "stats.md").is_file()


def test_lists_of_other_forms_are_refused(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "set", ["a"])
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    for flag in ("--exclude", "--apply"):
        assert main(["doctor", f"{tmp_path}/set", flag, f"{tmp_path}/list.csv", "--repair", f"{tmp_path}/new"]) == 2
        assert "list.csv: no list of path" in capsys.readouterr().err


def test_a_set_against_itself_finds_repeated_words_only(tmp_path: Path) -> None:
    with LmdbWriter(tmp_path / "set") as writer:
        for seed, label in ((1, "a"), (2, "a"), (1, "A"), (3, "b")):
            writer.add(encoded(noise(seed)), label)
    found = find_leaks([tmp_path / "set"], [tmp_path / "set"], workers=1)
    assert [(leak.number, leak.against_number) for leak in found] == [(1, 3), (3, 1)]
