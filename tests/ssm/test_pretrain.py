"""sim_pretrain.py at its smallest: files, logs, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import load
from projects.ssm.pretrain import flags
from projects.ssm.pretrain.sim_pretrain import main
from tests.ssm.runs import pretrain, write_corpus

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
