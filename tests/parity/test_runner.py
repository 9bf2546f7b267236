"""A test of the tests: small errors in a model are seen, and no value of a case is ignored.

An error is made in our model and the comparison must fail. A value is changed in a case while its numbers stay, and the
runner, if it reads that value, must fail too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from common.models import tps
from projects.siga.model import two_unit
from tests.conftest import ROOT
from tests.parity import harness, noise, test_dig_models, test_dig_tables, test_mgpstr_models
from tests.parity.noise import Cap, Outcome, measure
from tests.parity.test_siga_models import SigaCase, check_grid, check_inference

GOLDENS = ROOT / "tests" / "goldens"


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "RUNS", 2)


@pytest.fixture(scope="module")
def filler():
    return harness.fill(GOLDENS)


@pytest.fixture(scope="module")
def mgp_tiny() -> test_mgpstr_models.ModelCase:
    return test_mgpstr_models.ModelCase(GOLDENS / "mgpstr" / "mgp_tiny.npz", GOLDENS)


@pytest.fixture(scope="module")
def rectified() -> SigaCase:
    return SigaCase(GOLDENS / "siga" / "r_trba.npz", GOLDENS)


def changed(model: nn.Module, kind: type, **values: object) -> nn.Module:
    """A copy in which every module of a kind has other values."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, kind):
            for name, value in values.items():
                setattr(module, name, value)
    return model


@pytest.mark.parametrize("error", [(nn.LayerNorm, {"eps": 1e-5}), (nn.GELU, {"approximate": "tanh"})], ids=str)
def test_errors_of_transformers_are_seen(mgp_tiny, error) -> None:
    """Layer-norm eps times 10; the tanh form of GELU."""
    kind, values = error
    assert any(isinstance(module, kind) for module in mgp_tiny.model.modules())
    wrong = copy.copy(mgp_tiny)
    wrong.model = changed(mgp_tiny.model, kind, **values)
    with pytest.raises(AssertionError, match="off by"):
        test_mgpstr_models.check_mgp_outputs(wrong)


def test_an_error_of_batch_norms_is_seen() -> None:
    """Eps 1e-4 for 1e-5, in R without its rectification."""
    case = SigaCase(GOLDENS / "siga" / "r_rba.npz", GOLDENS)
    case.model = changed(case.model, nn.BatchNorm2d, eps=1e-4)
    with pytest.raises(AssertionError, match="off by"):
        check_inference(case)


def check_rectified(case: SigaCase) -> None:
    key = "eval/rectified_image"

    def compute(model: nn.Module, images: torch.Tensor) -> Outcome:
        with torch.no_grad():
            return Outcome({key: case.stored(key, model.eval().rectify(images)[0])})

    measure(compute, case.model, {"images": case.images}).check(key, case.arrays[key], Cap.TPS)
    check_grid(case)


def move_a_fiducial(model: nn.Module, monkeypatch: pytest.MonkeyPatch, axis: int = 0) -> None:
    with torch.no_grad():
        model.model_one.Transformation.LocalizationNetwork.localization_fc2.bias[20 + axis] += 1e-4


def move_a_fiducial_along_y(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    move_a_fiducial(model, monkeypatch, 1)


def move_a_base_fiducial(model: nn.Module, monkeypatch: pytest.MonkeyPatch, axis: int = 0) -> None:
    generator, points = model.model_one.Transformation.GridGenerator, tps.base_fiducials(20)
    points[3, axis] += 1e-4
    monkeypatch.setattr(tps, "base_fiducials", lambda count: points)
    for own, constant in zip((generator.inv_delta_C, generator.P_hat), tps.spline_constants(generator.size, 20)):
        own.copy_(constant)


def move_a_base_fiducial_along_y(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    move_a_base_fiducial(model, monkeypatch, 1)


def widen_the_kernel(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, radial = model.model_one.Transformation.GridGenerator, tps._radial
    monkeypatch.setattr(tps, "_radial", lambda distance, epsilon: radial(distance, epsilon and 1e-3))
    generator.P_hat.copy_(tps.spline_constants(generator.size, 20)[1])


def leave_corners_unaligned(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(planes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return nn.functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)

    monkeypatch.setattr(two_unit, "sample", sample)


SPLINE_ERRORS = (
    move_a_fiducial, move_a_fiducial_along_y, move_a_base_fiducial, move_a_base_fiducial_along_y, widen_the_kernel,
    leave_corners_unaligned,
)  # fmt: skip


@pytest.mark.parametrize("error", [None, *SPLINE_ERRORS])
def test_errors_of_the_spline_are_seen(rectified, error, monkeypatch) -> None:
    case = copy.copy(rectified)
    case.model = copy.deepcopy(rectified.model)
    if error is None:
        check_rectified(case)
        return
    error(case.model, monkeypatch)
    with pytest.raises(AssertionError, match="off by"):
        check_rectified(case)


def with_value(content: dict, path: str, old: object, new: object) -> dict:
    """A copy with another value at `a.b.c`; for texts, `old` in them is replaced."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    holder = content
    for name in parents:
        holder = holder[name]
    if isinstance(holder.get(last), str) and isinstance(old, str):
        assert old in holder[last], f"{path}: {old!r} not found"
        holder[last] = holder[last].replace(old, str(new))
    else:
        holder[last] = new
    return content


TRACES = {
    "steps_pretrain_tiny": [
        ("recipe", "seed(41)", "seed(42)"),
        ("recipe", "ratio 0.7", "ratio 0.6"),
        ("recipe", "0.1*contrast", "0.2*contrast"),
        ("recipe", "/aug<i>", "/other<i>"),
        ("kwargs.T", None, 0.3),
        ("kwargs.num_windows", None, 2),
        ("clip_grad", None, 0.01),
    ],
    "steps_finetune_tiny": [
        ("recipe", "wd 0.05", "wd 0.2"),
        ("recipe", "0.9/0.999", "0.8/0.99"),
        ("recipe", "/image<i>", "/other<i>"),
        ("clip_grad", None, 0.01),
        ("layer_decay", None, 0.7),
    ],
}


@pytest.mark.parametrize(
    ("name", "change"),
    [pytest.param(name, change, id=f"{name}-{change[0]}-{change[2]}") for name in TRACES for change in TRACES[name]],
)
def test_values_of_traces_are_read(name: str, change: tuple, filler, monkeypatch) -> None:
    monkeypatch.setattr(noise, "RUNS", 1)
    trace = json.loads((GOLDENS / "dig" / f"{name}.json").read_text())
    test = test_dig_tables.test_steps_pretrain if "kwargs" in trace else test_dig_tables.test_steps_finetune
    with pytest.raises(AssertionError):
        test(with_value(trace, *change), filler)


def without(path: Path, folder: Path, **changes: object) -> Path:
    """A copy of an npz case whose meta is changed; None drops the key."""
    import numpy as np

    case = harness.load(path)
    meta = {key: value for key, value in (case.meta | changes).items() if value is not None}
    target = folder / path.name
    np.savez(target, meta=json.dumps(meta), **case.arrays)
    for manifest in path.parent.glob(f"{path.stem}.manifest.json"):
        (folder / manifest.name).write_text(manifest.read_text())
    return target


@pytest.mark.parametrize("field", ["cls_scale", "emb_scale", "eos_bias"])
def test_scales_of_recognisers_are_read(field: str, filler, tmp_path) -> None:
    source = GOLDENS / "dig" / "rec_tiny_attention.npz"
    before = harness.load(source).meta[field]
    path = without(source, tmp_path, **{field: 1.1 * before + 0.5})
    made = test_dig_models.load_recogniser(path, filler)
    with pytest.raises(AssertionError):
        test_dig_models.test_recogniser_greedy(made, filler)


def test_parts_that_a_case_lacks_are_skipped(filler, tmp_path) -> None:
    """Without labels and training pass a case is still read."""
    path = without(GOLDENS / "dig" / "rec_tiny_attention.npz", tmp_path, loss_ce=None, grad_l2=None)
    made = test_dig_models.load_recogniser(path, filler)
    with pytest.raises(pytest.skip.Exception):
        test_dig_models.test_recogniser_training_pass(made, filler)
    test_dig_models.test_recogniser_greedy(made, filler)
