"""Fine-tuning resumes by the same command, loses no state, and says what cannot be continued."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from common.errors import UserError
from common.files import TEMPORARY
from common.train.checkpoint import load
from common.train.session import LOCK, take_lock
from projects.ssm.finetune.method import OneCycle
from projects.ssm.finetune.run import run
from tests.common.compare import same
from tests.ssm.runs import configuration, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(configuration(corpus), out)
    return out / "checkpoints"


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """A run's folder in which `last.ckpt` is that of the first validation."""
    (tmp_path / "checkpoints").mkdir()
    first = min(whole.glob("epoch=*.ckpt"), key=lambda path: load(path)["global_step"])
    shutil.copy(first, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def test_the_same_command_resumes(corpus: Path, whole: Path, stopped: Path, capsys) -> None:
    debris = stopped / "checkpoints" / f"last.ckpt{TEMPORARY}999999999-1"
    debris.write_bytes(b"half")
    run(configuration(corpus), stopped)
    ours, theirs = load(stopped / "checkpoints" / "last.ckpt"), load(whole / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(ours[key], theirs[key], key)
    assert "resuming from" in capsys.readouterr().out and not debris.exists()


def test_a_finished_run_is_left_as_it_is(corpus: Path, whole: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    last = tmp_path / "checkpoints" / "last.ckpt"
    before, weights = last.stat().st_mtime_ns, load(last)["state_dict"]
    trainer = run(configuration(corpus), tmp_path)
    assert trainer.global_step == 8 and last.stat().st_mtime_ns == before
    same(load(last)["state_dict"], weights)
    assert "nothing was trained: the run has done its 8 steps" in capsys.readouterr().out


def test_two_runs_in_one_folder(corpus: Path, stopped: Path) -> None:
    take_lock(stopped / LOCK)
    with pytest.raises(UserError, match=f"process {os.getpid()} of another run writes there"):
        run(configuration(corpus), stopped)
    assert load(stopped / "checkpoints" / "last.ckpt")["global_step"] == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["resume=false"], "resume=false: .* holds a run already"),
        (["model.lr=1e-3"], r"model\.lr: 0\.016 -> 0\.001"),
        (["data.augment=true"], r"data\.augment: False -> True"),
        (["+trainer.accumulate_grad_batches=2"], r"trainer\.accumulate_grad_batches: None -> 2"),
        (["seed=3"], "seed: 0 -> 3"),
    ],
)
def test_what_cannot_be_continued(corpus: Path, stopped: Path, more: list[str], told: str) -> None:
    last = stopped / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(UserError, match=told):
        run(configuration(corpus, *more), stopped)
    assert last.read_bytes() == before


def test_changed_values_on_request(corpus: Path, stopped: Path, capsys) -> None:
    run(configuration(corpus, "model.lr=3e-2", "allow_changes=true"), stopped)
    assert "allow_changes: model.lr: 0.016 -> 0.03" in capsys.readouterr().out
    (group,) = load(stopped / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["max_lr"] == pytest.approx(3e-2 * 4 / 256)


@pytest.mark.parametrize("explicit", [True, False])
def test_more_epochs(corpus: Path, whole: Path, tmp_path: Path, capsys, explicit: bool) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    path = [f"ckpt_path={tmp_path}/checkpoints/last.ckpt"] if explicit else []
    trainer = run(configuration(corpus, "trainer.max_epochs=4", *path), tmp_path)
    assert trainer.global_step == 16
    assert "follows the schedule of 16 steps" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row][-1] == 16
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    schedule, peak = OneCycle(optimizer, [1.6e-2 * 4 / 256], 16, 0.075), []
    for _ in range(16):
        optimizer.step()
        schedule.step()
        peak.append(optimizer.param_groups[0]["lr"])
    (group,) = load(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["max_lr"] == pytest.approx(1.6e-2 * 4 / 256) and group["lr"] == pytest.approx(peak[-1], rel=1e-3)


def test_more_epochs_while_averaging(corpus: Path, tmp_path: Path) -> None:
    run(configuration(corpus, "swa=true", "trainer.max_epochs=4"), tmp_path)
    with pytest.raises(UserError, match=r"trainer\.max_epochs: the weights of .* are being averaged"):
        run(configuration(corpus, "swa=true", "trainer.max_epochs=8"), tmp_path)


def test_a_damaged_state_is_not_overwritten(corpus: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    last = tmp_path / "checkpoints" / "last.ckpt"
    os.truncate(last, 1000)
    with pytest.raises(UserError, match=r"last\.ckpt: truncated .*ckpt_path=.*/epoch=.*\.ckpt"):
        run(configuration(corpus), tmp_path)
    assert last.stat().st_size == 1000


class Counter(Callback):
    """A callback that a configuration names."""

    steps = 0

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def on_train_batch_end(self, *_) -> None:
        Counter.steps += self.amount


def test_trainer_parameters_of_the_command_line(corpus: Path, tmp_path: Path) -> None:
    Counter.steps = 0
    here = f"{Counter.__module__}.Counter"
    trainer = run(
        configuration(
            corpus, "trainer.max_epochs=1", f"+trainer.callbacks=[{{_target_: {here}, amount: 3}}]",
            f"+trainer.logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '{tmp_path}/csv'}}",
            "+trainer.plugins=[{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]",
        ),
        tmp_path,
    )  # fmt: skip
    assert Counter.steps == 12
    assert any(isinstance(logger, CSVLogger) for logger in trainer.loggers)
    assert (tmp_path / "checkpoints" / "last.ckpt.json").is_file()  # its own checkpoint files stay
    assert list((tmp_path / "csv").rglob("metrics.csv")) and list(tmp_path.glob("events.out.*"))


def test_no_logger(corpus: Path, tmp_path: Path) -> None:
    run(configuration(corpus, "trainer.max_epochs=1", "+trainer.logger=false"), tmp_path)
    assert not list(tmp_path.glob("events.out.*"))
    with pytest.raises(UserError, match="trainer: "):
        run(configuration(corpus, "+trainer.callbacks=[{_target_: nowhere.Nothing}]"), tmp_path / "other")
