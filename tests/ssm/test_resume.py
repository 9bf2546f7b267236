"""Fine-tuning resumes exactly after kill -9 and SIGTERM, in one process and two. (Pre-training: see `tests/runs`.)"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from common.files import TEMPORARY
from common.train.checkpoint import load
from projects.ssm.finetune.method import System
from projects.ssm.finetune.run import run
from tests.common import processes
from tests.common.compare import same
from tests.ssm.runs import configuration, finetune, write_corpus

MODULE = "projects.ssm.finetune.train"
TWO = ["model.batch_size=2", "trainer.devices=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory) -> Path:
    """The folder of an undisturbed run: eight steps, validated and saved after every second."""
    out = tmp_path_factory.mktemp("whole")
    run(configuration(corpus), out)
    return out


def last_step(folder: Path) -> int:
    return load(folder / "checkpoints" / "last.ckpt")["global_step"]


def compare(first: Path, second: Path) -> None:
    """The resumed run ends as the whole one, and its figures are each written once."""
    ours, theirs = (load(folder / "checkpoints" / "last.ckpt") for folder in (first, second))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(ours[key], theirs[key], key)
    for mine, others in zip(ours["generators"], theirs["generators"], strict=True):
        same(mine["torch"], others["torch"])
    steps = [
        [row["step"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
        for folder in (first, second)
    ]
    assert steps[0] == steps[1] and steps[0][-1] == ours["global_step"]


def test_killed(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the save after step 4, then the same command."""
    words = finetune(corpus, f"hydra.run.dir={tmp_path}")
    done = processes.run(sys.executable, "-m", "tests.runs.disturbed", "kill", 4, MODULE, *words)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last_step(tmp_path) == 2 and list(tmp_path.glob(f"checkpoints/*{TEMPORARY}*"))
    run(configuration(corpus), tmp_path)
    assert not list(tmp_path.glob(f"checkpoints/*{TEMPORARY}*"))
    compare(tmp_path, whole)


def test_terminated(corpus: Path, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    step = System.training_step

    def asked(self: System, *batch: object) -> object:
        if self.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(System, "training_step", asked)
        with pytest.raises(SystemExit):
            run(configuration(corpus), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"stopped after step 3; resume with ckpt_path={last}" in capsys.readouterr().out
    assert last_step(tmp_path) == 3
    run(configuration(corpus, f"ckpt_path={last}"), tmp_path)
    compare(tmp_path, whole)


def test_two_processes_killed(corpus: Path, tmp_path: Path) -> None:
    """Rank 0 in the middle of the save after step 4; two processes save after every step."""
    for name, step in (("whole", 0), ("killed", 4), ("killed", 0)):
        words = finetune(corpus, *TWO, f"hydra.run.dir={tmp_path}/{name}")
        done = processes.run(*processes.torchrun(), "-m", "tests.runs.disturbed", "kill", step, MODULE, *words)
        assert (done.returncode == 0) == (step == 0), done.stderr
        assert last_step(tmp_path / name) == (3 if step else 8), done.stderr
    assert len(load(tmp_path / "killed" / "checkpoints" / "last.ckpt")["generators"]) == 2
    compare(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed_while_averaging(corpus: Path, tmp_path: Path) -> None:
    more = ["trainer.max_epochs=8", "swa=true"]
    for name, step in (("whole", 0), ("killed", 28), ("killed", 0)):  # the averages begin at step 24 of 32
        words = finetune(corpus, *TWO, *more, f"hydra.run.dir={tmp_path}/{name}")
        done = processes.run(*processes.torchrun(), "-m", "tests.runs.disturbed", "kill", step, MODULE, *words)
        assert (done.returncode == 0) == (step == 0), done.stderr
        assert last_step(tmp_path / name) == (27 if step else 32), done.stderr
    compare(tmp_path / "killed", tmp_path / "whole")
    same(*(load(tmp_path / name / "checkpoints" / "swa.ckpt")["state_dict"] for name in ("killed", "whole")))
