"""SIGA's training script: launches, files, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.train.checkpoint import load
from projects.siga import train
from projects.siga.test import main as evaluate_main
from tests.common.processes import run, torchrun
from tests.siga.corpus import command, write_corpus, write_words

STATE = "training_state-{:09d}.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four steps that kept the state of every step."""
    out = tmp_path_factory.mktemp("whole")
    assert train.main(command(corpus, out, "TRBA_small", "--Aug", "--save_interval", 1, "--keep_states", 0)) == 0
    return out / "saved_models" / "run"


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("TRBA_small", "saved_models/run"),
        ("TSBA_small", "saved_models/run"),
        ("char_str_small", "saved_models/run-Seed1111"),
    ],
)
def test_writes_the_published_files(model: str, folder: str, corpus: Path, tmp_path: Path, capsys) -> None:
    augment = "--isrand_aug" if model.startswith("char") else "--Aug"
    words = command(
        corpus, tmp_path, model, "--eval_data", corpus / "evaluation", augment, "--num_iter", 2, "--val_interval", 2
    )
    assert train.main(words) == 0
    run = tmp_path / folder
    numbered = ["iter_2.pth"] if model.startswith("char") else ["0.pth", "1.pth"]
    for name in ("best_accuracy.pth", *numbered):
        content = load(run / name)
        assert set(content) == {"net", "optimizer", "iteration"}
        assert all(key.startswith("module.") for key in content["net"])
        assert json.loads((run / f"{name}.json").read_text())["model"] == f"siga/{model}"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("event") == "evaluation"][-1] == 2
    assert {"loss", "share", "lr", "images_per_second", "data_wait"} <= set(rows[0])
    assert list((tmp_path / "tensorboard").rglob("events.*"))
    if model.startswith("char"):
        assert "Trainable network params num : " in (run / "opt.txt").read_text()
        assert "out_accuracy     : " in (run / "log_train.txt").read_text()
        assert "samples" in (run / "log_dataset.txt").read_text()
    else:
        assert "------------ Options -------------" in (run / "log_train.txt").read_text()
        lines = (run / "result" / "log_all_evaluation.txt").read_text().splitlines()
        assert lines[0] == "-" * 80 and lines[1] == "iteration: 1 "
        assert lines[2].startswith("dataset: CUTE80 accuracy: Share_pred: ")
        assert lines[-1].startswith("total_accuracy: Share_pred: ")
    assert (
        evaluate_main(
            [
                "--eval_data",
                str(corpus / "evaluation"),
                "--select_data",
                "SVT",
                "--workers",
                "0",
                "--device",
                "cpu",
                "--saved_model",
                str(run / "best_accuracy.pth"),
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "dataset: SVT\tsamples: 6" in printed and "[{'name': 'Share_pred1', 'n_correct': " in printed


def test_published_launcher_passes_local_rank(corpus: Path, tmp_path: Path) -> None:
    words = command(corpus, tmp_path, "TSBA_small", "--num_iter", 1, "--eval_data", corpus / "evaluation")
    done = run(*torchrun(2, "launch"), "projects/siga/train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 process(es), 1 steps" in done.stdout and done.stdout.count("fresh start") == 1


def test_published_command_of_t(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    """The command kept in the published file, on small data and a small model."""
    monkeypatch.chdir(tmp_path)
    words = (
        f"--train_data {corpus}/training --valid_data {corpus}/evaluation --select_data MJ-ST --batch_ratio 0.5-0.5 "
        "--Transformer char-str --TransformerModel=char_str_small --imgH 32 --imgW 64 --batch_max_length 5 "
        "--manualSeed=226 --workers=0 --isrand_aug --scheduler --batch_size=4 --rgb --saved_path ./ "
        "--exp_name char_str_patch4_3_32_128 --valInterval 2 --num_iter 2 --lr 1 --device cpu"
    )
    assert train.main(words.split()) == 0
    run = tmp_path / "char_str_patch4_3_32_128-Seed226"
    assert (
        evaluate_main(
            f"--eval_data {corpus}/evaluation --benchmark_all_eval --Transformer char-str --data_filtering_off --rgb "
            f"--TransformerModel=char_str_small --workers 0 --device cpu --model_dir {run}/best_accuracy.pth".split()
        )
        == 0
    )
    assert list(tmp_path.glob("result/*/log_all_evaluation.txt"))


def refused(words: list[str], capsys, *parts: str) -> None:
    """Status 2, one line that names these parts."""
    assert train.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in ("error: ", *parts)), lines[0]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--train_data", "/no/such"], ["/no/such", "no such folder"]),
        (["--select_data", "XX"], ["no LMDB named XX", "MJ"]),
        (["--character", "!?"], ["--character", "no usable sample", "40 empty"]),
        (["--character", "0123456789"], ["--character", "outside the charset", "32 become empty"]),
        (["--foreign", "error", "--character", "abc"], ["outside the charset"]),
        (["--device", "cuda"], ["--device", "CUDA"]),
        (["--amp", "fp16"], ["--amp", "CUDA"]),
        (["--saved_model", "/no/file.pth"], ["/no/file.pth", "no such checkpoint"]),
        (["--output", "/proc/nowhere"], ["/proc/nowhere", "cannot be written"]),
        (["--batch_size", "0"], ["--batch_size"]),
        (["--batch_size", "4000"], ["batch size 4000"]),
        (["--schedule", "fast"], ["--schedule"]),
        (["--optimizer", "lion"], ["--optimizer"]),
        (["--tps", __file__], [Path(__file__).name]),
        (["--mask_path", "/no/masks"], ["/no/masks"]),
        (["--hidden_size", "0"], ["--hidden_size"]),
        (["--manual_seed", "-1"], ["--manual_seed"]),
    ],
)
def test_bad_input_is_one_line(more: list[str], parts: list[str], corpus: Path, tmp_path: Path, capsys) -> None:
    refused([*command(corpus, tmp_path), *more], capsys, *parts)


def test_other_models_are_refused(capsys) -> None:
    for words, part in (
        (["--model_name", "CRNN"], "CRNN"),
        (["--model_name", "nope"], "nope"),
        ([], "--model_name"),
        (["--Transformer", "mgp-str"], "mgp-str"),
    ):
        refused(words, capsys, part)


def test_masks_of_another_length_are_refused(corpus: Path, tmp_path: Path, capsys) -> None:
    for name in ("MJ", "ST"):
        write_words(tmp_path / "masks" / name, ["a", "b"])
    words = [*command(corpus, tmp_path), "--mask_path", str(tmp_path / "masks")]
    refused(words, capsys, str(tmp_path / "masks" / "MJ"), "no masks up to number 20")


def test_checkpoints_of_another_kind_are_refused(whole: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    words = command(corpus, tmp_path)
    half = tmp_path / "half.pth"
    half.write_bytes((whole / "0.pth").read_bytes()[:5000])
    refused([*words, "--saved_model", str(half)], capsys, str(half), "truncated")
    refused([*words, "--model_name", "TSBA_small", "--saved_model", str(whole / "0.pth")], capsys, "0.pth")
    refused(
        [*words, "--saved_model", str(whole / "0.pth"), "--character", "abcdefghijklmnop", "--unsupported_share", "1"],
        capsys,
        "0.pth",
        "charset",
    )
    refused([*words, "--resume", str(whole / STATE.format(2)), "--batch_size", "2"], capsys, "batch_size")
    refused([*words, "--resume", str(whole / STATE.format(2)), "--optimizer", "adadelta"], capsys, "optimizer")


def test_published_checkpoint_goes_on(whole: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    """`--saved_model` takes weights, optimizer and iteration of a checkpoint with `module.` names, as the paper's
    script meant."""
    copy = tmp_path / "3.pth"
    shutil.copy(whole / "3.pth", copy)
    assert train.main(command(corpus, tmp_path, "TRBA_small", "--num_iter", 6, "--saved_model", copy)) == 0
    printed = capsys.readouterr().out
    assert "weights, optimizer and step 4" in printed and f"TPS: weights from {copy}, trained on" in printed
    words = command(corpus, tmp_path / "other", "TRBA_small", "--saved_model", copy, "--optimizer", "adadelta")
    assert train.main(words) == 0 and "its optimizer does not fit" in capsys.readouterr().out
