"""A word LMDB that `synthesize.py` wrote trains every recogniser of this repository with its own command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.data.lmdb import WordLmdb
from common.data.synth.scenes import SceneOptions, render_scenes
from projects.dig import run_class_finetuning
from projects.mgpstr import train_final_dist
from projects.siga import train as siga
from projects.ssm.finetune import run as ssm
from projects.textssr import make_base, synthesize
from projects.textssr.model.build import build_unet
from tests.dig import runs as dig_runs
from tests.mgpstr import corpus as mgpstr_corpus
from tests.siga import corpus as siga_corpus
from tests.ssm import runs as ssm_runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Words painted by an untrained model, in the places where the commands look for data."""
    out = tmp_path_factory.mktemp("made")
    options = SceneOptions(train=5, more=0, test=0, min_length=3, max_length=4, charset="36")
    scenes = render_scenes(out / "scenes", options, progress=False)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    assert make_base.main([str(out / "base")]) == 0
    build_unet("tiny").save_pretrained(out / "unet")
    models = f"--vae {out}/base/vae --unet {out}/unet --scheduler {out}/base/scheduler --device cpu --resolution 64"
    words = f"{scenes}/train/test.json {out}/made --no-filter --per-region 1 --steps 1 --clean-glyph {models}"
    assert synthesize.main(words.split()) == 0
    attempts = [json.loads(line) for line in (out / "made/manifest.jsonl").read_text().splitlines()]
    assert len(WordLmdb(out / "made" / "words")) == len(attempts) >= 8
    root = out / "data"
    for name in ("training/MJ", "training/ST", "validation", "evaluation/SVT"):
        shutil.copytree(out / "made" / "words", root / name)
    return root


def train_siga(corpus: Path, out: Path) -> Path:
    more = ("--num_iter", 2, "--val_interval", 2, "--eval_data", corpus / "evaluation")
    assert siga.main(siga_corpus.command(corpus, out, "TRBA_small", *more)) == 0
    return next(out.rglob("best_accuracy.pth"))


def train_mgpstr(corpus: Path, out: Path) -> Path:
    words = mgpstr_corpus.command(corpus, out, "--num_iter=2", "--valInterval=2", model=mgpstr_corpus.MICRO)
    assert train_final_dist.main(words) == 0
    return next(out.rglob("best_accuracy.pth"))


def train_dig(corpus: Path, out: Path) -> Path:
    words = dig_runs.finetune(corpus, out, "--epochs", 1, "--warmup_epochs", 0)
    assert run_class_finetuning.main(words) == 0
    return next(out.glob("checkpoint-*.pth"))


def train_ssm(corpus: Path, out: Path) -> Path:
    changes = ("trainer.max_epochs=1", "+trainer.limit_train_batches=2", "trainer.val_check_interval=1.0")
    ssm.run(ssm_runs.configuration(corpus, *changes), out)
    return out / "checkpoints/last.ckpt"


@pytest.mark.parametrize("train", [train_siga, train_mgpstr, train_dig, train_ssm])
def test_painted_words_train_the_reader(train, corpus: Path, tmp_path: Path) -> None:
    assert train(corpus, tmp_path).is_file()
