"""SSM's superimposition of views and its resizes against the published code."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from common.data.decode import resize_bicubic
from projects.ssm.pretrain import collate
from tests.parity import harness, recipes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = [harness.load(path) for path in harness.case_files(metafunc.config.getoption("--goldens"), "ssm")]
    if "collated" in metafunc.fixturenames:
        chosen = [case for case in cases if "teacher_mix" in case.arrays]
        metafunc.parametrize("collated", chosen, ids=[case.name for case in chosen])
    if "resized" in metafunc.fixturenames:
        chosen = [case for case in cases if "pre0" in case.arrays]
        metafunc.parametrize("resized", chosen, ids=[case.name for case in chosen])
    if "table" in metafunc.fixturenames:
        tables = [
            harness.load(path) for path in harness.case_files(metafunc.config.getoption("--goldens"), "ssm", "*.json")
        ]
        chosen = [case for case in tables if isinstance(case.meta, dict) and "affine_table" in case.meta]
        metafunc.parametrize("table", chosen, ids=[case.name for case in chosen])


def _goldens(request: pytest.FixtureRequest):
    return harness.fill(request.config.getoption("--goldens"))


def test_collate(collated: harness.Case, request: pytest.FixtureRequest) -> None:
    meta = collated.meta
    pixels = np.round(recipes.picture(_goldens(request), meta["inputs"])).astype(np.uint8).transpose(0, 2, 3, 1).copy()
    first = int(recipes.number(r"N\.\.", str(meta.get("positions", "0..")), 0))
    seeds = np.arange(first, first + len(pixels))
    batch = collate.superimpose(torch.from_numpy(pixels), torch.from_numpy(pixels), np.array(meta["neg"]), seeds)
    actual = {
        "flipped": batch.student_flipped,
        "student_mix": batch.student_mix,
        "teacher_ori": batch.teacher,
        "teacher_flipped": batch.teacher_flipped,
        "teacher_mix": batch.teacher_mix,
    }
    for key, expected in collated.arrays.items():
        difference = np.abs(harness.to_numpy(actual[key])[recipes.steps(meta["note"])] - expected)
        assert difference.shape == expected.shape
        assert (difference > 1e-6).sum() <= 6, f"{key}: {(difference > 1e-6).sum()} values differ"


def test_teacher_table(table: harness.Case) -> None:
    for position, angle, tx, ty, scale, shear_x, shear_y, grey in table.meta["affine_table"]["rows"]:
        given = collate.teacher_parameters(position, 32, 128)
        expected = (angle, tx, ty, scale, shear_x, shear_y)
        assert (given.angle, *given.translate, 1.0, *given.shear) == pytest.approx(expected, abs=1e-4)
        assert given.grey == grey


def test_resizes(resized: harness.Case, request: pytest.FixtureRequest) -> None:
    recipe = resized.meta["inputs"]
    # image k: round(images('…<k>',(h//4+1,w//4+1,3),0,255)) uint8, repeated 4x4, cropped to (h,w); sizes [(48, 160), …]
    name, rows, columns, low, high = re.search(
        r"images\('([^']+)<k>',\(h//(\d+)\+1,w//(\d+)\+1,3\),([-\d.]+),([-\d.]+)\)", recipe
    ).groups()
    rows, columns = int(rows), int(columns)
    sizes = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", recipe.split("sizes")[1])]
    for k, (height, width) in enumerate(sizes):
        shape = (height // rows + 1, width // columns + 1, 3)
        small = np.round(_goldens(request).images(f"{name}{k}", shape, float(low), float(high))).astype(np.uint8)
        image = small.repeat(rows, 0).repeat(columns, 1)[:height, :width]
        out = resize_bicubic(np.ascontiguousarray(image), (32, 128))
        unit = ((out.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
        for key, made, off in ((f"pre{k}", out, 1), (f"out{k}", unit, 1e-5)):
            stored = resized.arrays[key]
            part = recipes.stride_of(made.shape, stored.shape)
            harness.assert_close(made[part], stored, absolute=off, what=key)
