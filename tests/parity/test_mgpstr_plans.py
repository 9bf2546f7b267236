"""What RandAugment draws, image after image, against the published order of draws (numpy's legacy generator)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.augment.recipes import rand_augment
from tests.parity import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "plans" in metafunc.fixturenames:
        rows = []
        goldens = metafunc.config.getoption("--goldens")
        for path in harness.cases_of(goldens, "mgpstr", "*.json", harness.rows_with("groups", "seed", "rows")):
            rows += [pytest.param(row, id=f"{path.stem}-{row['kind']}") for row in json.loads(path.read_text())]
        metafunc.parametrize("plans", rows)


def test_plans(plans) -> None:
    groups, rng = plans["groups"], np.random.RandomState(plans["seed"])
    number = max(len(row["plan"]) for row in plans["rows"])
    recipe = rand_augment(groups=[tuple(group) for group in groups], augs_num=number)
    for row in plans["rows"]:
        drawn = rng.uniform(0, 1)
        assert drawn == pytest.approx(row["u"], abs=1e-15)
        steps = list(recipe.plan(rng)) if row["plan"] else []
        assert [(operation.name, magnitude) for operation, magnitude in steps] == [(n, m) for _, n, m in row["plan"]]
        for (operation, _), (group, _, _) in zip(steps, row["plan"]):
            assert operation.name in groups[group]
