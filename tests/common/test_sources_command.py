"""`strlab sources`: words of every source by seed, mixes, runs that are measured once, shards, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from common.cli import main
from common.data.lmdb import WordLmdb
from common.metrics.intervals import paired_difference
from common.reader.data import is_validation
from common.reproduce import sources
from tests.common.lmdbs import write_words

WORDS = [f"{a}{b}{c}" for a in "abcdefgh" for b in "stuvw" for c in "xyz"]


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A command over two sources and their mix."""
    real, painted = write_words(tmp_path / "real", WORDS), write_words(tmp_path / "painted", [w.upper() for w in WORDS])
    return ["sources", f"real={real}", f"painted={painted}", "--mix", "real+painted", "--validation", str(real),
            "--words", "32", "64", "--seeds", "1", "2", "--images", "1280", "--device", "cpu", "--init", "compact",
            "--out", str(tmp_path / "out")]  # fmt: skip


def labels(folder: Path) -> list[str]:
    words = WordLmdb(folder)
    return [words.label(i) for i in range(len(words))]


def test_runs_of_all_sources_sizes_and_seeds(tmp_path: Path, line: list[str], quick: list, capsys) -> None:
    out = tmp_path / "out"
    assert main([*line, "--shard", "1/2"]) == 0
    assert len(quick) == 6 and "6 runs of other shards are not" in capsys.readouterr().out
    assert not (out / "sources.md").exists()
    assert main(line) == 0
    assert len(quick) == 12 and all("--init" in command for command in quick)
    words = {path.name: labels(path) for path in (out / "training").iterdir()}
    assert not any(is_validation(word) for chosen in words.values() for word in chosen)
    assert all(map(is_validation, labels(out / "validation" / "real")))
    assert set(words["real-32-1"]) < set(words["real-64-1"]) and set(words["real-32-1"]) != set(words["real-32-2"])
    mixed = words["real+painted-64-2"]
    assert sum(word.isupper() for word in mixed) == 32 and set(mixed[:32]) == set(words["real-32-2"])
    rows = list(csv.DictReader((out / "sources.csv").open()))
    assert len(rows) == 13 and (rows[0]["source"], rows[0]["words"]) == ("start", "0")
    page = (out / "sources.md").read_text()
    assert page.count("| real+painted |") == 2 and page.count("| real |") == 1 and "none: the start" in page
    assert "<svg" in (out / "sources.svg").read_text()
    capsys.readouterr()
    assert main(line) == 0 and len(quick) == 12
    assert capsys.readouterr().out.count("measured before") == 13
    for change in (("--lr", "0.1"), ("--init", "compact-real")):
        assert main([*line, *change]) == 2 and "another --out" in capsys.readouterr().err


def test_means_and_differences_are_those_of_the_runs(tmp_path: Path) -> None:
    def point(source: str, seed: int, right: list[int]) -> dict:
        share = 100 * sum(right) / len(right)
        return {"source": source, "words": 32, "seed": seed, "accuracy": share, "low": 0, "high": 100,
                "validation_words": len(right), "sets": {"real": share}, "right": right}  # fmt: skip

    points = [point("a", 1, [1, 0, 0, 0]), point("a", 2, [1, 1, 0, 0]), point("b", 1, [1, 1, 1, 0])]
    sources.write_files(tmp_path, points, 1280)
    page = (tmp_path / "sources.md").read_text()
    assert "| a | 37.5 (25.0 to 50.0) |" in page and "| b | 75.0 (75.0 to 75.0) |" in page
    assert "| b | +37.5 (" in page  # b reads 1.5 words of 4 more than a's seeds on average
    assert paired_difference([1, 1], [0, 0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("more, told", [
    (("--words", "10"), "--words 10: from 32 to"),
    (("--words", "400"), "--words 400: from 32 to"),
    (("--mix", "real"), "--mix real: give two different sources"),
    (("--mix", "real+real"), "--mix real+real: give two different sources"),
    (("--mix", "real+none"), "--mix real+none: none is none of real, painted"),
    (("--images", "5"), "--images 5: at least 1280"),
    (("--max-length", "2"), "no usable sample"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, line: list[str], quick: list, capsys, more, told) -> None:
    assert main([*line, *more]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists() and not quick


@pytest.mark.parametrize("source", ["folder", "=folder", "a=", "start=folder", "a+b=folder"])
def test_a_source_has_a_name_and_folders(tmp_path: Path, quick: list, capsys, source: str) -> None:
    assert main(["sources", source, "--validation", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {source}")


@pytest.mark.slow
def test_a_run_trains_the_reader(tmp_path: Path, line: list[str]) -> None:
    assert main([*line, "--words", "32", "--seeds", "1", "--mix"]) == 0
    point = json.loads((tmp_path / "out" / "runs" / "painted-32-1" / "point.json").read_text())
    assert point["validation_words"] == len(labels(tmp_path / "out" / "validation" / "real"))
    assert (tmp_path / "out" / "runs" / "painted-32-1" / "metrics.jsonl").is_file()
