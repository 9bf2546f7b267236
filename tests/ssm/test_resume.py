"""Going on exactly after kill -9, for both halves, and with two processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.train.checkpoint import load
from projects.ssm.finetune.run import run
from projects.ssm.pretrain.sim_pretrain import main
from tests.common.compare import same
from tests.ssm.runs import configuration, environment, finetune, pretrain, write_corpus

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "pretrain": "projects/ssm/pretrain/sim_pretrain.py",
    "pixel": "projects/ssm/pretrain/main_pixel.py",
    "finetune": "projects/ssm/finetune/train.py",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


def start(script: str, words: list[str], processes: int = 1) -> subprocess.Popen:
    """The script as a user starts it, in a session of its own."""
    head = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        head += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.Popen(
        [*head, SCRIPTS[script], *words], cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def ended_after(process: subprocess.Popen, file: Path, number: signal.Signals, status: int) -> str:
    """The output of a script that gets a signal as soon as `file` is there."""
    deadline = time.monotonic() + 900
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    assert file.exists(), output
    return output


def killed_after(process: subprocess.Popen, file: Path) -> None:
    ended_after(process, file, signal.SIGKILL, -signal.SIGKILL)


def test_pretraining_killed(corpus: Path, tmp_path: Path) -> None:
    words = ["--state_steps", 1, "--epochs", 300, "--auto_resume"]
    state = tmp_path / "killed" / "training_state.pth"
    killed_after(start("pretrain", pretrain(corpus, state.parent, *words)), state)
    step = load(state)["step"]
    for out in (state.parent, tmp_path / "whole"):
        assert main(pretrain(corpus, out, *words, "--max_steps", step + 3)) == 0
    killed, whole = load(state), load(tmp_path / "whole" / "training_state.pth")
    assert killed["step"] == step + 3
    for key in ("model", "optimizer", "rng"):
        same(killed[key], whole[key], key)


def test_finetuning_killed(corpus: Path, tmp_path: Path) -> None:
    more = ["trainer.max_epochs=12", "trainer.val_check_interval=1"]
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    killed_after(start("finetune", finetune(corpus, *more, f"hydra.run.dir={tmp_path}/killed")), last)
    step = load(last)["global_step"]
    assert step < 48
    run(configuration(corpus, *more, f"ckpt_path={last}"), tmp_path / "killed")
    run(configuration(corpus, *more), tmp_path / "whole")
    compare(tmp_path, "killed")


def test_finetuning_terminated(corpus: Path, tmp_path: Path) -> None:
    more = ["trainer.max_epochs=30", "trainer.val_check_interval=4"]
    process = start("finetune", finetune(corpus, *more, f"hydra.run.dir={tmp_path}/stopped"))
    output = ended_after(process, tmp_path / "stopped" / "metrics.jsonl", signal.SIGTERM, 0)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    step = load(last)["global_step"]
    assert f"stopped after step {step}; resume with ckpt_path={last}" in output
    run(configuration(corpus, *more, f"ckpt_path={last}"), tmp_path / "stopped")
    run(configuration(corpus, *more), tmp_path / "whole")
    compare(tmp_path, "stopped")


TWO = ["model.batch_size=2", "trainer.devices=2", "trainer.val_check_interval=2"]


def ended_together(corpus: Path, *words: str) -> None:
    """A run on two processes to its end."""
    process = start("finetune", finetune(corpus, *TWO, *words), processes=2)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def test_finetuning_on_two_processes_goes_on_exactly(corpus: Path, tmp_path: Path) -> None:
    ended_together(corpus, f"hydra.run.dir={tmp_path}/whole")
    found = {load(path)["global_step"]: path for path in (tmp_path / "whole" / "checkpoints").glob("epoch=*.ckpt")}
    middle = tmp_path / "resumed" / "checkpoints" / "middle.ckpt"
    middle.parent.mkdir(parents=True)
    middle.write_bytes(found[min(found)].read_bytes())
    assert len(load(middle)["generators"]) == 2
    ended_together(corpus, f"ckpt_path={middle}", f"hydra.run.dir={tmp_path}/resumed")
    compare(tmp_path, "resumed")


@pytest.mark.slow
def test_finetuning_on_two_processes_killed(corpus: Path, tmp_path: Path) -> None:
    more, place = ["trainer.max_epochs=8", "swa=true"], f"hydra.run.dir={tmp_path}/killed"
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = start("finetune", finetune(corpus, *TWO, *more, place), processes=2)
    while not last.exists() and process.poll() is None:
        time.sleep(0.02)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):  # torchrun's workers have sessions of their own
        with contextlib.suppress(OSError):
            if place in entry.read_bytes().decode(errors="replace").split("\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert last.exists(), output
    assert load(last)["global_step"] < 32
    ended_together(corpus, *more, f"ckpt_path={last}", place)
    ended_together(corpus, *more, f"hydra.run.dir={tmp_path}/whole")
    compare(tmp_path, "killed")
    averages = (load(tmp_path / name / "checkpoints" / "swa.ckpt")["state_dict"] for name in ("killed", "whole"))
    same(*averages)


def compare(folder: Path, name: str) -> None:
    """The resumed run ends as the whole one, and its figures are each written once."""
    ours, theirs = (load(folder / run_name / "checkpoints" / "last.ckpt") for run_name in (name, "whole"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(ours[key], theirs[key], key)
    for mine, others in zip(ours["generators"], theirs["generators"], strict=True):
        same(mine["torch"], others["torch"])
    file = folder / name / "metrics.jsonl"
    steps = [row["step"] for row in map(json.loads, file.read_text().splitlines()) if "val_loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == ours["global_step"]
