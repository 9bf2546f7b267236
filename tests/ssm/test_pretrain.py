"""sim_pretrain.py at its smallest: files, logs, exact resuming, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import load
from projects.ssm.pretrain import flags
from projects.ssm.pretrain.sim_pretrain import main
from tests.common.compare import same
from tests.ssm.runs import environment, pretrain, write_corpus

ROOT = Path(__file__).resolve().parents[2]
METERS = ["lr", "mm", "loss_pix", "loss_feat_ratio", "loss_feat_cl", "loss"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pretrain")
    assert main(pretrain(corpus, out)) == 0
    return out


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def test_published_files(whole: Path) -> None:
    assert [list(row) for row in rows(whole)] == [[*(f"train_{name}" for name in METERS), "epoch"]] * 2
    assert set(load(whole / "checkpoint-1.pth")) == {"model", "optimizer", "epoch", "scaler", "args"}
    text = (whole / "screen.txt").read_text()
    assert re.search(r"\[\d\d:\d\d:\d\d\.\d{6}\] Epoch: \[0\]  \[0/4\]  eta: \d:\d\d:\d\d  lr: 0\.000000  mm: ", text)
    assert list(whole.rglob("events.*"))


def test_resumes_exactly_inside_an_epoch(corpus: Path, whole: Path, tmp_path: Path) -> None:
    for stop in (3, 6):
        assert main(pretrain(corpus, tmp_path, "--auto_resume", "--max_steps", stop)) == 0
        assert load(tmp_path / "training_state.pth")["step"] == stop
    assert main(pretrain(corpus, tmp_path, "--auto_resume")) == 0
    for key in ("model", "optimizer", "epoch"):
        same(load(tmp_path / "checkpoint-1.pth")[key], load(whole / "checkpoint-1.pth")[key], key)
    same(rows(tmp_path), rows(whole))


def test_switches_change_the_run(corpus: Path, whole: Path, tmp_path: Path) -> None:
    more = ["--dense_loss", "--norm_pix_loss", "--isrand_aug", "--teacher_seeds", "random", "--accum_iter", 2]
    assert main(pretrain(corpus, tmp_path, *more, "--max_steps", 2)) == 0
    assert load(tmp_path / "training_state.pth")["step"] == 2
    state = load(tmp_path / "checkpoint-0.pth")
    assert state["model"]["student_norm.weight"].ne(1).any()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--direction", "aug_pol"], "aug_pool"),
        (["--mmschedule", "cosin"], "cosine"),
        (["--model", "flipae_vit_smal_str"], "flipae_vit_small_str"),
        (["--warmup_epochs", 3], "warmup_epochs"),
        (["--batch_size", 1000], "1000"),
        (["--input_size", "30,128"], "multiple"),
        (["--data_path", "/nowhere"], "/nowhere"),
        (["--seed", "-1"], "--seed"),
        (["--resume", "{corpus}/list.pth"], "no weights"),
    ],
)
def test_refusals(corpus: Path, tmp_path: Path, more, told: str, capsys) -> None:
    torch.save([1, 2], corpus / "list.pth")
    assert main(pretrain(corpus, tmp_path, *(str(word).format(corpus=corpus) for word in more))) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize("size", ["0,128", "32,-128", "32"])
def test_sizes_are_positive(size: str, corpus: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(pretrain(corpus, tmp_path, f"--input_size={size}"))
    assert f"{size!r} is not HEIGHT,WIDTH" in capsys.readouterr().err


def test_dead_flags_are_told(corpus: Path, capsys) -> None:
    flags.parse(["--data_path", str(corpus), "--mode", "single", "--T", "0.5", "--device", "cpu"])
    assert "no effect" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["projects/ssm", "projects/ssm/pretrain"])
def test_shell_script_without_data_says_how(place: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DATA_PATH", "OUTPUT_PATH")}
    done = subprocess.run(
        ["bash", "scripts/encoder-pretrain.sh"], cwd=ROOT / place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "usage: bash scripts/encoder-pretrain.sh DATA OUT" in done.stderr


def test_two_processes_agree_and_go_on(corpus: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for stop in (1, 0):
        words = pretrain(corpus, tmp_path, "--auto_resume", "--max_steps", stop, "--batch_size", 2)
        command = [*torchrun, "projects/ssm/pretrain/sim_pretrain.py", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows(tmp_path)] == [0, 1]
    assert "Resume from" in done.stdout and load(tmp_path / "training_state.pth")["world_size"] == 2
