"""`strlab curve`: nested subsets, points that are measured once, refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.cli import main
from common.data.lmdb import WordLmdb
from common.errors import UserError
from common.reader.data import is_validation
from common.reproduce import curve
from common.reproduce import recipe as recipes
from tests.common.lmdbs import write_words

WORDS = [f"{a}{b}{c}" for a in "abcdefgh" for b in "stuvw" for c in "xyz"]


def labels(folder: Path) -> list[str]:
    words = WordLmdb(folder)
    return [words.label(i) for i in range(len(words))]


def test_points_of_nested_subsets_are_measured_once(tmp_path: Path, quick: list, capsys) -> None:
    data, out = write_words(tmp_path / "set", WORDS), tmp_path / "out"
    line = [
        "curve",
        "--data",
        str(data),
        "--words",
        "40",
        "all",
        "--images",
        "1280",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(line) == 0
    assert len(quick) == 4 and all("{" not in word for command in quick for word in command)
    small, all_words = labels(out / "training" / "40"), labels(next((out / "training").glob("1*")))
    assert set(small) < set(all_words) and not any(map(is_validation, all_words))
    assert all(map(is_validation, labels(out / "validation" / "set")))
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [row["start"] for row in rows] == ["scratch"] * 2 + ["rendered"] * 3
    assert rows[2]["labelled words"] == "0"  # the shipped weights before they see a real word
    assert "<svg" in (out / "curve.svg").read_text() and "1,280 images" in (out / "curve.md").read_text()
    capsys.readouterr()
    assert main(line) == 0
    assert len(quick) == 4 and capsys.readouterr().out.count("measured before") == 5
    assert main([*line, "--seed", "2"]) == 2 and "another --out" in capsys.readouterr().err


@pytest.mark.parametrize("more, told", [
    (("--words", "10"), "--words 10: from 32 to"),
    (("--words", "many"), "--words many: give numbers, or all"),
    (("--start", "siga"), "--start siga: not one of scratch, rendered, dig, ssm"),
    (("--start", "dig=absent.pth"), "absent.pth does not exist"),
    (("--start", "scratch=pyproject.toml"), "begins from random weights"),
    (("--images", "5"), "--images 5: at least 1280"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, quick: list, capsys, more, told) -> None:
    data = write_words(tmp_path / "set", WORDS)
    assert main(["curve", "--data", str(data), "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists() and not quick


def test_a_pretrained_start_adds_its_flags(tmp_path: Path) -> None:
    file = tmp_path / "encoder.pth"
    file.write_bytes(b"")
    for name in ("dig", "ssm"):
        plain, start = curve.find_start(name, "no"), curve.find_start(f"{name}={file}", "no")
        assert start.command.startswith(plain.command) and "{pretrained}" in start.command
        assert plain.name == f"{name}, scratch" and "{pretrained}" not in plain.command


def test_the_commands_of_dig_and_ssm_are_accepted(tmp_path: Path) -> None:
    from projects.dig.flags_finetune import parse

    values = recipes.Values(
        root="r", words="100", data="d", validation="v", out="o", batch="32", images="3200", epochs="34", samples="100",
        steps="3", seed="1", pretrained="p", device="cpu", python="py", strlab="s",
    )  # fmt: skip
    command = recipes.command_line(curve.find_start("dig", "no").command, values)
    command[command.index("d")] = str(write_words(tmp_path / "d", ["cat"]))
    options, _ = parse(command[2:])
    assert (options.epochs, options.batch_size, Path(options.data_path[0]).name) == (34, 32, "d")
    command = recipes.command_line(curve.find_start("ssm", "no").command, values)
    assert "data.train_dir=100" in command and "data.root_dir=r" in command


def test_a_start_of_dig_runs_from_any_folder_and_reads_its_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    """`projects/dig/…` lies in the repository, not in the working folder; DiG writes `checkpoint-EPOCH.pth`."""
    monkeypatch.setattr(curve.runner, "ROOT", tmp_path)
    commands, read = [], []

    def reading(checkpoint: Path, **_) -> None:
        read.append(checkpoint.name)
        raise UserError("read in another test")

    monkeypatch.setattr(curve, "run_command", lambda command, cwd, log: commands.append(command))
    monkeypatch.setattr(curve, "open_recognizer", reading)
    data = write_words(tmp_path / "set", WORDS)
    words = ["curve", "--data", str(data), "--start", "dig", "--words", "40", "--images", "1280", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert commands[0][commands[0].index("--num_samples") + 1] == "40"
    assert Path(next(word for word in commands[0] if word.endswith(".py"))).is_file()
    assert read == [f"checkpoint-{int(commands[0][commands[0].index('--epochs') + 1]) - 1}.pth"]
