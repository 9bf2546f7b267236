"""DiG's two scripts: files, logs, exact resuming, two processes, kill -9, evaluation, refusals."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from common.data.bad import stored
from common.data.loader import epoch_order
from common.train.checkpoint import load
from projects.dig import evaluate, run_class_finetuning, run_mae_pretraining_moco
from projects.dig.optim import build_optimizer
from tests.common.compare import same
from tests.common.lmdbs import write_words
from tests.dig.runs import finetune, pretrain, start, write_corpus

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
    text = (out / "screen.txt").read_text()
    assert "/checkpoint-1.pth:\nkept       55 tensors  encoder." in text and "new" in text and "dropped" in text
    assert text.count(": all 10 labels are within the charset") == 1 and ": all 6 labels are within" in text
    plan = ["LR = 0.00000156", "Batch size = 4", "Update frequent = 1", "Number of training examples = 16"]
    assert "\n".join([*plan, "Number of training training per epoch = 4"]) in text
    meters = [rf"{name}: \d+\.\d{{4}} \(\d+\.\d{{4}}\)" for name in ("loss", "acc", "recognition_fmeasure")]
    assert re.search(rf"Test:  \[0/2\]  eta: 0:00:00  {'  '.join(meters)}  time: ", text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_resumes_exactly_inside_an_epoch(script: str, corpus: Path, whole, tmp_path: Path) -> None:
    main, words = SCRIPTS[script]
    more = ["--log_dir", tmp_path / "board"]
    if script == "run_class_finetuning":
        pretrained = whole["run_mae_pretraining_moco"] / "checkpoint-1.pth"
        more = ["--finetune", pretrained, "--model_ema"]
    for stop in (3, 4, 6):  # an epoch has four steps
        assert main(words(corpus, tmp_path / "out", "--max_steps", stop, *more)) == 0
        assert load(tmp_path / "out" / STATE)["step"] == stop
    assert main(words(corpus, tmp_path / "out", *more)) == 0
    for key in ("model", "optimizer", "epoch", "scaler"):
        same(load(tmp_path / "out" / "checkpoint-1.pth")[key], load(whole[script] / "checkpoint-1.pth")[key], key)
    same(rows(tmp_path / "out"), rows(whole[script]))
    ours, theirs = (timeless(folder) for folder in (tmp_path / "out", whole[script]))
    same(ours, theirs)
    assert [row["step"] for row in ours] == {"run_class_finetuning": [1, 4, 8]}.get(script, [1])
    if script == "run_class_finetuning":
        assert [row["step"] for row in ours if "accuracy" in row] == [4, 8]
        assert json.loads((tmp_path / "out" / "checkpoint-1.pth.json").read_text())["step"] == 8


def timeless(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without what a clock has measured."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found[0]["data_wait"] >= 0 and found[0]["images_per_second"] >= 0
    return [{name: row[name] for name in row if name not in ("data_wait", "images_per_second")} for row in found]


def test_validates_and_saves_inside_an_epoch_by_steps_done(corpus: Path, tmp_path: Path) -> None:
    more = ["--epochs", 1, "--batch_size", 1, "--warmup_epochs", 0, "--eval_freq", 1, "--max_steps", 10]
    assert run_class_finetuning.main(finetune(corpus, tmp_path, *more)) == 0
    assert [row["step"] for row in timeless(tmp_path) if "accuracy" in row] == list(range(1, 11))
    assert json.loads((tmp_path / "checkpoint-0_10.pth.json").read_text())["step"] == 10


def test_left_at_the_end_of_an_epoch_without_checkpoints(corpus: Path, tmp_path: Path, capsys) -> None:
    """--no_save_ckpt writes no state by itself; a run that is asked to leave does."""
    words = finetune(corpus, tmp_path, "--no_save_ckpt", "--disable_eval_during_finetuning")
    assert run_class_finetuning.main([*words, "--max_steps", "4"]) == 0
    assert "stopped after saving its state" in capsys.readouterr().out
    assert load(tmp_path / STATE)["step"] == 4
    assert run_class_finetuning.main(words) == 0
    assert "epoch 1, step 0 of 4" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """240 words, of which the first, second and last pictures of epoch 0 are broken: 1-based numbers in this order."""
    order = epoch_order(240, 0, 0, True)
    broken = [int(order[i]) for i in (0, 1, -1)]
    root = tmp_path_factory.mktemp("wounded")
    write_words(root / "two", [f"w{i}" for i in range(240)], broken=broken[::2])
    write_words(root / "both", [f"w{i}" for i in range(240)], broken=broken[:2])
    return root, [number + 1 for number in broken]


def listed(folder: Path) -> list[int]:
    """The numbers in the list of bad samples."""
    return [row.number for row in stored(folder / "bad_samples.csv")]


def test_a_resumed_run_keeps_its_bad_samples(wounded, corpus: Path, tmp_path: Path) -> None:
    root, broken = wounded
    more = ["--data_path", root / "two", "--epochs", 1, "--warmup_epochs", 0, "--batch_size", 60]
    words = finetune(corpus, tmp_path, *more, "--disable_eval_during_finetuning")
    assert run_class_finetuning.main([*words, "--max_steps", "2"]) == 0
    assert listed(tmp_path) == broken[:1]
    assert run_class_finetuning.main(words) == 0
    assert listed(tmp_path) == sorted(broken[::2])
    assert run_class_finetuning.main([*words, "--no_auto_resume", "--max_steps", "1"]) == 0
    assert listed(tmp_path) == broken[:1]


def test_bad_samples_of_all_processes_are_listed(wounded, corpus: Path, tmp_path: Path) -> None:
    """The first picture is rank 0's, the second rank 1's."""
    root, broken = wounded
    more = ["--data_path", root / "both", "--epochs", 1, "--warmup_epochs", 0, "--batch_size", 30]
    run = start("run_class_finetuning", finetune(corpus, tmp_path, *more), processes=2)
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output
    assert listed(tmp_path) == sorted(broken[:2])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_batch_without_a_readable_picture_on_one_of_two_processes(script: str, corpus: Path, tmp_path: Path) -> None:
    """120 words, one unreadable, batches of one: the other process used to wait for ever at the end of the epoch."""
    _, words = SCRIPTS[script]
    write_words(tmp_path / "words", [f"w{i}" for i in range(120)], broken=[40])
    more = ["--batch_size", 1, "--epochs", 1, "--warmup_epochs", 0, "--warmup_steps", 0]
    flag = "--data_path" if script == "run_class_finetuning" else "--image_alone_path"
    run = start(script, words(corpus, tmp_path / "out", *more, flag, tmp_path / "words"), processes=2)
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output
    assert listed(tmp_path / "out") == [41]
    assert load(tmp_path / "out" / STATE)["step"] == 60 and (tmp_path / "out" / "checkpoint-0.pth").exists()


def test_a_batch_without_a_readable_picture_in_one_process(corpus: Path, tmp_path: Path, capsys) -> None:
    """The step is counted, nothing is stepped, and a line says so."""
    write_words(tmp_path / "words", ["ab", "cat", "dog", "tea"], broken=[2])
    more = ["--batch_size", 1, "--epochs", 1, "--warmup_epochs", 0, "--bad_share", 0.5]
    more += ["--data_path", tmp_path / "words", "--disable_eval_during_finetuning"]
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "out", *more)) == 0
    assert listed(tmp_path / "out") == [3] and "no sample of its batches can be read" in capsys.readouterr().out
    state = load(tmp_path / "out" / STATE)
    assert state["step"] == 4 and {float(part["step"]) for part in state["optimizer"]["state"].values()} == {3.0}
    more[more.index("--bad_share") + 1] = 0.1
    assert run_class_finetuning.main(finetune(corpus, tmp_path / "other", *more)) == 2
    assert "raise --bad_share" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_with_two_processes_and_started_again(script: str, corpus: Path, tmp_path: Path) -> None:
    _, words = SCRIPTS[script]
    command = words(corpus, tmp_path, "--batch_size", 2, "--state_steps", 1, "--epochs", 200, "--save_ckpt_freq", 500)
    run = start(script, command, processes=2, start_new_session=True)
    deadline = time.monotonic() + 900
    while not (tmp_path / STATE).exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    kill_group(run)
    before = load(tmp_path / STATE)
    assert before["world_size"] == 2
    after = start(script, [*command, "--max_steps", str(before["step"] + 2)], processes=2)
    output, _ = after.communicate(timeout=900)
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
    psutil.wait_procs(children, timeout=900)
    run.stdout.close()


def test_terminated_run_saves_and_leaves(corpus: Path, tmp_path: Path) -> None:
    endless = ["--epochs", 5000, "--save_ckpt_freq", 9999, "--eval_freq", 9999, "--disable_eval_during_finetuning"]
    run = start("run_class_finetuning", finetune(corpus, tmp_path, *endless))
    deadline = time.monotonic() + 900
    while not (tmp_path / STATE).exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output
    assert "run the same command to resume" in output
    assert load(tmp_path / STATE)["step"] > 0


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
    run = start("run_class_finetuning", finetune(corpus, tmp_path / "two", *more), processes=2)
    output, _ = run.communicate(timeout=900)
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
