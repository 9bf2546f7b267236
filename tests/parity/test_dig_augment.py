"""DiG's image operations with given parameters against the published code."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from common.augment import cv_geometry
from common.data.decode import resize_bicubic
from tests.parity import harness

INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = []
    for path in harness.case_files(metafunc.config.getoption("--goldens"), "dig"):
        case = harness.load(path)
        if "base_transform" in case.arrays:
            rows += [(case, key) for key in case.arrays if key != "input"]
    metafunc.parametrize(("case", "key"), rows, ids=[f"{case.name}-{key}" for case, key in rows])


def _apply(image: np.ndarray, key: str, meta: dict) -> np.ndarray:
    """The operation that a key names, e.g. rotation_17.5_linear, affine_0_linear (parameters in meta),
    rescale_3_cubic.
    """
    if key == "base_transform":
        return (resize_bicubic(image, (32, 128)).astype(np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    kind, *words = key.split("_")
    if kind == "motion":
        return cv_geometry.motion_blur(image, int(words[1]), float(words[2]))
    flag = INTERPOLATION[words[-1]]
    if kind == "rotation":
        return cv_geometry.rotate(image, float(words[0]), flag)
    if kind == "rescale":
        return cv_geometry.rescale(image, int(words[0]), flag, flag)
    given = meta[key]
    if kind == "affine":
        return cv_geometry.shear_and_scale(
            image, given["angle"], given["scale"], given["shear"], flag, given["translate"]
        )
    return cv_geometry.tilt(image, given["offset_h_tl_tr_br_bl"], given["offset_w"], flag)


def test_operation(case: harness.Case, key: str) -> None:
    actual, expected = _apply(case.arrays["input"], key, case.meta), case.arrays[key]
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(np.float64) - expected)
    level = 1 if expected.dtype == np.uint8 else 2e-5
    assert (difference <= level).mean() >= 0.99, f"{key}: at most {difference.max():.3g}"
