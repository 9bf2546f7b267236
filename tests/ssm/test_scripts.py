"""read.py, test_custom.py, bench.py and tune.py at their smallest, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.infer.recognizer import open_recognizer
from common.train.checkpoint import save_atomic, write_card
from projects.ssm.finetune import bench, read, test_custom, tune
from projects.ssm.model.build import build_recogniser
from tests.common.lmdbs import encoded, noise
from tests.ssm.runs import MICRO, WORDS, finetune, write_corpus

CHARSET = "0123456789abcdefghijklmnopqrstuvwxyz"
SIZES = {**MICRO, "img_size": [32, 128], "max_label_length": 25}
PARSEQ = {"embed_dim": 32, "enc_num_heads": 2, "enc_depth": 1, "dec_num_heads": 2}


@pytest.fixture(scope="module", params=["TransOCR", "PARSeq"])
def checkpoint(request, tmp_path_factory) -> Path:
    options = {**SIZES, **(PARSEQ if request.param == "PARSeq" else {}), "charset_train": CHARSET}
    torch.manual_seed(0)
    model = build_recogniser(request.param, CHARSET, options)
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    hyper = {**options, "class": request.param}
    save_atomic(path, {"state_dict": model.state_dict(), "hyper_parameters": hyper})
    write_card(path, f"ssm/{request.param}", {})
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


def test_read(checkpoint: Path, tmp_path: Path, capsys) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, file in enumerate(files):
        file.write_bytes(encoded(noise(number)))
    assert read.main([str(checkpoint), "--images", *map(str, files), "--device", "cpu", "max_label_length:int=25"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Additional keyword arguments: {'max_label_length': 25}"
    expected = [prediction.text for prediction in open_recognizer(checkpoint, device="cpu")(files)]
    assert lines[1:] == [f"{file}: {text}" for file, text in zip(files, expected)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "/nowhere.png"], "/nowhere.png"),
        ([], "--images"),
        (["--images", "a.png", "refine_iters=2"], "model arguments are name:type=value"),
        (["--images", "a.png", "max_label_length:int=many"], "'many' is no int"),
    ],
)
def test_read_refuses(checkpoint: Path, words: list[str], told: str, capsys) -> None:
    assert read.main([str(checkpoint), "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_no_checkpoint(tmp_path: Path, capsys) -> None:
    assert read.main([str(tmp_path / "x.ckpt"), "--images", "a.png", "--device", "cpu"]) == 2
    assert "x.ckpt" in capsys.readouterr().err


def test_splits_by_length(checkpoint: Path, corpus: Path, capsys) -> None:
    words = [str(checkpoint), "--data_root", str(corpus), "--device", "cpu", "--num_workers", "0"]
    assert test_custom.main([*words, "--common_length", "--only_custom"]) == 0
    text = capsys.readouterr().out
    read_words = WORDS[:6] + WORDS[:4]
    for length in {len(word) for word in read_words}:
        count = sum(len(word) == length for word in read_words)
        assert f"| len_{length}    | {count:>9} |" in text
    assert "Benchmark" not in text and Path(f"{checkpoint}.cus_log.txt").read_text() in text
    assert list(json.loads(Path(f"{checkpoint}_comlen.json").read_text())) == ["len_2", "len_3"]


def test_unseen_words(checkpoint: Path, corpus: Path, capsys) -> None:
    words = [str(checkpoint), "--data_root", str(corpus), "--device", "cpu", "--num_workers", "0"]
    assert test_custom.main([*words, "--only_custom"]) == 2
    assert test_custom.main([*words, "--unseen_syn"]) == 2
    assert "strlab data convert unseen" in capsys.readouterr().err
    shutil.copytree(corpus / "evaluation" / "SVT", corpus / "test_custom" / "unseen_syn", dirs_exist_ok=True)
    assert test_custom.main([*words, "--unseen_syn"]) == 0
    text = capsys.readouterr().out
    assert "Unseen set:" in text and "| unseen_syn |         4 |" in text and "Benchmark (Subset) set:" in text
    shutil.rmtree(corpus / "test_custom")


@pytest.fixture
def overrides() -> list[str]:
    return ["+experiment=cpu-micro", *(f"model.{name}={value}".replace(" ", "") for name, value in MICRO.items())]


@pytest.mark.parametrize("more", [[], ["+range=true"]])
def test_bench(overrides: list[str], more: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    assert bench.main([*overrides, "+device=cpu", *more]) == 0
    torch.use_deterministic_algorithms(False)
    text = capsys.readouterr().out
    assert text.count("model(image, length)") == (6 if more else 1)
    assert ("parameters" in text) is not bool(more)


def test_bench_counts_a_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 10))
    row = bench.parts_table(model, torch.zeros(1, 3, 4, 4)).splitlines()[-1]
    assert row.split() == ["all", f"{224 + 1290:,}", f"{16 * 8 * 27 + 1280:,}", str(128 + 10)]


def test_tune_goes_on_where_it_was(corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = finetune(corpus, "trainer.max_epochs=1", "tune.num_samples=2")
    assert tune.main([*words, f"hydra.run.dir={tmp_path}"]) == 0
    assert "best: model.lr=" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["lr"] for row in results] == pytest.approx([2e-3, 1e-4])
    monkeypatch.setattr(tune, "run", lambda *_: pytest.fail("a finished trial ran again"))
    assert tune.main([*words, f"hydra.run.dir={tmp_path}/again", f"tune.resume_dir={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["tune.lr.min=1", "tune.lr.max=0.1"], "tune.lr"),
        (["tune.num_samples=none"], "num_samples"),
        (["tune.num_samples=0"], "num_samples"),
        (["tun.x=1"], "tun"),
    ],
)
def test_tune_refuses(overrides: list[str], more: list[str], told: str, tmp_path: Path, capsys) -> None:
    assert tune.main([*overrides, f"hydra.run.dir={tmp_path}", *more]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
