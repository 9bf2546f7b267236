"""DiG's two scripts: files, logs, exact resuming, two processes, kill -9, evaluation, refusals."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import load
from projects.dig import run_class_finetuning, run_mae_pretraining_moco
from projects.dig.trainer import STATE
from tests.common.compare import same
from tests.projects.dig_runs import finetune, pretrain, start, write_corpus

SCRIPTS = {
    "run_mae_pretraining_moco": (run_mae_pretraining_moco.main, pretrain),
    "run_class_finetuning": (run_class_finetuning.main, finetune),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("dig"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each script, fine-tuning starting from the pre-training."""
    out = tmp_path_factory.mktemp("whole")
    assert run_mae_pretraining_moco.main(pretrain(corpus, out / "pre", "--log_dir", out / "board")) == 0
    words = finetune(corpus, out / "fine", "--finetune", out / "pre" / "checkpoint-1.pth", "--model_ema")
    assert run_class_finetuning.main(words) == 0
    return {"run_mae_pretraining_moco": out / "pre", "run_class_finetuning": out / "fine"}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_pretraining_writes_the_published_files(whole, capsys) -> None:
    out = whole["run_mae_pretraining_moco"]
    checkpoint = load(out / "checkpoint-1.pth")
    assert set(checkpoint) == {"model", "optimizer", "epoch", "scaler", "args"}
    assert checkpoint["epoch"] == 1 and checkpoint["args"].moco_t == 0.2
    assert "momentum_encoder.mask_token" in checkpoint["model"]
    log = rows(out)
    assert [row["epoch"] for row in log] == [0, 1]
    meters = [
        "lr",
        "min_lr",
        "moco_m",
        "loss_contrast",
        "q1_acc1",
        "q1_acc5",
        "q2_acc1",
        "q2_acc5",
        "loss_pixel",
        "loss",
        "loss_scale",
        "weight_decay",
        "grad_norm",
    ]
    assert list(log[0]) == [*(f"train_{name}" for name in meters), "n_parameters", "epoch"]
    text = (out / "screen.txt").read_text()
    pattern = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]  Epoch: \[0\]  \[0/4\]  eta: \d:\d\d:\d\d  lr: \d\.\d{6}  min_lr: "
    assert re.search(pattern, text)
    assert re.search(r"Epoch: \[1\] Total time: 0:00:\d\d \(\d+\.\d{4} s / it\)", text) and "Averaged stats: " in text
    assert list((out.parent / "board").rglob("events.*"))


def test_finetuning_writes_the_published_files(whole) -> None:
    out = whole["run_class_finetuning"]
    checkpoint = load(out / "checkpoint-1.pth")
    assert set(checkpoint) == {"model", "optimizer", "epoch", "scaler", "args", "model_ema"}
    weights, averaged = checkpoint["model"], checkpoint["model_ema"]
    assert torch.equal(weights["patch_embed.proj.bias"], weights["encoder.patch_embed.proj.bias"])
    assert not torch.equal(averaged["encoder.norm.bias"], weights["encoder.norm.bias"])
    meters = ["lr", "min_lr", "loss", "class_acc", "loss_scale", "weight_decay", "grad_norm", "max_accuracy"]
    tests = ["test_loss", "test_acc", "test_recognition_fmeasure", "n_parameters", "epoch"]
    assert list(rows(out)[1]) == [*(f"train_{name}" for name in meters), *tests]
    assert json.loads((out / "checkpoint-1.pth.json").read_text())["model"] == "dig/simmim_vit_micro_patch8_32x128"
    assert "kept: encoder (" in (out / "screen.txt").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_resumes_exactly_inside_an_epoch(script: str, corpus: Path, whole, tmp_path: Path) -> None:
    main, words = SCRIPTS[script]
    more = ["--log_dir", tmp_path / "board"]
    if script == "run_class_finetuning":
        pretrained = whole["run_mae_pretraining_moco"] / "checkpoint-1.pth"
        more = ["--finetune", pretrained, "--model_ema"]
    for stop in (3, 6):
        assert main(words(corpus, tmp_path / "out", "--max_steps", stop, *more)) == 0
        assert load(tmp_path / "out" / STATE)["step"] == stop
    assert main(words(corpus, tmp_path / "out", *more)) == 0
    for key in ("model", "optimizer", "epoch", "scaler"):
        same(load(tmp_path / "out" / "checkpoint-1.pth")[key], load(whole[script] / "checkpoint-1.pth")[key], key)
    same(rows(tmp_path / "out"), rows(whole[script]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_with_two_processes_and_started_again(script: str, corpus: Path, tmp_path: Path) -> None:
    _, words = SCRIPTS[script]
    command = words(corpus, tmp_path, "--batch_size", 2, "--state_steps", 1, "--epochs", 200, "--save_ckpt_freq", 500)
    run = start(script, command, processes=2, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / STATE).exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    kill_group(run)
    before = load(tmp_path / STATE)
    assert before["world_size"] == 2
    after = start(script, [*command, "--max_steps", str(before["step"] + 2)], processes=2)
    output, _ = after.communicate(timeout=180)
    assert after.returncode == 0, output
    assert f"Resume from {tmp_path / STATE}" in output
    assert load(tmp_path / STATE)["step"] >= before["step"] + 2


def kill_group(run) -> None:
    """SIGKILL to the launcher and its workers, which the launcher starts in sessions of their own."""
    import psutil

    children = psutil.Process(run.pid).children(recursive=True)
    for process in [run, *children]:
        process.send_signal(signal.SIGKILL)
    run.wait()
    psutil.wait_procs(children, timeout=10)
    run.stdout.close()


def test_terminated_run_saves_and_leaves(corpus: Path, tmp_path: Path) -> None:
    endless = ["--epochs", 5000, "--save_ckpt_freq", 9999, "--eval_freq", 9999, "--disable_eval_during_finetuning"]
    run = start("run_class_finetuning", finetune(corpus, tmp_path, *endless))
    deadline = time.monotonic() + 120
    while not (tmp_path / STATE).exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert "run the same command to go on" in output
    assert load(tmp_path / STATE)["step"] > 0


def test_evaluation_counts_every_image_once(corpus: Path, whole, tmp_path: Path, capsys) -> None:
    more = ["--eval", "--resume", whole["run_class_finetuning"] / "checkpoint-1.pth"]
    more += ["--eval_data_path", corpus / "test" / "first", "--other_test_data_folders", "second", "third"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more)) == 0
    output = capsys.readouterr().out
    assert re.search(rf"\* {re.escape(str(corpus / 'test' / 'first'))}: 7 images, Acc \d\.\d{{4}} loss ", output)
    assert "third: no such set" in output
    evaluation = json.loads((tmp_path / "eval.json").read_text())
    assert [(entry["name"], entry["images"]) for entry in evaluation["sets"]] == [("first", 7), ("second", 5)]
    assert set(evaluation["totals"]) == {"2 sets, weighted", "2 sets, plain mean"}
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 13
    beam = tmp_path / "beam"
    assert run_class_finetuning.main(finetune(corpus, beam, *more, "--beam_width", 2)) == 0
    capsys.readouterr()


def test_shared_evaluation_equals_the_plain_one(corpus: Path, whole, tmp_path: Path) -> None:
    more = ["--eval", "--resume", whole["run_class_finetuning"] / "checkpoint-1.pth"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "one", *more)) == 0
    run = start("run_class_finetuning", finetune(corpus, tmp_path / "two", *more), processes=2)
    output, _ = run.communicate(timeout=180)
    assert run.returncode == 0, output
    for name in ("eval.json", "predictions.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


REFUSALS = [
    ("run_mae_pretraining_moco", ["--num_view", "1"], "--num_view"),
    ("run_mae_pretraining_moco", ["--model", "pretrain_mae_base_patch16_224"], "--model"),
    ("run_mae_pretraining_moco", ["--num_windows", "40"], "--num_windows"),
    ("run_mae_pretraining_moco", ["--patchnet_name", "odd"], "--patchnet_name"),
    ("run_mae_pretraining_moco", ["--warmup_steps", "900"], "--warmup_steps"),
    ("run_mae_pretraining_moco", ["--image_alone_path", "nowhere"], "nowhere"),
    ("run_mae_pretraining_moco", ["--batch_size", "900"], "batch"),
    ("run_mae_pretraining_moco", ["--amp", "fp16"], "--amp"),
    ("run_mae_pretraining_moco", ["--log_dir", __file__], "--log_dir"),
    ("run_class_finetuning", ["--nb_classes", "96"], "--nb_classes"),
    ("run_class_finetuning", ["--voc_type", "LOWERCASE"], "--nb_classes"),
    ("run_class_finetuning", ["--model", "vit_base_patch16_224"], "--model"),
    ("run_class_finetuning", ["--decoder_name", "decoupled_tf_decoder"], "--decoder_name"),
    ("run_class_finetuning", ["--decoder_type", "attention", "--beam_width", "3"], "--beam_width"),
    ("run_class_finetuning", ["--data_set", "IMNET"], "--data_set"),
    ("run_class_finetuning", ["--use_contrastive_center_loss"], "--use_contrastive_center_loss"),
    ("run_class_finetuning", ["--opt", "lion"], "--opt"),
]


@pytest.mark.parametrize(("script", "more", "named"), REFUSALS)
def test_refuses_in_one_line(script: str, more: list[str], named: str, corpus: Path, tmp_path: Path, capsys) -> None:
    main, words = SCRIPTS[script]
    assert main(words(corpus, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error


def test_foreign_checkpoint_is_refused_with_names(corpus: Path, tmp_path: Path, capsys) -> None:
    foreign = {"blocks.0.attn.qkv.weight": torch.zeros(3, 1), "head.bias": torch.zeros(2)}
    torch.save({"model": foreign}, tmp_path / "foreign.pth")
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "out", "--finetune", tmp_path / "foreign.pth")) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("kept: none", "missing: encoder (", "unused: blocks (1), head (1)"))


def test_windows_that_overlap_are_said(corpus: Path, tmp_path: Path, capsys) -> None:
    assert run_mae_pretraining_moco.main(pretrain(corpus, tmp_path, "--num_windows", 3, "--max_steps", 1)) == 0
    output = capsys.readouterr().out
    assert "windows overlap" in output and "no effect (accepted for compatibility): --moco_m_cos" in output


def test_accumulation_and_frozen_layers(corpus: Path, tmp_path: Path) -> None:
    more = ["--update_freq", 2, "--fixed_encoder_layers", 3, "--epochs", 1, "--warmup_epochs", 0, "--smoothing", 0.1]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more)) == 0
    state = load(tmp_path / STATE)
    assert state["step"] == 2
    assert len(state["optimizer"]["param_groups"]) > 2
