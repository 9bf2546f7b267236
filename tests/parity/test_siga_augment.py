"""SIGA's augmentation with given parameters against the published code: ABINet's geometry, and the STR operations of
T.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from common.augment import blur, cv_geometry
from common.augment.randaugment import OPERATIONS
from tests.parity import harness

INTERPOLATION = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def flag_of(geometry: harness.Case) -> int:
    """The interpolation of a case: "linear everywhere"."""
    return INTERPOLATION[geometry.meta.get("interpolation", "linear").split()[0]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = [harness.load(path) for path in harness.case_files(metafunc.config.getoption("--goldens"), "siga")]
    if "geometry" in metafunc.fixturenames:
        chosen = [case for case in cases if "perspective_offsets" in case.meta]
        metafunc.parametrize("geometry", chosen, ids=[case.name for case in chosen])
    if "operation" in metafunc.fixturenames:
        rows = [(case, name) for case in cases for name in case.meta.get("ops", []) if name in case.arrays]
        metafunc.parametrize(("case", "operation"), rows, ids=[f"{case.name}-{name}" for case, name in rows])
    if "disk" in metafunc.fixturenames:
        disks = [(case, key) for case in cases for key in case.arrays if key.startswith("disk_")]
        metafunc.parametrize("disk", disks, ids=[f"{case.name}-{key}" for case, key in disks])


def _check(actual: np.ndarray, geometry: harness.Case, key: str) -> None:
    expected = geometry.arrays[key]
    # Grey levels for images; masks live on [0, 1].
    harness.assert_close(actual, expected, absolute=2 if expected.dtype == np.uint8 else 2 / 255, what=key)


def test_geometry(geometry: harness.Case) -> None:
    meta, image, mask = geometry.meta, geometry.arrays["image"], geometry.arrays["mask"].astype(np.float64)
    affine, flag = meta["affine"], flag_of(geometry)
    rows = {
        "rot": lambda picture: cv_geometry.rotate(picture, meta["angle"], flag),
        "persp": lambda picture: cv_geometry.tilt(picture, *meta["perspective_offsets"], flag),
        "aff": lambda picture: cv_geometry.shear_and_scale(
            picture, affine["angle"], affine["scale"], affine["shear"], flag
        ),
    }
    for name, call in rows.items():
        if f"{name}_img" in geometry.arrays:
            _check(call(image), geometry, f"{name}_img")
            _check(call(mask), geometry, f"{name}_mask")


def test_affine_matrix(geometry: harness.Case) -> None:
    affine = geometry.meta["affine"]
    size = geometry.arrays["image"].shape[:2]
    matrix = cv_geometry.inverse_affine(*size, affine["angle"], affine["scale"], affine["shear"])
    harness.assert_close(matrix.ravel(), geometry.meta["affine_matrix"], absolute=1e-9)


def test_deterioration(geometry: harness.Case) -> None:
    image, meta, flag = geometry.arrays["image"], geometry.meta, flag_of(geometry)
    for key in geometry.arrays:
        if key.startswith("rescale"):
            _check(cv_geometry.rescale(image, meta["rescale_factor"], flag, flag), geometry, key)
        elif key.startswith("motion"):
            _check(cv_geometry.motion_blur(image, int(meta["motion"][0]), meta["motion"][1]), geometry, key)


def test_operation(case: harness.Case, operation: str) -> None:
    name, magnitude = operation.rsplit("_", 1)
    image, mask = case.arrays["image"], case.arrays["mask"]
    rng = np.random.RandomState(0)
    actual, moved = OPERATIONS[name](image, rng, int(magnitude), preset="siga", mask=mask)
    harness.assert_close(actual, case.arrays[operation], absolute=1, what=operation)
    expected = case.arrays.get(f"{operation}_mask", mask)
    assert (moved != expected).mean() <= 0.002, f"{operation}: the mask differs"


def test_disk(disk: tuple[harness.Case, str]) -> None:
    case, key = disk
    inside, weight = blur.disk(int(key.removeprefix("disk_")))
    expected = case.arrays[key]
    harness.assert_close(np.pad(inside * weight, (len(expected) - len(inside)) // 2), expected, absolute=1e-6, what=key)
