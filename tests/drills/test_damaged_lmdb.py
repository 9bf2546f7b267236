"""Drill 5: one percent of damaged pictures, missing labels, a wrong num-samples, a truncated file."""

from __future__ import annotations

import csv
import os

import pytest

from common.data.bad import BadSamples
from common.data.loader import SeededSampler, word_loader
from common.data.words import WordDataset
from common.errors import UserError
from tests.common.lmdbs import encoded, noise, put, write_words

TOTAL = 1000


@pytest.fixture
def words(tmp_path):
    return write_words(tmp_path / "data", [f"w{i}" for i in range(TOTAL)])


def damage(path, numbers) -> None:
    """A third each: cut JPEG, no picture, no label (1-based numbers)."""
    jpeg = encoded(noise(0, 34, 100), "JPEG")
    for turn, number in enumerate(numbers):
        image, label = f"image-{number:09d}".encode(), f"label-{number:09d}".encode()
        put(path, ((image, jpeg[: len(jpeg) // 2]), (image, None), (label, None))[turn % 3])


def epoch(path, tmp_path, workers: int = 2, limit: float = 0.01):
    dataset = WordDataset([path])
    register = BadSamples(TOTAL, limit, tmp_path / "bad_samples.csv")
    loader = word_loader(dataset, SeededSampler(len(dataset), 32, seed=1), workers, bad=register)
    read = [label for batch in loader for label in batch.labels]
    return read, register, dataset


def listed(tmp_path) -> list[int]:
    with open(tmp_path / "bad_samples.csv", newline="") as file:
        return [int(row["number"]) for row in csv.DictReader(file)]


def test_one_percent_is_skipped_and_listed_exactly(words, tmp_path):
    wounded = [5, 17, 18, 100, 401, 402, 403, 777, 999, 1000]
    damage(words, wounded)
    read, register, dataset = epoch(words, tmp_path)
    assert listed(tmp_path) == wounded and len(register) == 10
    assert sorted(read) == sorted(f"w{i}" for i in range(TOTAL) if i + 1 not in wounded)
    assert dataset.counts["bad"] == 3  # the missing labels


def test_one_more_stops_with_the_list(words, tmp_path):
    wounded = [*range(50, 61)]
    damage(words, wounded)
    with pytest.raises(UserError, match=r"11 of 1000 samples cannot be read, more than 1\.0%"):
        epoch(words, tmp_path)
    assert listed(tmp_path) == wounded
    read, _, _ = epoch(words, tmp_path, workers=0, limit=0.02)
    assert len(read) == TOTAL - 11


def test_count_a_little_too_high_lists_what_is_not_there(words, tmp_path, capsys):
    put(words, (b"num-samples", b"1003"))
    read, _, _ = epoch(words, tmp_path)
    assert len(read) == TOTAL and listed(tmp_path) == [1001, 1002, 1003]
    assert "num-samples says 1003, 1000 images found" in capsys.readouterr().out


@pytest.mark.parametrize("count", [b"900", b"2000", None])
def test_count_far_off_is_refused_at_the_start(words, tmp_path, count):
    put(words, (b"num-samples", count))
    with pytest.raises(UserError, match="1000 images found"):
        epoch(words, tmp_path)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02, 0.001])
def test_truncated_file_is_refused_not_mapped(words, tmp_path, share):
    file = words / "data.mdb"
    os.truncate(file, int((file).stat().st_size * share))
    with pytest.raises(UserError, match=r"incomplete copy|not a whole LMDB"):
        epoch(words, tmp_path)
