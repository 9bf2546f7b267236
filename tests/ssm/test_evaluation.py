"""test.py on pictures that cannot be read and on other scripts than Latin; words that a model cannot write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import save_atomic
from projects.ssm.finetune.run import run
from projects.ssm.finetune.test import main as measure
from projects.ssm.model.build import build_recogniser
from projects.ssm.model.layers import decoding_steps
from tests.common.lmdbs import write_words
from tests.ssm.runs import MICRO, WORDS, configuration, write_corpus

LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
SIZES = {**MICRO, "img_size": [32, 128], "max_label_length": 25}
PARSEQ = {"embed_dim": 32, "enc_num_heads": 2, "enc_depth": 1, "dec_num_heads": 2}
VITSTR = {"embed_dim": 32, "num_heads": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """IIIT5k with two pictures that cannot be read, SVT sound, and a Chinese set."""
    root = write_corpus(tmp_path_factory.mktemp("ssm"))
    shutil.rmtree(root / "evaluation" / "IIIT5k")
    write_words(root / "evaluation" / "IIIT5k", WORDS[:6], broken=[0, 2])
    write_words(root / "evaluation" / "scene_test", ["中文", "字A", "，", "Éa"])
    return root


def checkpoint(folder: Path, charset: str) -> Path:
    torch.manual_seed(0)
    model = build_recogniser("TransOCR", charset, SIZES)
    hyper = {**SIZES, "charset_train": charset, "class": "TransOCR"}
    return save_atomic(folder / "model.ckpt", {"state_dict": model.state_dict(), "hyper_parameters": hyper})


def labels(file: Path, name: str, root: Path, *more: str) -> list[str]:
    """The labels of a set that test.py has read."""
    assert measure([str(file), "--data_root", str(root), "--num_workers", "0", "--device", "cpu", *more]) == 0
    return [word[0] for word in json.loads(Path(f"{file}.log.json").read_text())[name]["words"]]


def test_unreadable_pictures_are_counted(corpus: Path, tmp_path: Path, capsys) -> None:
    file = checkpoint(tmp_path, LOWER)
    assert len(labels(file, "IIIT5k", corpus)) == 4
    text = capsys.readouterr().out
    assert "%, 2 unreadable" in text and "| IIIT5k   |         4 |" in text and "| SVT      |         4 |" in text
    table = Path(f"{file}.bad_samples.csv")
    assert f"2 unreadable pictures are in no figure; they are listed in {table}" in text
    assert [row.split(",")[1] for row in table.read_text().splitlines()] == ["number", "1", "3"]
    assert json.loads(Path(f"{file}.log.json").read_text())["IIIT5k"]["unreadable"] == 2


def test_other_scripts_are_compared(corpus: Path, tmp_path: Path, capsys) -> None:
    file = checkpoint(tmp_path, LOWER + "中文字，Éé")
    assert labels(file, "scene_test", corpus, "--chinese") == ["中文", "字a", "éa"]
    text = capsys.readouterr().out
    assert "Chinese set:" in text and "labels are not folded to ASCII" in text
    assert labels(file, "scene_test", corpus, "--chinese", "--punctuation", "--cased") == ["中文", "字A", "，", "Éa"]
    assert labels(file, "scene_test", corpus, "--chinese", f"charset_test:str={LOWER}中") == ["中", "a", "a"]
    file = checkpoint(tmp_path, LOWER)  # as published
    assert labels(file, "scene_test", corpus, "--chinese") == ["a", "ea"]


@pytest.mark.parametrize(("name", "more"), [("TransOCR", {}), ("PARSeq", PARSEQ), ("ViTSTR", VITSTR)])
def test_no_character_is_asked_for(name: str, more: dict) -> None:
    model = build_recogniser(name, LOWER, {**SIZES, **more}).eval()
    assert model(torch.zeros(2, 3, 32, 128), 0).shape[1] == 1
    assert [decoding_steps(25, wanted) for wanted in (0, 3, 25, 99, None)] == [1, 4, 26, 26, 26]


def test_validates_batches_without_a_known_word(corpus: Path, tmp_path: Path) -> None:
    run(
        configuration(corpus, "model.charset_train='0123456789'", "trainer.max_epochs=1", "data.unsupported_share=1"),
        tmp_path,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row]
