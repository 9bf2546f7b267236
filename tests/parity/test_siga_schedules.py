"""Learning rates of SIGA's three schedules, step by step, against the published ones."""

from __future__ import annotations

import json

import pytest
import torch

from projects.siga.flags import Options, parse_training
from projects.siga.method import make_optimizer, make_schedule, warm_cosine
from tests.parity import harness

ABSOLUTE = 1e-9
FAMILY = {"R": "TRBA", "S": "TSBA", "T": "SIGA_T"}


def tables(case: harness.Case) -> bool:
    rows = case.meta.values() if isinstance(case.meta, dict) else ()
    return any(isinstance(row, dict) and "lr_used_at_step" in row for row in rows)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases, goldens = [], metafunc.config.getoption("--goldens")
    for path in harness.cases_of(goldens, "siga", "*.json", tables):
        cases += [
            pytest.param(name, case, id=f"{path.stem}-{name}") for name, case in json.loads(path.read_text()).items()
        ]
    metafunc.parametrize(("name", "case"), cases)


def schedule_of(name: str, case: dict):
    """The training script's schedule for a case: R one-cycle, S cosine table, T cosine, by the letter before the
    underscore."""
    family = name[0]
    if family == "S":
        per_epoch = case.get("steps_per_epoch") or case["table_length"] // case["epochs"]
        return warm_cosine(case["base"], case["epochs"] * per_epoch, case["warmup_epochs"] * per_epoch, case["final"])
    options = options_of(family, *(["--scheduler"] if family == "T" else []))
    lr = case.get("max_lr", case.get("base"))
    total = case.get("total_steps") or case.get("table_length") or case["T_max"]
    return make_schedule(family, lr, total, cosine=options.scheduler, drops=options.drops)


def options_of(family: str, *more: str) -> Options:
    """The training script's options for a model of this family."""
    return parse_training(["--model_name", FAMILY[family], "--train_data", "data", *more])[0]


def test_learning_rate_of_every_step(name: str, case: dict) -> None:
    schedule = schedule_of(name, case)
    for step, expected in case["lr_used_at_step"].items():
        assert schedule(int(step)) == pytest.approx(expected, abs=ABSOLUTE, rel=0), f"{name}: step {step}"


def test_end_of_one_cycle(name: str, case: dict) -> None:
    """R: the published schedule's value after its last step. It raises one step later; our scripts end with it."""
    if "lr_after_last_step" not in case:
        pytest.skip("the case does not say how its schedule ends")
    schedule = schedule_of(name, case)
    assert schedule(case["total_steps"] - 1) == pytest.approx(case["lr_after_last_step"], abs=ABSOLUTE, rel=0)


def test_table_is_one_step_ahead(name: str, case: dict) -> None:
    """S: the published table's value n is what step n + 1 uses."""
    schedule = schedule_of(name, case)
    for index, expected in case.get("table", {}).items():
        assert (
            schedule(int(index) + 1) == pytest.approx(expected, abs=ABSOLUTE, rel=0)
            or int(index) + 1 >= case["table_length"]
        )


def test_script_uses_the_published_table(name: str, case: dict) -> None:
    """S: ten epochs, two of them warm-up, without further flags."""
    if name[0] != "S":
        pytest.skip("R and T take their whole schedule from make_schedule above")
    options = options_of("S")
    assert options.steps is None, "ten epochs"
    schedule, expected = make_schedule("S", options.lr, 5000), warm_cosine(options.lr, 5000, 1000)
    assert [schedule(step) for step in range(5000)] == [expected(step) for step in range(5000)]


def test_optimiser_has_the_published_numbers(name: str, case: dict) -> None:
    options = options_of(name[0])
    words = {"beta1": options.beta1, "rho": options.rho, "eps": options.eps}
    group = make_optimizer(torch.nn.Linear(2, 2), options.optimizer, options.lr, **words).param_groups[0]
    expected = {
        "R": {"lr": 0.00045, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0},
        "S": {"lr": 0.0005, "betas": (0.9, 0.99), "eps": 8e-8, "weight_decay": 0.05},
        "T": {"lr": 1.0, "rho": 0.95, "eps": 1e-8, "weight_decay": 0},
    }[name[0]]
    assert {key: group[key] for key in expected} == expected
