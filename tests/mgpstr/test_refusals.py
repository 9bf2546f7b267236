"""Bad input to MGP-STR's scripts: one clear line and exit status 2."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from common.data.lmdb import LmdbWriter
from common.flags import NO_EFFECT_TITLE
from projects.mgpstr import demo, test_final, train_final_dist
from projects.mgpstr.flags import parse, table
from tests.mgpstr.corpus import ACDS, CHARACTERS, MICRO, command, write_corpus
from tests.siga.corpus import crop


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("mgpstr"))


def refused(status: int, capsys: pytest.CaptureFixture, text: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0], lines


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--batch_ratio=0.5-0.3-0.2"], "3 shares and --select_data MJ-ST 2 sources"),
        (["--batch_ratio=half-half"], "give numbers"),
        (["--select_data=MJ-XY"], "no LMDB named XY"),
        (["--train_data=/nowhere"], "no such folder"),
        (["--total_data_usage_ratio=2"], "at most 1"),
        (["--imgH=64"], "32x128"),
        (["--imgW=72"], "32x72: the models are made for 32x128; the micro and nano ones also take widths"),
        (["--TransformerModel=vit_b"], "no model is called 'vit_b'"),
        (["--TransformerModel=mgp_str_tiny_patch4_3_32_128"], "does not belong to --Transformer char-str"),
        (["--saved_model=/nowhere.pth"], "no such checkpoint"),
        (["--pretrained=/nowhere.pth"], "--pretrained: /nowhere.pth does not exist"),
        (["--character=aab"], "stands in it twice"),
        (["--is_mask_supervision"], "predicts no map"),
        (["--freeze"], "no CNN"),
        (["--isrand_aug", "--augs_num=9"], "--augs_num"),
        (["--amp=fp16"], "fp16 needs a CUDA device"),
        (["--lr=0"], "must be positive"),
        (["--lr=nan"], "--lr: nan is not a finite number"),
        (["--save_interval=-1"], "--save_interval"),
        (["--resume=/nowhere.pth"], "no such checkpoint"),
        (["--granularities=bpe-wp", *MICRO], "char first"),
        (["--manualSeed=-1"], "--manualSeed"),
        (["--amp=half"], "--amp: 'half'"),
    ],
)
def test_training(words: list[str], text: str, corpus: Path, tmp_path: Path, capsys) -> None:
    refused(train_final_dist.main(command(corpus, tmp_path, *words)), capsys, text)


def test_unknown_method(corpus: Path, tmp_path: Path, capsys) -> None:
    status = train_final_dist.main(command(corpus, tmp_path, model=["--Transformer", "mgp"]))
    refused(status, capsys, "no method is called 'mgp'; there are mgp-str, char-str, ACDS-STR-Base")


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        (None, "no character boxes"),
        (b"[[0, 0, 900, 9, 'a']]", "must be JSON"),
        (json.dumps([[0, 0, 900, 9, "a"]]).encode(), "outside the picture's width"),
        (b'[[0, 0, NaN, 9, "a"]]', "not finite"),
        (b'[[0, 5, 9, 5, "a"]]', "is flat"),
    ],
)
def test_boxes(boxes: bytes | None, text: str, corpus: Path, tmp_path: Path, capsys) -> None:
    with LmdbWriter(tmp_path / "data" / "ST") as writer:
        writer.add(crop("a", 0), "a", **({} if boxes is None else {"boxes": boxes}))
    words = ["--is_mask_supervision", f"--train_data={tmp_path / 'data'}", "--select_data=ST", "--batch_ratio=1"]
    refused(train_final_dist.main(command(corpus, tmp_path, *words, model=ACDS)), capsys, text)


def test_validation_without_a_readable_picture(corpus: Path, tmp_path: Path, capsys) -> None:
    with LmdbWriter(tmp_path / "broken") as writer:
        writer.add(b"no picture", "a")
    words = command(corpus, tmp_path, f"--valid_data={tmp_path / 'broken'}")
    refused(train_final_dist.main(words), capsys, "none of its pictures can be read")


def test_pickled_labels_are_named(corpus: Path, tmp_path: Path, capsys) -> None:
    with LmdbWriter(tmp_path / "data" / "ST") as writer:
        writer.add_value("label", writer.add(crop("a", 0), None), pickle.dumps({"[[0, 0], [9, 9]]": "a", "word": "a"}))
    words = ["--is_mask_supervision", f"--train_data={tmp_path / 'data'}", "--select_data=ST", "--batch_ratio=1"]
    status = train_final_dist.main(command(corpus, tmp_path, *words, model=ACDS))
    refused(status, capsys, "strlab data convert acds")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--model_dir: not given"),
        (["--model_dir=/nowhere"], "does not exist"),
        (["--model_dir=."], "no iter_N.pth file"),
        (["--model_dir=.", "--range=1to9"], "give the first and the last step"),
        (["--model_dir=.", "--amp=half"], "--amp: 'half'"),
    ],
)
def test_evaluation(words: list[str], text: str, corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    refused(test_final.main([*CHARACTERS, f"--eval_data={corpus}", *words]), capsys, text)


def test_lists_without_a_folder(corpus: Path, tmp_path: Path, capsys) -> None:
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1")) == 0
    capsys.readouterr()
    words = [*CHARACTERS, "--eval_img", "--device=cpu", f"--result_path={tmp_path / 'result'}"]
    checkpoint = tmp_path / "run-Seed1111" / "best_accuracy.pth"
    refused(test_final.main([*words, f"--model_dir={checkpoint}"]), capsys, "--eval_data: not given")


@pytest.mark.parametrize(
    ("words", "script", "told"),
    [
        (["--compile"], "test_final.py", "no effect (accepted for compatibility): --compile"),
        (["--tf32"], "demo.py", "no effect (accepted for compatibility): --tf32"),
        (
            ["--pretrained=a.pth", "--saved_model=b.pth"],
            "train_final_dist.py",
            "--pretrained: not used with --saved_model",
        ),
        (["--freeze_statistics"], "train_final_dist.py", "--freeze_statistics: not used without --freeze"),
    ],
)
def test_flags_without_effect_are_told(words: list[str], script: str, told: str, capsys) -> None:
    parse([*CHARACTERS, *words, *(["--train_data=a", "--valid_data=b"] if "train" in script else [])], script)
    assert told in capsys.readouterr().out
    parse([*CHARACTERS, "--tf32", "--device=cpu"], "test_final.py")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "used", "unused"),
    [
        ("train_final_dist.py", {"--lr", "--train_data", "--compile"}, {"--eval_data", "--demo_imgs", "--rgb"}),
        ("test_final.py", {"--eval_data", "--tf32", "--batch_size"}, {"--lr", "--train_data", "--demo_imgs", "--FT"}),
        ("demo.py", {"--demo_imgs", "--sheets", "--model_dir"}, {"--lr", "--eval_data", "--batch_size", "--tf32"}),
    ],
)
def test_help_separates_the_flags_of_the_other_scripts(script: str, used: set[str], unused: set[str]) -> None:
    live, dead = table(script).parser(script, "").format_help().split(NO_EFFECT_TITLE)
    assert used <= set(live.split()) and unused <= set(dead.split()) and not unused & set(live.split())


def test_demo(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    refused(demo.main([*CHARACTERS]), capsys, "--demo_imgs: not given")
    refused(demo.main([*CHARACTERS, "--demo_imgs=.", "--model_dir=no.pth"]), capsys, "is no file")
