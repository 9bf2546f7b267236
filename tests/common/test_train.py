"""The training library: launch detection, schedules, groups, averages, meters, exact state."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.train import schedule
from common.train.distributed import Dist, Launch, detect_launch, setup_distributed, silence_print
from common.train.log import Meters, MetricsLog
from common.train.optim import Ema, NonFinite, Precision, build_optimizer, check_finite, ema_update, parameter_groups
from common.train.state import TrainingState, rng_state, seed_everything, set_rng_state


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Launch()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(3, 8, 1, "torchrun")),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, Launch(5, 6, 2, "slurm")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Launch()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, Launch(0, 4, 0, "slurm")),
        (
            {f"OMPI_COMM_WORLD_{name}": value for name, value in (("RANK", "1"), ("SIZE", "2"), ("LOCAL_RANK", "1"))},
            Launch(1, 2, 1, "mpi"),
        ),
    ],
)
def test_launch(env: dict, expected: Launch) -> None:
    assert detect_launch(env) == expected


def test_launch_takes_the_rank_of_the_old_launcher_and_refuses_nonsense() -> None:
    assert detect_launch({"RANK": "1", "WORLD_SIZE": "2"}, local_rank=0).local_rank == 0
    for env in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with pytest.raises(UserError, match="RANK"):
            detect_launch(env)


def test_a_batch_script_without_srun_is_refused_at_once() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
    with pytest.raises(UserError, match=r"SLURM reserved 4 tasks.*put `srun` before the command"):
        detect_launch(batch)
    mpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
    assert detect_launch(batch | mpi) == Launch(2, 4, 2, "mpi")
    daemon = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}  # by which mpirun starts on a second node
    assert detect_launch(daemon | mpi) == Launch(2, 4, 2, "mpi")


def test_absent_cuda_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        setup_distributed("cuda")
    with pytest.raises(UserError, match="is no device"):
        setup_distributed("gpu7")


def test_silenced_print(capsys) -> None:
    silence_print(True)
    print("hidden")
    print("shown", force=True)  # type: ignore[call-overload]
    silence_print(False)
    assert capsys.readouterr().out == "shown\n"


def test_one_cycle_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=57, pct_start=0.2, div_factor=7, final_div_factor=50, cycle_momentum=False
    )
    ours = schedule.one_cycle(0.3, 57, pct_start=0.2, div_factor=7, final_div_factor=50)
    for step in range(57):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        if step < 56:
            optimizer.step()
            theirs.step()
    assert ours(100) == ours(56)


def test_other_schedules() -> None:
    assert schedule.step_decay(1.0, [3, 6], 0.1)(3) == pytest.approx(0.1)
    assert schedule.cosine_restarts(1.0, 10)(10) == 1.0
    assert schedule.warmup_cosine(2.0, 10, 4)(2) == 1.0
    assert schedule.momentum_cosine(0.9, 10)(0) == pytest.approx(0.9)
    assert schedule.momentum_cosine(0.9, 10)(10) == 1.0
    with pytest.raises(ValueError, match="warm-up"):
        schedule.warmup_cosine_table(1.0, 0.0, 5, 6)


def test_groups_by_layer_and_decay() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["a"].weight.requires_grad_(False)
    groups = parameter_groups(
        model.named_parameters(), 0.05, layer_of=lambda name: int(name[0] == "b"), layers=1, layer_decay=0.5
    )
    assert [(g["group_name"], g["weight_decay"], g["lr_scale"], g["names"]) for g in groups] == [
        ("layer_0_no_decay", 0.0, 0.5, ["a.bias"]),
        ("layer_1_decay", 0.05, 1.0, ["b.weight"]),
        ("layer_1_no_decay", 0.0, 1.0, ["b.bias"]),
    ]
    optimizer = build_optimizer("AdamW", groups, 0.1)
    schedule.set_learning_rate(optimizer, 0.2, weight_decay=0.3)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.1, 0.0), (0.2, 0.3), (0.2, 0.0)]
    with pytest.raises(UserError, match="lion"):
        build_optimizer("lion", groups, 0.1)


def test_ema() -> None:
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    ema_update(averaged, current, 0.75)
    assert torch.allclose(averaged[0], torch.full((3,), 0.25))
    model = torch.nn.BatchNorm1d(2)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    ema.update(model)
    assert ema.values["weight"].tolist() == [2.0, 2.0] and int(ema.values["num_batches_tracked"]) == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_stops_and_lists_the_batch(value: float, tmp_path) -> None:
    with pytest.raises(NonFinite, match="step 3: loss is"):
        check_finite(torch.tensor(value), step=3, batch_ids=torch.tensor([4, 2]), folder=tmp_path)
    assert json.loads((tmp_path / "non_finite_3.json").read_text())["batch"] == [4, 2]
    check_finite(1.0, step=3)


def test_precision_refuses_what_cannot_be() -> None:
    with pytest.raises(UserError, match="fp16 needs"):
        Precision("fp16", torch.device("cpu"))
    with pytest.raises(UserError, match="--amp"):
        Precision("fp8", torch.device("cpu"))


@pytest.mark.parametrize("turn", [1, 2])
def test_tests_do_not_depend_on_what_was_drawn_before(turn: int) -> None:
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    seed_everything(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


def test_generators_go_on() -> None:
    seed_everything(7)
    state = rng_state()
    first = random.random(), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()
    set_rng_state(state)
    assert first == (random.random(), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist())


def train(state: TrainingState, steps: int) -> None:
    for _ in range(steps):
        state.optimizer.zero_grad()
        torch.nn.functional.dropout(state.model(torch.randn(4, 3)), 0.5).square().sum().backward()
        state.optimizer.step()
        state.parts["ema"].update(state.model)
        state.step += 1


def fresh(name: str) -> TrainingState:
    seed_everything(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    return TrainingState(model, build_optimizer(name, model.parameters(), 0.01), {"ema": Ema(model, 0.9)}, {"lr": 0.01})


@pytest.mark.parametrize("name", ["adam", "adamw", "adadelta", "sgd", "radam"])
def test_state_goes_on_exactly(name: str, tmp_path) -> None:
    whole, part = fresh(name), fresh(name)
    train(part, 3)
    part.extra["best"] = 0.5
    part.save(tmp_path / "s.pth", Dist())
    whole = fresh(name)
    train(whole, 6)
    resumed = fresh(name).resume(tmp_path / "s.pth", Dist())
    assert resumed.step == 3 and resumed.extra["best"] == 0.5
    train(resumed, 3)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
        assert torch.equal(whole.parts["ema"].values[key], resumed.parts["ema"].values[key]), key


def test_state_of_another_model_is_one_line(tmp_path) -> None:
    fresh("adam").save(tmp_path / "s.pth", Dist())
    other = TrainingState(torch.nn.Linear(9, 9))
    with pytest.raises(UserError, match="model: ") as met:
        other.resume(tmp_path / "s.pth", Dist())
    assert "\n" not in str(met.value)
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not a training state"):
        other.resume(tmp_path / "w.pth", Dist())


def test_meters() -> None:
    meters = Meters(window=3)
    for step in (2, 3, 4):
        meters.add(loss=torch.tensor(float(step)))
        meters.count(4, 0.0)
    assert meters["loss"].mean == 3.0 and meters["loss"].overall == 3.0 and meters.images == 12
    assert meters.line(5, 10).startswith("[ 5/10]  loss 3  ")
    assert math.isnan(meters["nothing"].mean)


def test_metrics_log_drops_what_is_done_again(tmp_path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write(step=step, loss=torch.tensor(0.5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    MetricsLog(tmp_path / "metrics.jsonl", resume_step=2).write(step=3, loss=1.0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[-1]["loss"] == 1.0
