"""Drills of every training script: what a run does when it is disturbed (see `scripts.py` for the table).

The whole table is slow; `make test` runs the scripts that a drill names.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from common.train import session
from common.train.checkpoint import load
from common.train.loop import Engine
from common.train.session import LOCK
from tests.common.compare import same
from tests.runs.scripts import SCRIPTS, Script, write_words


def drill(*quick: str) -> pytest.MarkDecorator:
    """A test of every script, slow but for those named."""
    slow = pytest.mark.slow
    rows = [pytest.param(row, id=name, marks=() if name in quick else slow) for name, row in SCRIPTS.items()]
    return pytest.mark.parametrize("script", rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` of 16 samples to train on, `broken` of 12 with the sixth unreadable, `val` of 4."""
    root = tmp_path_factory.mktemp("drills")
    write_words(root / "train" / "words", 16)
    write_words(root / "damaged" / "broken", 12, unreadable=(5,))
    write_words(root / "val", 4)
    return root


def states(script: Script, out: Path) -> list[Path]:
    return sorted((out / script.run).glob(script.states))


def words(script: Script, corpus: Path, out: Path, *more: str, **sizes: int) -> list[str]:
    return script.command(corpus / "train" / "words", corpus / "val", out, *more, **sizes)


@drill()
def test_other_options_are_refused_when_a_run_resumes(script: Script, corpus: Path, tmp_path: Path, capsys) -> None:
    assert script.main(words(script, corpus, tmp_path)) == 0
    again = words(script, corpus, tmp_path, *script.resume.split(), *script.change.split())
    capsys.readouterr()
    assert script.main(again) == 2
    error = capsys.readouterr().err
    flag = script.change.split()[0]
    assert "written with other options" in error and f"{flag}:" in error and error.count("\n") == 1, error
    assert script.main([*again, "--allow_changes"]) == 0


@drill()
def test_a_folder_whose_states_are_all_unreadable_is_left_alone(
    script: Script, corpus: Path, tmp_path: Path, capsys
) -> None:
    assert script.main(words(script, corpus, tmp_path)) == 0
    found = [*states(script, tmp_path), *(tmp_path / script.run).glob("checkpoint-*.pth")]
    for path in found:
        path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in found}
    capsys.readouterr()
    assert script.main(words(script, corpus, tmp_path, *script.resume.split())) == 2
    error = capsys.readouterr().err
    assert "no state of this run can be read" in error and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in found} == before


@drill()
def test_a_folder_in_use_is_refused(script: Script, corpus: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / script.run
    folder.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    (folder / LOCK).write_text(json.dumps(mine))
    assert script.main(words(script, corpus, tmp_path)) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} of another run writes there" in error and error.count("\n") == 1, error
    assert not states(script, tmp_path)


@drill()
def test_a_process_without_a_readable_sample_stays_in_step(script: Script, corpus: Path, tmp_path: Path) -> None:
    """Two processes with batches of one sample, one of which cannot be read: the run ends, and lists the sample."""
    line = script.command(corpus / "damaged" / "broken", corpus / "val", tmp_path, batch=1, steps=6)
    done = script.launch(line, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(tmp_path / script.run / "bad_samples.csv", newline="") as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["6"]
    assert load(states(script, tmp_path)[-1])["world_size"] == 2


@drill("siga", "mgpstr")
def test_a_run_asked_to_leave_saves_and_resumes_exactly(
    script: Script, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, done = Engine.step, []

    def interrupted(self: Engine) -> None:
        done.append(1)
        if len(done) == 1:  # the processes agree to leave before the next step, and leave after it
            signal.raise_signal(signal.SIGTERM)
        plain(self)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert script.main(words(script, corpus, whole)) == 0
    again = words(script, corpus, cut, *script.resume.split())
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        assert script.main(again) == 0
    assert len(done) == 2 and [load(path)["step"] for path in states(script, cut)] == [2]
    assert script.main(again) == 0
    first, second = (load(states(script, folder)[-1]) for folder in (whole, cut))
    for part in ("step", "model", "optimizer", "rng"):
        same(first[part], second[part], part)


@drill("dig fine-tuning")
def test_a_disk_without_room_is_reported_before_the_first_step(
    script: Script, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(session, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(Engine, "step", None)
    assert script.main(words(script, corpus, tmp_path)) == 2
    error = capsys.readouterr().err
    assert "no room for" in error and "1,000 are free" in error and error.count("\n") == 1, error
    assert not states(script, tmp_path)
