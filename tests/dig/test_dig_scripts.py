"""DiG's two scripts: files, logs, evaluation, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from common.data.bad import stored
from common.train.checkpoint import load
from projects.dig import evaluate, run_class_finetuning, run_mae_pretraining_moco
from projects.dig.optim import build_optimizer
from tests.common.lmdbs import write_words
from tests.common.processes import run, torchrun
from tests.dig.runs import finetune, pretrain, write_corpus

STATE = "training_state.pth"
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


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    assert (
        "LR = 0.00000234\nBatch size = 4\nNumber of training steps = 4\nNumber of training examples per epoch = 16"
        in text
    )
    assert re.search(r"Epoch: \[1\] Total time: \d:\d\d:\d\d \(\d+\.\d{4} s / it\)", text)
    assert "Averaged stats: " in text
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
    about = json.loads((out / "checkpoint-1.pth.json").read_text())
    assert about["model"] == "dig/simmim_vit_micro_patch8_32x128" and about["step"] == 8
    assert [row["step"] for row in metrics(out)] == [1, 4, 8]
    assert [row["step"] for row in metrics(out) if "accuracy" in row] == [4, 8]
    text = (out / "screen.txt").read_text()
    assert "/checkpoint-1.pth:\nkept       55 tensors  encoder." in text and "new" in text and "dropped" in text
    assert text.count(": all 10 labels are within the charset") == 1 and ": all 6 labels are within" in text
    plan = ["LR = 0.00000156", "Batch size = 4", "Update frequent = 1", "Number of training examples = 16"]
    assert "\n".join([*plan, "Number of training training per epoch = 4"]) in text
    meters = [rf"{name}: \d+\.\d{{4}} \(\d+\.\d{{4}}\)" for name in ("loss", "acc", "recognition_fmeasure")]
    assert re.search(rf"Test:  \[0/2\]  eta: \d:\d\d:\d\d  {'  '.join(meters)}  time: ", text)


def test_validates_and_saves_inside_an_epoch_by_steps_done(corpus: Path, tmp_path: Path) -> None:
    more = ["--epochs", 1, "--batch_size", 1, "--warmup_epochs", 0, "--eval_freq", 1, "--max_steps", 10]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more)) == 0
    assert [row["step"] for row in metrics(tmp_path) if "accuracy" in row] == list(range(1, 11))
    assert json.loads((tmp_path / "checkpoint-0_10.pth.json").read_text())["step"] == 10


def test_left_at_the_end_of_an_epoch_without_checkpoints(corpus: Path, tmp_path: Path, capsys) -> None:
    """--no_save_ckpt writes no state by itself; a run that is asked to leave does."""
    words = finetune(corpus, tmp_path, "--no_save_ckpt", "--disable_eval_during_finetuning")
    assert run_class_finetuning.main([*words, "--max_steps", "4"]) == 0
    assert "stopped after saving its state" in capsys.readouterr().out
    assert load(tmp_path / STATE)["step"] == 4
    assert run_class_finetuning.main(words) == 0
    assert "epoch 1, step 0 of 4" in capsys.readouterr().out


def test_a_batch_without_a_readable_picture_in_one_process(corpus: Path, tmp_path: Path, capsys) -> None:
    """The step is counted, nothing is stepped, and a line says so."""
    write_words(tmp_path / "words", ["ab", "cat", "dog", "tea"], broken=[2])
    more = ["--batch_size", 1, "--epochs", 1, "--warmup_epochs", 0, "--bad_share", 0.5]
    more += ["--data_path", tmp_path / "words", "--disable_eval_during_finetuning"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "out", *more)) == 0
    assert [row.number for row in stored(tmp_path / "out" / "bad_samples.csv")] == [3]
    assert "no sample of its batches can be read" in capsys.readouterr().out
    state = load(tmp_path / "out" / STATE)
    assert state["step"] == 4 and {float(part["step"]) for part in state["optimizer"]["state"].values()} == {3.0}
    more[more.index("--bad_share") + 1] = 0.1
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "other", *more)) == 2
    assert "raise --bad_share" in capsys.readouterr().err


def test_evaluation_counts_every_image_once(corpus: Path, whole, tmp_path: Path, capsys) -> None:
    more = ["--eval", "--resume", whole["run_class_finetuning"] / "checkpoint-1.pth"]
    more += ["--eval_data_path", corpus / "test" / "first", "--other_test_data_folders", "second", "third"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more)) == 0
    output = capsys.readouterr().out
    assert re.search(rf"\* {re.escape(str(corpus / 'test' / 'first'))}: 7 images, Acc \d\.\d{{4}} loss ", output)
    assert "third: no such set" in output
    assert re.search(r"on the 7 test images: \d+\.\d\d%\n", output)
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more, "--legacy-percent")) == 0
    assert re.search(r"on the 7 test images: [01]\.\d{4}%\n", capsys.readouterr().out)
    found = json.loads((tmp_path / "eval.json").read_text())
    assert [(entry["name"], entry["images"]) for entry in found["sets"]] == [("first", 7), ("second", 5)]
    assert set(found["totals"]) == {"2 sets, weighted", "2 sets, plain mean"}
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 13
    beam = tmp_path / "beam"
    assert run_class_finetuning.main(finetune(corpus, beam, *more, "--beam_width", 2)) == 0
    capsys.readouterr()


def test_shared_evaluation_equals_the_plain_one(corpus: Path, whole, tmp_path: Path) -> None:
    """Of a set whose first two pictures are broken, one on each rank, too."""
    sets = tmp_path / "sets"
    write_words(sets / "first", ["ab", "cat", "dog", "tea", "ice"])
    write_words(sets / "second", ["ab", "cat", "dog", "tea", "ice"], broken=[0, 1])
    more = ["--eval", "--resume", whole["run_class_finetuning"] / "checkpoint-1.pth"]
    more += ["--eval_data_path", sets / "first", "--other_test_data_folders", "second"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "one", *more)) == 0
    sets = json.loads((tmp_path / "one" / "eval.json").read_text())["sets"]
    assert [(entry["images"], entry["unreadable"]) for entry in sets] == [(5, 0), (3, 2)]
    done = run(*torchrun(), "projects/dig/run_class_finetuning.py", *finetune(corpus, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
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
    ("run_class_finetuning", ["--opt_betas", "0.9"], "--opt_betas"),
    ("run_mae_pretraining_moco", ["--opt_betas", "0.9", "1"], "--opt_betas"),
    ("run_class_finetuning", ["--drop", "1.5"], "--drop"),
    ("run_class_finetuning", ["--attn_drop_rate", "-1"], "--attn_drop_rate"),
    ("run_mae_pretraining_moco", ["--drop_path", "nan"], "--drop_path"),
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
    assert "foreign.pth: weights: " in error and all(
        word in error for word in ("needed tensors", "blocks.0.*", "head.bias")
    )


def test_windows_that_overlap_are_said(corpus: Path, tmp_path: Path, capsys) -> None:
    assert run_mae_pretraining_moco.main(pretrain(corpus, tmp_path, "--num_windows", 3, "--max_steps", 1)) == 0
    output = capsys.readouterr().out
    assert "windows overlap" in output and "no effect (accepted for compatibility): --moco_m_cos" in output


def test_accumulation_and_frozen_layers(corpus: Path, whole, tmp_path: Path) -> None:
    """`--fixed_encoder_layers 3`: the patch embedding and two blocks end as they began, all else moves."""
    pretrained = whole["run_mae_pretraining_moco"] / "checkpoint-1.pth"
    more = ["--update_freq", 2, "--fixed_encoder_layers", 3, "--epochs", 1, "--warmup_epochs", 0, "--smoothing", 0.1]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more, "--finetune", pretrained)) == 0
    state, began = load(tmp_path / STATE), load(pretrained)["model"]
    assert state["step"] == 2
    moved = {name for name, tensor in state["model"].items() if name in began and not torch.equal(tensor, began[name])}
    frozen = ("encoder.patch_embed.", "encoder.blocks.0.", "encoder.blocks.1.")
    taken = {name for name in state["model"] if name in began and name != "encoder.mask_token"}
    assert moved == {name for name in taken if not name.startswith(frozen)} and len(moved) < len(taken)


def test_long_last_word_under_the_published_items_is_refused(corpus: Path, tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "words", ["ab", "cat", "dog", "x" * 24])
    words = finetune(corpus, tmp_path / "out", "--data_path", tmp_path / "words", "--legacy-items")
    assert run_class_finetuning.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --legacy-items: ") and "words 4" in error and error.count("\n") == 1


def test_averages_of_the_named_benchmarks() -> None:
    def result(name: str, images: int, accuracy: float) -> evaluate.SetResult:
        words = evaluate.Words(labels=["a"] * images)
        return evaluate.SetResult(name, name, words, accuracy, 0.0, 0.0, (images, accuracy))

    eleven = [result(name, 10 * (i + 1), i / 10) for i, name in enumerate(evaluate.ELEVEN)]
    more = [result("iiit5k_3000", 10, 0.0), *eleven[1:], result("ic13_1015", 1000, 1.0)]  # another spelling and set
    totals = evaluate.totals(more)
    assert totals["eleven sets, weighted"] == pytest.approx(100 * sum(i * (i + 1) for i in range(11)) / 660)
    assert totals["eleven sets, plain mean"] == pytest.approx(50.0) and totals["six sets, plain mean"] == 25.0
    assert totals["12 sets, weighted"] > totals["eleven sets, weighted"]
    assert "eleven sets, weighted" not in evaluate.totals(eleven[1:])


def test_published_names_of_optimisers() -> None:
    for name, kind in (("fusedadam", torch.optim.Adam), ("fusedadamw", torch.optim.AdamW)):
        assert type(optimiser(name)) is kind
    assert [optimiser(name).defaults["nesterov"] for name in ("fusedsgd", "sgd", "fusedmomentum")] == [
        True,
        True,
        False,
    ]


def optimiser(name: str) -> torch.optim.Optimizer:
    weights = [{"params": [torch.nn.Parameter(torch.zeros(2))]}]
    return build_optimizer(weights, name, 0.1, eps=1e-8, betas=None, momentum=0.9)
