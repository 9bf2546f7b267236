"""Drills of every training script: what a run does when it is disturbed (see `scripts.py` for the table).

The whole table is slow; `make test` runs the scripts that a drill names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.data.bad import FILE_NAME, BadSample, BadSamples, stored
from common.files import TEMPORARY
from common.train import session
from common.train.checkpoint import load
from common.train.loop import Engine
from common.train.session import LOCK
from tests.common import processes
from tests.common.compare import same
from tests.runs import disturbed
from tests.runs.scripts import SCRIPTS, Script, write_words

STEPS = 8  # of the runs that are compared: two epochs of four
EARLIER = BadSample("words", 5, "broken")  # a line that a list of bad samples has already
CLOCK = {"data_wait", "images_per_second", "seconds"}  # what rows of metrics.jsonl measure


def drill(*quick: str) -> pytest.MarkDecorator:
    """A test of every script, slow but for those named."""
    slow = pytest.mark.slow
    rows = [pytest.param(row, id=name, marks=() if name in quick else slow) for name, row in SCRIPTS.items()]
    return pytest.mark.parametrize("script", rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` of 16 samples to train on, `broken` of 12 with four unreadable, `val` of 4."""
    root = tmp_path_factory.mktemp("drills")
    write_words(root / "train" / "words", 16)
    write_words(root / "damaged" / "broken", 12, unreadable=(1, 4, 7, 10))
    write_words(root / "val", 4)
    return root


def words(script: Script, corpus: Path, out: Path, *more: str, **sizes: int) -> list[str]:
    return script.command(corpus / "train" / "words", corpus / "val", out, *more, **sizes)


def states(script: Script, out: Path) -> list[Path]:
    return sorted((out / script.run).glob(script.states))


def listed(script: Script, out: Path) -> list[BadSample]:
    return stored(out / script.run / FILE_NAME)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Script], Path]:
    """Output folder of the undisturbed run of a script, which is trained once."""
    found: dict[str, Path] = {}

    def trained(script: Script) -> Path:
        if script.module not in found:
            out = tmp_path_factory.mktemp("whole")
            BadSamples(1000, file=out / script.run / FILE_NAME).add([EARLIER])
            assert script.main(words(script, corpus, out, steps=STEPS)) == 0
            assert listed(script, out) == [], "a fresh run has a fresh list"
            found[script.module] = out
        return found[script.module]

    return trained


def log(path: Path) -> list[dict]:
    """The rows of a log of JSON lines, without what a clock has measured."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same_run(script: Script, first: Path, second: Path) -> None:
    """Two runs ended in the same state, published the same checkpoints, and logged the same figures."""
    a, b = (load(states(script, out)[-1]) for out in (first, second))
    assert a["step"] == STEPS
    for part in ("step", "world_size", "model", "optimizer", "parts", "rng", "extra"):
        same(a[part], b[part], part)
    published = [
        {
            str(path.relative_to(out / script.run)): {k: v for k, v in load(path).items() if k != "args"}
            for pattern in script.published
            for path in sorted((out / script.run).glob(pattern))
        }
        for out in (first, second)
    ]
    assert published[0]
    same(*published)
    same(*(log(out / script.run / "log.txt") for out in (first, second)), "log.txt")
    metrics = [log(out / script.run / "metrics.jsonl") for out in (first, second)]
    if "log" not in a["parts"]:  # console meters that are not part of the state begin anew
        metrics = [[(row["step"], list(row)) for row in rows] for rows in metrics]
    assert metrics[0]
    same(*metrics, "metrics.jsonl")


@drill(*SCRIPTS)
def test_a_run_asked_to_leave_resumes_exactly(script: Script, corpus: Path, whole, tmp_path: Path, monkeypatch) -> None:
    """SIGTERM inside an epoch, at its end, and inside the next; the list of bad samples continues."""
    again = words(script, corpus, tmp_path, *script.resume.split(), steps=STEPS)
    for stop in (3, 4, 6):
        with monkeypatch.context() as patch:
            patch.setattr(disturbed.Loop, "agree", disturbed.Loop.agree)
            disturbed.ask_to_leave(stop)
            assert script.main(again) == 0
        assert load(states(script, tmp_path)[-1])["step"] == stop
        if stop == 3:
            BadSamples(1000, file=tmp_path / script.run / FILE_NAME).add([EARLIER])
    assert script.main(again) == 0
    assert_same_run(script, tmp_path, whole(script))
    assert listed(script, tmp_path) == [EARLIER]


@drill("siga", "dig fine-tuning")
def test_a_killed_run_resumes_exactly(script: Script, corpus: Path, whole, tmp_path: Path, capsys) -> None:
    """kill -9 in the middle of a save."""
    again = words(script, corpus, tmp_path, *script.resume.split(), steps=STEPS)
    done = processes.run(sys.executable, "-m", "tests.runs.disturbed", "kill", 6, script.module, *again)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / script.run
    assert load(states(script, tmp_path)[-1])["step"] == 4
    assert (folder / LOCK).exists() and list(folder.glob(f"*{TEMPORARY}*"))
    assert script.main(again) == 0
    assert "this run takes the folder over" in capsys.readouterr().out
    assert not list(folder.glob(f"*{TEMPORARY}*")) and not (folder / LOCK).exists()
    assert_same_run(script, tmp_path, whole(script))


@drill("siga", "dig pre-training")
def test_two_processes_asked_to_leave_or_killed_resume_exactly(script: Script, corpus: Path, tmp_path: Path) -> None:
    """One rank alone is asked to leave, and both do; then rank 0 is killed in the middle of a save."""
    one, two = tmp_path / "whole", tmp_path / "disturbed"
    done = script.launch(words(script, corpus, one, batch=2, steps=STEPS), processes=2)
    assert done.returncode == 0, done.stderr
    again = words(script, corpus, two, *script.resume.split(), batch=2, steps=STEPS)
    start = [*processes.torchrun(), "-m", "tests.runs.disturbed"]
    left = processes.run(*start, "leave", 3, script.module, *again)
    assert left.returncode == 0, left.stderr
    assert load(states(script, two)[-1])["step"] == 3
    killed = processes.run(*start, "kill", 6, script.module, *again)
    assert killed.returncode != 0 and load(states(script, two)[-1])["step"] == 4, killed.stderr
    resumed = script.launch(again, processes=2, how="launch")
    assert resumed.returncode == 0, resumed.stderr
    assert len(re.findall("(?i)resumed? from", resumed.stdout)) == 1, "rank 0 alone prints"
    assert load(states(script, two)[-1])["world_size"] == 2
    assert_same_run(script, two, one)


@drill("dig pre-training")
def test_processes_without_a_readable_sample_stay_in_step(script: Script, corpus: Path, tmp_path: Path) -> None:
    """Two processes with batches of one sample, some of which cannot be read: the run ends, and lists them all."""
    data, validation = corpus / "damaged" / "broken", corpus / "val"
    line = script.command(data, validation, tmp_path, "--bad_share", "0.5", batch=1, steps=6)
    done = script.launch(line, processes=2)
    assert done.returncode == 0, done.stderr
    assert [row.number for row in listed(script, tmp_path)] == [2, 5, 8, 11]
    assert load(states(script, tmp_path)[-1])["world_size"] == 2


@pytest.mark.parametrize("where", ["input", "gradient"])
@drill(*SCRIPTS)
def test_nothing_is_stepped_after_nan(script: Script, where: str, corpus: Path, tmp_path: Path, capfd) -> None:
    """The run ends with status 2 and one line, its batch is in a file, and its last state is of the step before."""
    with disturbed.not_finite(where, after=2) as steps:
        assert script.main(words(script, corpus, tmp_path)) == 2
    what = "loss" if where == "input" else "gradient norm"
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and f"error: step 2: {what} is nan, nothing was stepped" in error, error
    assert steps == [2] and [load(path)["step"] for path in states(script, tmp_path)] == [2]
    content = json.loads((tmp_path / script.run / "non_finite_2.json").read_text())
    assert len(content["batch"]) == 4 and content["what"] == what


@drill(*SCRIPTS)
def test_other_options_are_refused_when_a_run_resumes(
    script: Script, corpus: Path, whole, tmp_path: Path, capsys
) -> None:
    shutil.copytree(whole(script), tmp_path, dirs_exist_ok=True)
    again = words(script, corpus, tmp_path, *script.resume.split(), *script.change.split(), steps=STEPS + 4)
    capsys.readouterr()
    assert script.main(again) == 2
    error = capsys.readouterr().err
    flags = re.findall(r"--\w+", script.change)
    assert "written with other options" in error and all(f"{flag}: " in error for flag in flags), error
    assert error.count("\n") == 1, error
    assert script.main([*again, "--allow_changes"]) == 0
    assert load(states(script, tmp_path)[-1])["step"] > STEPS


@drill(*SCRIPTS)
def test_a_folder_whose_states_are_all_unreadable_is_left_alone(
    script: Script, corpus: Path, whole, tmp_path: Path, capsys
) -> None:
    shutil.copytree(whole(script), tmp_path, dirs_exist_ok=True)
    found = [*states(script, tmp_path), *(tmp_path / script.run).glob("checkpoint-*.pth")]
    for path in found:
        path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in found}
    capsys.readouterr()
    assert script.main(words(script, corpus, tmp_path, *script.resume.split(), steps=STEPS)) == 2
    error = capsys.readouterr().err
    assert "no state of this run can be read" in error and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in found} == before


@drill(*SCRIPTS)
def test_a_folder_in_use_is_refused(script: Script, corpus: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / script.run
    folder.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    (folder / LOCK).write_text(json.dumps(mine))
    assert script.main(words(script, corpus, tmp_path)) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} of another run writes there" in error and error.count("\n") == 1, error
    assert not states(script, tmp_path)


@drill(*SCRIPTS)
def test_a_disk_without_room_is_reported_before_the_first_step(
    script: Script, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(session, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(Engine, "step", None)
    assert script.main(words(script, corpus, tmp_path)) == 2
    error = capsys.readouterr().err
    assert "no room for" in error and "1,000 are free" in error and error.count("\n") == 1, error
    assert not states(script, tmp_path)
