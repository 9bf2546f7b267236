"""Inputs that cannot be meant, over many commands: one line, status 2, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cli import main
from tests.common.lmdbs import encoded, noise, write_words

WEIGHTS = Path(__file__).resolve().parents[2] / "common" / "weights" / "compact.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    write_words(root / "set", ["ab", "cd"])
    (root / "a.png").write_bytes(encoded(noise(1)))
    (root / "empty").mkdir()
    (root / "list.txt").write_text("../a.png\tb\n")
    return root


COMMANDS = [
    ("read --checkpoint W", "the following arguments are required: IMAGE"),
    ("read --checkpoint W P/no.png", "no image is there"),
    ("read --checkpoint W --batch-size 0 P/a.png", "--batch-size: 0 must be at least 1"),
    ("read --checkpoint W --device gpu P/a.png", "--device: 'gpu' is no device"),
    ("read --checkpoint W --option charset=3 P/a.png", "does not open as strlab/compact"),
    ("raed P/a.png", "invalid choice: 'raed'"),
    ("eval --checkpoint W --data P/set --max-samples -5", "--max-samples: -5 must be at least 0"),
    ("eval --checkpoint W --data P/set --out P/a.png", "--out: P/a.png cannot be written"),
    ("eval --checkpoint W --data P/empty", "no LMDB"),
    ("eval --checkpoint W --data P/set --shard 5/2", "--shard: '5/2' is not I/N"),
    ("export --checkpoint W --out P/empty", "--out: P/empty is a folder"),
    ("serve --checkpoint W --port 99999", "--port: 99999"),
    ("report P/empty", "no finished reproduction"),
    ("reproduce siga --scale huge", "has no scale 'huge'"),
    ("data convert gt P/set P/empty P/out", "Is a directory"),
    ("data convert gt P/set /dev/zero P/out", "not a regular file"),
    ("data convert gt P/set P/list.txt P/out", "leads out of the folder"),
    ("data scenes P/scenes --train -1", "give 0 or more scenes"),
]


def one_line(capsys: pytest.CaptureFixture, told: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error, error


@pytest.mark.parametrize(("words", "told"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_commands(words: str, told: str, place: Path, capsys) -> None:
    line = [str(WEIGHTS) if word == "W" else word.replace("P/", f"{place}/") for word in words.split()]
    try:
        status = main(line)
    except SystemExit as left:
        status = left.code
    assert status == 2
    one_line(capsys, told.replace("P/", f"{place}/"))
    assert not (place / "out").exists() and not (place / "scenes").exists()
