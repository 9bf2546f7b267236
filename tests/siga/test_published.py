"""SIGA as published where no golden looks: masks, the overlap term, steps of validation, and the forms of its logs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from common.data.decode import resize_mask
from common.data.masks import fit_mask
from common.errors import UserError
from common.train.distributed import Dist
from common.train.loop import Clock
from common.train.state import TrainingState
from projects.siga import files, train
from projects.siga.evaluate import Evaluation, SetResult
from projects.siga.flags import Options, fractions, parse_training
from projects.siga.method import make_schedule
from projects.siga.model.build import build_siga
from projects.siga.test import log_text_t, published_row
from tests.siga.corpus import command, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def curves(folder: Path) -> dict[str, list[float]]:
    """The scalars in tensorboard's event files: records of a length, its checksum, an event and its checksum."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            for value in Event.FromString(data[at + 12 : at + 12 + size]).summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append(value.simple_value)
            at += 16 + size
    return found


def options_of(words: list[str]) -> Options:
    return parse_training(words)[0]


# ---- masks


def test_fractions_of_s_are_dropped_before_the_resize() -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((24, 60)) > 0.6).astype(np.float64)
    warped = (mask + np.roll(mask, 1, axis=1)) / 2  # every edge is a half
    whole = resize_mask((warped == 1).astype(np.int32), (48, 160))
    assert np.array_equal(fit_mask(warped, (48, 160), "integer"), whole > 0.5)
    assert fit_mask(warped, (48, 160), "integer").mean() < 0.8 * fit_mask(warped, (48, 160)).mean()
    soft = fit_mask(warped, (32, 128), "float")
    assert soft.dtype == np.float32 and np.array_equal(soft, resize_mask(warped, (32, 128)))


@pytest.mark.parametrize(
    ("model", "more", "dtype"),
    [
        ("TRBA_small", ["--Aug"], np.float32),
        ("TRBA_small", [], np.uint8),
        ("TSBA_small", ["--Aug"], np.uint8),
        ("char_str_small", ["--isrand_aug"], np.uint8),
    ],
)
def test_masks_travel_as_their_loss_cuts_them(model: str, more: list, dtype: type, corpus: Path, tmp_path: Path):
    """R's fractions reach the model, whose loss cuts them after the rectification; the others arrive as 0 and 1."""
    options = options_of(command(corpus, tmp_path, model, *more))
    batch = next(iter(train.training_loader(options, tmp_path, Dist())[0]))
    assert batch.masks.numpy().dtype == dtype
    values = set(np.unique(batch.masks.numpy()))
    assert (values <= {0, 1}) == (dtype == np.uint8)


def test_the_mask_is_cut_after_the_rectification() -> None:
    torch.manual_seed(0)
    model = build_siga("TRBA_small", batch_max_length=4)
    height, width = model.settings.image_size
    masks = torch.rand(2, 1, height, width)
    seen = model(torch.rand(2, 3, height, width), torch.zeros(2, 5, dtype=torch.long), masks).masks
    assert ((seen > 0.01) & (seen < 0.99)).float().mean() > 0.5


# ---- the overlap term


def test_s_averages_the_overlap_of_three_replicas() -> None:
    """One process of six words has the published value: the mean over three replicas of the sums over two words."""
    torch.manual_seed(0)
    model = build_siga("TSBA_small", batch_max_length=6).eval()
    height, width = model.settings.image_size
    images, masks = torch.rand(6, 3, height, width), (torch.rand(6, 1, height, width) > 0.5).float()
    text = torch.randint(1, 37, (6, 8))
    lengths = torch.tensor([3, 4, 5, 6, 7, 4])

    def cor(rows: slice, processes: int) -> float:
        output = model(images[rows], text[rows][:, :-1], masks[rows])
        return float(model.losses(output, text[rows], lengths[rows], 0, processes=processes).parts["cor"].detach())

    replicas = [cor(slice(start, start + 2), 0) for start in (0, 2, 4)]
    assert cor(slice(0, 6), 1) == pytest.approx(np.mean(replicas), rel=1e-4)
    three = [cor(slice(start, start + 2), 3) for start in (0, 2, 4)]
    assert three == pytest.approx(replicas)
    two = [cor(slice(start, start + 3), 2) for start in (0, 3)]
    assert np.mean(two) == pytest.approx(np.mean(replicas), rel=1e-4)


def test_r_sums_the_overlap_of_each_process() -> None:
    assert build_siga("TRBA_small").settings.loss.replicas == 0


# ---- data and schedule


def test_t_uses_the_first_part_of_each_source(corpus: Path, tmp_path: Path) -> None:
    words = command(corpus, tmp_path, "char_str_small", "--total_data_usage_ratio", "0.25")
    loader, per_epoch, about = train.training_loader(options_of(words), tmp_path, Dist())
    drawn = {int(index) for _, batch in zip(range(20), loader) for index in batch.indices}
    assert drawn == {*range(5), *range(20, 25)}, "five of the twenty words of each of MJ and ST"
    assert per_epoch == 3
    assert "num total samples of MJ: 20 x 0.25 (total_data_usage_ratio) = 5" in about.splitlines()
    for wrong in ("0", "2", "x"):
        with pytest.raises(UserError, match="--total_data_usage_ratio"):
            options_of([*words, "--total_data_usage_ratio", wrong])


@pytest.mark.parametrize("model", ["TRBA", "TSBA"])
def test_schedule_1_is_a_constant_rate(model: str) -> None:
    options = options_of(["--model_name", model, "--train_data", "data", "--schedule", "1", "--lr", "0.3"])
    rates = make_schedule(options.family, options.lr, 100, drops=options.drops)
    assert fractions(["1"]) == options.drops == [1.0] and {rates(step) for step in range(100)} == {0.3}


# ---- steps of validation


def test_t_validates_after_steps_1_and_5001() -> None:
    def due(model: str) -> list[int]:
        words = ["--model_name", model, "--train_data", "data", "--val_interval", "5000"]
        method, sets, clock = SimpleNamespace(dist=Dist()), {"SVT": None}, Clock(12_000)
        state, states = TrainingState(torch.nn.Linear(1, 1)), SimpleNamespace(bad=None)
        evaluation = train.jobs(options_of(words), Path(), method, sets, state, states, SimpleNamespace(record=None))[0]
        found = []
        for clock.step in range(1, 12_001):
            found += [clock.step] if evaluation.due(clock) else []
        return found

    assert due("SIGA_T") == [1, 5001, 10001, 12000]
    assert due("TRBA") == due("TSBA") == [5000, 10000, 12000]


# ---- forms of the logs


def evaluation() -> Evaluation:
    """Two sets of 8 and 2 words."""
    heads = {"TRBA": 3, "glyph": 4, "Iter": 5, "final": 6, "out": 7}
    first = SetResult(words=8, correct=6, ned=7.25, heads=dict(heads), loss=1.5, batches=1, seconds=0.016)
    second = SetResult(words=2, correct=1, ned=1.5, heads=dict.fromkeys(heads, 1), loss=0.5, batches=1, seconds=0.004)
    return Evaluation({"SVT": first, "CUTE80": second}, [("truth", "read", 0.5)])


def test_evaluation_file_of_r() -> None:
    assert files.evaluation_log(999, evaluation()) == (
        "-" * 80 + "\n"
        "iteration: 999 \n"
        "dataset: SVT accuracy: Share_pred: 75.000 language: 0.000 final: 0.000 \n"
        "dataset: CUTE80 accuracy: Share_pred: 50.000 language: 0.000 final: 0.000 \n"
        "total_accuracy: Share_pred: 70.000\tlanguage: 0.000\tfinal: 0.000\t\n"
    )


def test_training_log_of_t() -> None:
    lines = files.validation_block(5001, 10_000, 0.5, 12.0, 3.0, 80.0, evaluation()).splitlines()
    assert lines[0] == "[5001/10000] LR: 0.50000, Train loss: 12.00000, Valid loss: 1.00000, Elapsed_time: 3.00000"
    assert lines[1] == (
        "char_accuracy    : 40.000, bpe_accuracy     : 50.000, wp_accuracy      : 60.000, fused_accuracy   : 70.000, "
        "out_accuracy     : 80.000 "
    )
    assert lines[2] == "Best_accuracy    : 80.000" and lines[3] == "-" * 80


def test_line_of_the_test_script() -> None:
    """R prints a list of one dict; `norm_ED` is a sum."""
    assert published_row(evaluation().total) == {
        "name": "Share_pred1",
        "n_correct": 7,
        "norm_ED": 8.75,
        "accuracy": 70.0,
        "norm_ED_value": 0.875,
    }


def test_test_log_of_t() -> None:
    assert log_text_t(evaluation(), 124.584) == (
        "-" * 80 + "\n"
        "data 8\t char_Acc 50.000\t bpe_Acc 62.500\t wp_Acc 75.000\t fused_Acc 87.500" + "-" * 80 + "\n"
        "data 2\t char_Acc 50.000\t bpe_Acc 50.000\t wp_Acc 50.000\t fused_Acc 50.000" + "-" * 80 + "\n"
        "accuracy: \nchar_total_Acc:50.0\nbpe_total_Acc:60.0\nwp_total_Acc:70.0\nfused_total_Acc:80.0\n"
        "averaged_infer_time: 2.000\t# parameters: 124.584\n"
    )


def test_log_train_of_r(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--model_name", "TRBA"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert train.main(command(corpus, tmp_path, "TRBA_small", "--num_iter", 1)) == 0
    text = (tmp_path / "saved_models" / "run" / "log_train.txt").read_text()
    root, dashes = corpus / "training", "-" * 80
    assert text.startswith(
        "Command line input: CUDA_VISIBLE_DEVICES=0,1 python train.py --model_name TRBA\n"
        f"{dashes}\ndataset_root: {root}\nselect_data: ['MJ', 'ST']\nbatch_ratio: [0.5, 0.5]\n"
        f"{dashes}\ndataset_root:    {root}\t dataset: MJ\nsub-directory:\t/MJ\t num samples: 20\n"
        f"{dashes}\ndataset_root:    {root}\t dataset: ST\nsub-directory:\t/ST\t num samples: 20\n{dashes}\n"
    )
    assert f"\n{'-' * 12} Options {'-' * 13}\n" in text and text.endswith(f"\n{'-' * 39}\n")


def test_files_and_curves_of_t(corpus: Path, tmp_path: Path) -> None:
    words = command(corpus, tmp_path, "char_str_small", "--num_iter", 2, "--eval_data", corpus / "evaluation")
    assert train.main([*words, "--log_interval", "1"]) == 0
    root, dashes = corpus / "training", "-" * 80
    assert (
        (tmp_path / "saved_models" / "run-Seed1111" / "log_dataset.txt")
        .read_text()
        .startswith(
            f"{dashes}\ndataset_root: {root}\nopt.select_data: ['MJ', 'ST']\nopt.batch_ratio: ['0.5', '0.5']\n"
            f"{dashes}\n"
            f"dataset_root:    {root}\t dataset: MJ\nsub-directory:\t/MJ\t num samples: 20\n"
            "num total samples of MJ: 20 x 1.0 (total_data_usage_ratio) = 20\n"
            f"num samples of MJ per batch: 4 x 0.5 (batch_ratio) = 2\n{dashes}\n"
            f"dataset_root:    {root}\t dataset: ST\nsub-directory:\t/ST\t num samples: 20\n"
            "num total samples of ST: 20 x 1.0 (total_data_usage_ratio) = 20\n"
            f"num samples of ST per batch: 4 x 0.5 (batch_ratio) = 2\n{dashes}\nTotal_batch_size: 2+2 = 4\n{dashes}\n"
        )
    )
    points = curves(tmp_path / "tensorboard" / "run-Seed1111")
    value = {tag: values[0] for tag, values in points.items()}
    for name, terms in (
        ("loss_glyph", ("glyph1", "glyph2")),
        ("loss_Iter", ("iter1", "iter2")),
        ("Segmention_loss", ("low", "middle")),
        ("loss_final", ("share",)),
    ):
        assert value[name] == pytest.approx(sum(value[f"loss/{term}"] for term in terms), rel=1e-5), name
    assert {"loss_our", "loss_TRBA", "Pred_mask_loss", "Correct_Location", "lr", "accuracy"} <= set(value)
    assert len(points["accuracy"]) == 2, "after step 1, as published, and at the end"


def test_the_best_of_five_heads_is_the_accuracy_of_t(tmp_path: Path) -> None:
    """In TensorBoard; Share's own is 70."""
    assert evaluation().best_accuracy == 80.0 and evaluation().accuracy == 70.0
    written, clock = {}, Clock(10_000)
    clock.step = 5001
    log = SimpleNamespace(
        family="T", folder=tmp_path, lr=0.5, started=0.0, metrics=SimpleNamespace(write=lambda **row: None),
        state=SimpleNamespace(extra={"loss_sum": 6.0, "loss_count": 3, "best_accuracy": 80.0}),
        scalars=SimpleNamespace(
            scalar=lambda tag, value, step: written.update({tag: (step, value)}), flush=lambda: None
        ),
    )  # fmt: skip
    files.RunLog.record(log, clock, evaluation())
    assert written == {"accuracy": (5000, 80.0)}
