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
    name, shape = re.search(r"images\('([^']+)',\s*\(([\d,\s]+)\)", meta["inputs"]).groups()
    raw = _goldens(request).images(name, tuple(int(n) for n in shape.split(",")), 0, 255)
    pixels = np.round(harness.to_numpy(raw)).astype(np.uint8).transpose(0, 2, 3, 1).copy()
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
    name = re.search(r"images\('([^']+)<k>'", resized.meta["inputs"]).group(1)
    sizes = [
        tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", resized.meta["inputs"].split("sizes")[1])
    ]
    for k, (height, width) in enumerate(sizes):
        small = _goldens(request).images(f"{name}{k}", (height // 4 + 1, width // 4 + 1, 3), 0, 255)
        image = np.round(harness.to_numpy(small)).astype(np.uint8).repeat(4, 0).repeat(4, 1)[:height, :width]
        out = resize_bicubic(np.ascontiguousarray(image), (32, 128))
        harness.assert_close(out[::2, ::2], resized.arrays[f"pre{k}"], absolute=1, what=f"pre{k}")
        unit = (out.astype(np.float32) / 255 - 0.5) / 0.5
        harness.assert_close(
            unit.transpose(2, 0, 1)[:, ::2, ::2], resized.arrays[f"out{k}"], absolute=1e-5, what=f"out{k}"
        )
