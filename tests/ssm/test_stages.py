"""Runs with stages (weight averaging, ABINet's joint training) resume exactly from any of their checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common.train.checkpoint import load
from projects.ssm.finetune.run import run
from projects.ssm.finetune.trainer import Checkpoints
from projects.ssm.model import abinet
from projects.ssm.model.abinet_reader import ABINet
from tests.common.compare import same
from tests.ssm.runs import configuration, write_corpus

AVERAGED = ("swa=true", "trainer.max_epochs=4")
CRNN = ("model._target_=projects.ssm.model.crnn.CRNN", "+model.hidden_size=16")  # batch norms: one more pass
EPOCH_ENDS = ("trainer.val_check_interval=3",)  # saved at the end of epochs too, not only after validation
SMALL_ABINET = (
    "model._target_=projects.ssm.model.abinet_reader.ABINet", "+model.v_num_layers=1", "+model.l_num_layers=1",
    "+model.d_inner=64", "+model.l_lr=1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(autouse=True)
def every_step_kept(monkeypatch) -> None:
    """Next to each `last.ckpt` a link named for its step, from which a killed run would resume."""
    plain = Checkpoints.save_newest

    def save(self, trainer) -> None:
        before = self.last_step
        plain(self, trainer)
        if self.last_step != before:
            os.link(Path(self.dirpath) / "last.ckpt", Path(self.dirpath) / f"at-{self.last_step}.ckpt")

    monkeypatch.setattr(Checkpoints, "save_newest", save)


def gone_on(corpus: Path, start: Path, out: Path, *overrides: str) -> Path:
    """The checkpoints of a run that continues from `start`."""
    folder = out / "checkpoints"
    folder.mkdir(parents=True)
    os.link(start, folder / "last.ckpt")
    run(configuration(corpus, *overrides, f"ckpt_path={folder}/last.ckpt"), out)
    return folder


def assert_equal(ours: Path, theirs: Path) -> None:
    one, other = load(ours), load(theirs)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(one.get(key), other.get(key), key)


@pytest.mark.parametrize(
    ("more", "stops", "second"),
    [((), (6, 10, 12, 16), (12, 14)), (EPOCH_ENDS, (8, 11, 12, 16), (12, 15)), (CRNN, (10, 16), ())],
    ids=["TransOCR", "TransOCR, ends of epochs", "CRNN"],
)
def test_averaging_goes_on_exactly(more, stops, second, corpus: Path, tmp_path: Path) -> None:
    more = [*AVERAGED, *more]
    run(configuration(corpus, *more), tmp_path / "whole")
    whole = tmp_path / "whole" / "checkpoints"
    # 4 steps an epoch, averaging from step 8 on: stopped before it, inside an epoch of it, at the end of one; twice
    first = {step: gone_on(corpus, whole / f"at-{step}.ckpt", tmp_path / f"{step}", *more) for step in stops}
    runs = [*first.values()]
    for step in second:
        start = next(folder for stop, folder in first.items() if stop > 8) / f"at-{step}.ckpt"
        runs.append(gone_on(corpus, start, tmp_path / f"again-{step}", *more))
    for folder in runs:
        assert_equal(folder / "last.ckpt", whole / "last.ckpt")
        assert_equal(folder / "swa.ckpt", whole / "swa.ckpt")
    rates = [load(whole / f"at-{step}.ckpt")["optimizer_states"][0]["param_groups"][0]["lr"] for step in (8, 12, 16)]
    assert len(set(rates)) == 3  # the phase has its own schedule, a step an epoch
    average, newest = (load(whole / name)["state_dict"] for name in ("swa.ckpt", "at-16.ckpt"))
    assert any(not torch.equal(average[key], newest[key]) for key in average)


def test_an_unfinished_average_is_not_written(corpus: Path, tmp_path: Path) -> None:
    run(configuration(corpus, *AVERAGED, "+trainer.max_steps=10"), tmp_path)
    assert not (tmp_path / "checkpoints" / "swa.ckpt").exists()


def test_alignment_begins_anew_once(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(abinet, "ResNet45", lambda: nn.Sequential(nn.Conv2d(3, 512, 4, 4), nn.BatchNorm2d(512)))
    plain, drawn = ABINet.first_alignment, []
    monkeypatch.setattr(ABINet, "first_alignment", lambda self: drawn.append(plain(self)) or drawn[-1])
    run(configuration(corpus, *SMALL_ABINET), tmp_path / "whole")
    assert len(drawn) == 1
    whole = tmp_path / "whole" / "checkpoints"
    for step, times in ((2, 1), (4, 1), (6, 0)):  # of 8 steps the first 4 are separate
        drawn.clear()
        folder = gone_on(corpus, whole / f"at-{step}.ckpt", tmp_path / f"{step}", *SMALL_ABINET)
        assert len(drawn) == times
        assert_equal(folder / "last.ckpt", whole / "last.ckpt")
    before, after = (load(whole / f"at-{step}.ckpt")["state_dict"]["model.alignment.cls.weight"] for step in (4, 6))
    assert torch.linalg.norm(after - before) > 0.3 * torch.linalg.norm(before)
