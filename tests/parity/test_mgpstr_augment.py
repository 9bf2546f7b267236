"""Every operation of the STR RandAugment family against the published pixels, draw by draw (numpy's legacy
generator).
"""

from __future__ import annotations

import numpy as np
import pytest

from common.augment import frost, randaugment
from tests.parity import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    if "plan_case" in metafunc.fixturenames:
        paths = harness.cases_of(goldens, "mgpstr", "*.json", harness.rows_with("groups", "seed", "rows"))
        loaded = [harness.load(path) for path in paths]
        plans = [(f"{case.name}-{plan['kind']}", plan) for case in loaded for plan in case.meta]
        metafunc.parametrize("plan_case", [plan for _, plan in plans], ids=[name for name, _ in plans])
        return
    rows = []
    for path in harness.case_files(goldens, "mgpstr"):
        meta = harness.load(path).meta
        if isinstance(meta, list) and meta and "op" in meta[0]:
            rows += [pytest.param(path, row, id=f"{path.stem}-{row['op']}-{row['mag']}") for row in meta]
    metafunc.parametrize(("path", "row"), rows)


def test_operation(path, row) -> None:
    case = harness.load(path)
    if row["op"] == "Frost" and frost.folder() is None:
        pytest.skip("the published frost pictures are not installed (pip install --no-deps straug)")
    rng = np.random.RandomState(row["seed"])
    operation = randaugment.OPERATIONS[row["op"]]
    actual = operation(case.arrays["input"], rng, row["mag"], preset=row.get("preset", "original")).astype(int)
    expected = case.arrays[f"{row['op']}_{row['mag']}"].astype(int)
    assert rng.uniform() == pytest.approx(row["next_uniform"], abs=1e-12), "another number of draws"
    if row["op"] == "ImpulseNoise":  # its pixels come from an unseeded generator
        changed, wanted = (actual != case.arrays["input"]).mean(), (expected != case.arrays["input"]).mean()
        assert changed == pytest.approx(wanted, abs=0.012)
        return
    difference = np.abs(actual - expected)
    assert (difference > 1).mean() <= 0.005, (
        f"{(difference > 1).mean():.2%} of the values off by more than 1, at most {difference.max()}"
    )
    assert difference.max() <= 2 or (difference > 2).mean() <= 0.005


def test_plans(plan_case) -> None:
    """The same stream of numbers chooses the same groups, operations and magnitudes, image after image."""
    augment = randaugment.RandAugment(plan_case["groups"], augs_num=plan_case.get("augs_num", 3))
    rng = np.random.RandomState(plan_case["seed"])
    for row in plan_case["rows"]:
        u = rng.uniform()
        assert u == pytest.approx(row["u"], abs=1e-12)
        steps = list(augment.plan(rng)) if u >= augment.intact_prob else []
        assert [[operation.name, magnitude] for operation, magnitude in steps] == [step[1:] for step in row["plan"]]
