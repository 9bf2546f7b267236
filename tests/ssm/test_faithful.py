"""Pre-training and pixel tasks where no golden looks: draws of the augmentation, meters, data of segmentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.augment import recipes
from common.train.log import EpochLog
from projects.ssm.finetune.run import run
from projects.ssm.finetune.test import main as measure
from projects.ssm.pixel.data import evaluation_pairs, training_pairs
from projects.ssm.pretrain import collate
from projects.ssm.pretrain.data import build_dataset
from projects.ssm.pretrain.flags import parse
from projects.ssm.pretrain.sim_pretrain import main
from tests.common.lmdbs import encoded, noise
from tests.ssm.runs import configuration, pretrain, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


def twice(words: list[str]):
    """The augmentation that these flags choose."""
    o = parse(words)
    return build_dataset(o.data_path, tuple(o.input_size), o.max_length, o.parsed).twice


def drawn(corpus: Path, tmp_path: Path, *switches: str) -> list[list[str]]:
    """Names of the operations of 300 images under these switches."""
    augment = twice(pretrain(corpus, tmp_path, *switches))
    rng = np.random.default_rng(0)
    return [[operation.name for operation, _ in augment.plan(rng)] for _ in range(300)]


def test_weather_has_no_snow(corpus: Path, tmp_path: Path) -> None:
    found = {name for names in drawn(corpus, tmp_path, "--issel_aug", "--weather") for name in names}
    assert found == {"Fog", "Frost", "Rain", "Shadow"}
    assert "Snow" in {
        op.name for _ in range(99) for op, _ in recipes.selective(["weather"]).plan(np.random.default_rng(_))
    }


def test_random_augmentation_wins(corpus: Path, tmp_path: Path) -> None:
    both = drawn(corpus, tmp_path, "--isrand_aug", "--issemantic_aug")
    assert both == drawn(corpus, tmp_path, "--isrand_aug") != drawn(corpus, tmp_path, "--issemantic_aug")


def test_draws_of_the_random_augmentation(corpus: Path, tmp_path: Path) -> None:
    """Three different groups of seven, uniform; within a group uniform; no geometry (spec section 4.1)."""
    augment = twice(pretrain(corpus, tmp_path, "--isrand_aug"))
    rng, groups, magnitudes = np.random.default_rng(1), np.zeros(7), np.zeros(3)
    home = {op.name: number for number, group in enumerate(augment.groups) for op in group}
    for _ in range(2000):
        steps = list(augment.plan(rng))
        places = [home[op.name] for op, _ in steps]
        assert len(set(places)) == 3
        for place, (_, magnitude) in zip(places, steps):
            groups[place] += 1
            magnitudes[magnitude] += 1
    assert groups / 6000 == pytest.approx(np.full(7, 1 / 7), abs=0.02)
    assert magnitudes / 6000 == pytest.approx(np.full(3, 1 / 3), abs=0.03)
    assert not {"Rotate", "Perspective", "Shrink", "Snow"} & set(home)


def test_teacher_draws() -> None:
    """Angle within 10 degrees, no shift in x, 3 pixels at most in y, x shear always -25, a fifth grey (spec 3.3)."""
    found = [collate.teacher_parameters(seed, 32, 128) for seed in range(2000)]
    angles, moves = np.array([row.angle for row in found]), np.array([row.translate for row in found])
    shears = np.array([row.shear for row in found])
    assert np.abs(angles).max() <= 10 and angles.std() == pytest.approx(20 / 12**0.5, rel=0.05)
    assert not moves[:, 0].any() and set(moves[:, 1]) == set(range(-3, 4))
    assert (shears[:, 0] == -25).all() and np.abs(shears[:, 1]).max() <= 10
    assert np.mean([row.grey for row in found]) == pytest.approx(0.2, abs=0.03)


def test_meters_take_every_micro_batch(corpus: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from projects.ssm.pretrain import method

    losses: list[float] = []
    plain = method.objective

    def objective(*args, **options):
        found = plain(*args, **options)
        losses.append(float(found.total.detach()))
        return found

    monkeypatch.setattr(method, "objective", objective)
    assert main(pretrain(corpus, tmp_path, "--accum_iter", 2, "--epochs", 1)) == 0
    assert len(losses) == 4
    (row,) = map(json.loads, (tmp_path / "log.txt").read_text().splitlines())
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(np.mean(losses[:2]), rel=1e-5)


def test_console_lines(corpus: Path, tmp_path: Path, capsys) -> None:
    """Form and order of the published meters (spec section 2.1)."""
    assert main(pretrain(corpus, tmp_path, "--epochs", 1)) == 0
    lines = capsys.readouterr().out.splitlines()
    number = r"-?\d+\.\d{4} \(-?\d+\.\d{4}\)"
    meters = "  ".join(f"{name}: {number}" for name in ("mm", "loss_pix", "loss_feat_ratio", "loss_feat_cl", "loss"))
    form = (
        r"\[\d\d:\d\d:\d\d\.\d{6}\] Epoch: \[0\]  \[0/4\]  eta: \d:\d\d:\d\d  lr: \d\.\d{6}  "
        + meters + r"  time: \d+\.\d{4}  data: \d+\.\d{4}"
    )  # fmt: skip
    assert any(re.match(form, line) for line in lines), lines
    assert any(re.search(r"Epoch: \[0\] Total time: \d:\d\d:\d\d \(\d+\.\d{4} s / it\)$", line) for line in lines)
    assert any("] Averaged stats: lr: " in line for line in lines)
    (row,) = map(json.loads, (tmp_path / "log.txt").read_text().splitlines())
    names = ("lr", "mm", "loss_pix", "loss_feat_ratio", "loss_feat_cl", "loss")
    assert list(row) == [*(f"train_{name}" for name in names), "epoch"]


def test_meters_show_the_lower_median() -> None:
    log = EpochLog("Epoch: [0]", recent="median")
    for value in (4.0, 1.0, 3.0, 2.0):
        log.add(loss=value)
    assert "loss: 2.0000 (2.5000)" in log.line(3, 4)


def test_warm_up_of_the_whole_run(corpus: Path, tmp_path: Path) -> None:
    assert main(pretrain(corpus, tmp_path, "--epochs", 1, "--warmup_epochs", 1)) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] == 0
    assert main(pretrain(corpus, tmp_path, "--epochs", 1, "--warmup_epochs", 2)) == 2


def test_segmentation_trains_on_both_folders(tmp_path: Path, capsys) -> None:
    for part, count in (("train", 3), ("val", 2), ("other", 1)):
        for name in ("image", "mask"):
            (tmp_path / part / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / part / "image" / f"{i}.jpg").write_bytes(encoded(noise(i), "JPEG"))
            (tmp_path / part / "mask" / f"{i}_mask.jpg").write_bytes(encoded(noise(i), "JPEG"))
    pairs = training_pairs("Seg", str(tmp_path), (32, 128))
    assert len(pairs) == 5 and {path.parts[-3] for path, _ in pairs.files} == {"train", "val"}
    assert len(evaluation_pairs("Seg", str(tmp_path), str(tmp_path / "other"), (32, 128))) == 1
    assert len(evaluation_pairs("Seg", str(tmp_path), "", (32, 128))) == 2
    assert "which is trained on too" in capsys.readouterr().out


def test_averaged_weights_are_offered(corpus: Path, tmp_path: Path, capsys) -> None:
    run(configuration(corpus, "swa=true", "trainer.max_epochs=4"), tmp_path)
    average = tmp_path / "checkpoints" / "swa.ckpt"
    assert f"the averaged weights of the last epochs are in {average}" in capsys.readouterr().out
    words = ["--data_root", str(corpus), "--batch_size", "4", "--num_workers", "0", "--device", "cpu"]
    assert measure([str(average.with_name("last.ckpt")), *words]) == 0
    assert f"{average} holds the averaged weights" in capsys.readouterr().out
    assert measure([str(average), *words]) == 0
    assert "holds the averaged weights" not in capsys.readouterr().out
