"""ABINet under the published optimizer: AdamW's default decay on everything, the language model's own rate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from common.train.checkpoint import load
from projects.ssm.finetune.run import build, run
from projects.ssm.model import abinet
from tests.ssm.runs import configuration, write_corpus

SMALL = (
    "model._target_=projects.ssm.model.abinet_reader.ABINet", "+model.v_num_layers=1", "+model.l_num_layers=1",
    "+model.d_inner=64", "+model.d_model=512", "+model.l_lr=1e-2", "model.lr=2e-2", "model.dropout=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(autouse=True)
def small_network(monkeypatch) -> None:
    monkeypatch.setattr(abinet, "ResNet45", lambda: nn.Sequential(nn.Conv2d(3, 512, 4, 4), nn.BatchNorm2d(512)))


@pytest.fixture
def seen(monkeypatch) -> list[dict]:
    """Rates, decays, gradients and weights at every step of the optimizer, in its own order."""
    rows: list[dict] = []
    plain = torch.optim.AdamW.step

    def step(self, closure=None):
        before = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]
        loss = closure() if closure is not None else None
        gradients = [
            [None if p.grad is None else p.grad.clone() for p in group["params"]] for group in self.param_groups
        ]
        plain(self)
        rows.append({
            "lr": [group["lr"] for group in self.param_groups], "decay": [g["weight_decay"] for g in self.param_groups],
            "before": before, "gradients": gradients,
            "after": [[p.detach().clone() for p in group["params"]] for group in self.param_groups],
        })  # fmt: skip
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return rows


def test_two_steps(corpus: Path, tmp_path: Path, seen: list[dict]) -> None:
    run(configuration(corpus, *SMALL, "+trainer.max_steps=2", "trainer.gradient_clip_val=0"), tmp_path)
    assert len(seen) == 2 and seen[0]["decay"] == [0.01, 0.01, 0.01]
    moments: dict[tuple[int, int], tuple] = {}
    for number, row in enumerate(seen, start=1):
        assert row["lr"][2] == pytest.approx(row["lr"][0] / 2)
        for part, (lr, before, gradients, after) in enumerate(
            zip(row["lr"], row["before"], row["gradients"], row["after"])
        ):
            for index, (old, gradient, new) in enumerate(zip(before, gradients, after)):
                first, second = moments.get((part, index), (torch.zeros_like(old), torch.zeros_like(old)))
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
                moments[part, index] = (first, second)
                move = first / (1 - 0.9**number) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
                torch.testing.assert_close(new, old * (1 - lr * 0.01) - lr * move, rtol=1e-4, atol=1e-6)


def test_the_language_model_keeps_its_rate(corpus: Path, tmp_path: Path, seen: list[dict]) -> None:
    run(configuration(corpus, *SMALL), tmp_path)
    assert len(seen) == 8  # the last four are joint
    for row in seen:
        assert row["lr"][2] == pytest.approx(row["lr"][0] / 2) == pytest.approx(row["lr"][1] / 2)


def test_the_language_model_alone(corpus: Path, tmp_path: Path, seen: list[dict], monkeypatch) -> None:
    truths = []
    read = abinet.Language.forward
    monkeypatch.setattr(abinet.Language, "forward", lambda self, t, n: truths.append(t.detach()) or read(self, t, n))
    monkeypatch.setattr(abinet.Vision, "forward", lambda *_: pytest.fail("the language model needs no image"))
    run(configuration(corpus, *SMALL, "+model.lm_only=true", "trainer.max_epochs=1"), tmp_path)
    assert all(bool(((tokens == 0) | (tokens == 1)).all()) for tokens in truths)  # one-hot rows of the truth
    content = load(tmp_path / "checkpoints" / "last.ckpt")
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert group["max_lr"] == pytest.approx(2e-2 * 4 / 256) and group["weight_decay"] == 0.01  # l_lr = lr
    assert any("vision" in name for name in content["state_dict"])


def test_weight_decay_that_is_given(tmp_path: Path, corpus: Path) -> None:
    system = build(configuration(corpus, *SMALL, "model.weight_decay=0.05"), tmp_path)
    groups = system.parameter_groups(1.0)
    decays = {(group["part"], group["group_name"]): group["weight_decay"] for group in groups}
    assert decays["language", "decay"] == 0.05 and decays["vision", "no_decay"] == 0
    undecayed = [name for group in groups if group["weight_decay"] == 0 for name in group["names"]]
    assert "model.language.proj.weight" in undecayed and math.isfinite(decays["alignment", "decay"])


def test_the_rate_counts_the_devices_of_a_node(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    import lightning.pytorch as pl

    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 4))  # two nodes of two
    monkeypatch.setattr(pl.Trainer, "num_devices", property(lambda self: 2))
    monkeypatch.setattr(pl.Trainer, "estimated_stepping_batches", property(lambda self: 10))
    options = configuration(corpus)
    system = build(options, tmp_path)
    system.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    found = system.configure_optimizers()["lr_scheduler"]["scheduler"]
    peak = found.optimizer.param_groups[0]["max_lr"]
    assert peak == pytest.approx(math.sqrt(2) * options.model["batch_size"] / 256 * options.model["lr"])
