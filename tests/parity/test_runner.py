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
    with pytest.raises(AssertionError):
        traced_test(trace)(with_value(trace, *change), filler)


def own_trace(trace: dict, changes: dict, filler, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A trace with other values whose numbers are our own float64."""
    trace, seen = copy.deepcopy(trace) | changes, {}

    def keep(self: noise.Measured, name: str, *_: object, **__: object) -> None:
        seen[name] = self.exact.scalars[name] if name in self.exact.scalars else self.exact.tensors[name]

    with monkeypatch.context() as patch:
        for name in ("check", "check_scalar", "check_parameters"):
            patch.setattr(noise.Measured, name, keep)
        traced_test(trace)(trace, filler)
    for number, step in enumerate(trace["steps"]):
        step |= {name: float(seen[f"{name} {number}"]) for name in step if f"{name} {number}" in seen}
    for key, name in (("param_l2_after", "norms"), ("buffer_mean_after", "means")):
        if name in seen:
            trace[key] = dict(zip(trace[key], map(float, seen[name])))
    return trace


def traced_test(trace: dict):
    return test_dig_tables.test_steps_pretrain if "kwargs" in trace else test_dig_tables.test_steps_finetune


STEPS = [{"lr": 0.0007, "weight_decay": 0.2, "moco_m": 0.95, "loss": 0, "loss_pixel": 0, "loss_contrast": 0,
          "grad_norm": 0}, {"lr": 0.0009, "weight_decay": 0.3, "moco_m": 0.98, "loss": 0, "grad_norm": 0}]  # fmt: skip
DERIVED = {
    "steps_pretrain_tiny": {
        "recipe": "fill_module; AdamW betas 0.8/0.95 eps 1e-6; np.random.seed(5) then 2 masks (ratio 0.5, 2 views) per "
        "step; images 'other/image<i>' and 'other/aug<i>' of shape (3,3,32,128); loss = 2*pixel + 0.3*contrast",
        "kwargs": {"mlp_dim": 64, "dim": 32, "T": 0.5, "num_windows": 2, "patchnet_name": "regular",
                   "drop_path_rate": 0.1},
        "clip_grad": 0.7,
        "steps": STEPS,
        "param_l2_after": {"encoder.mask_token": 0, "encoder.blocks.0.attn.qkv.weight": 0,
                           "encoder.blocks.3.mlp.fc1.weight": 0, "patch_extractor.norm.weight": 0},
        "buffer_mean_after": {"predictor.1.running_mean": 0, "predictor.1.running_var": 0},
    },
    "steps_finetune_tiny": {
        "recipe": "fill_module; AdamW wd .2 betas 0.8/0.95; images 'other/image<i>' (3,3,32,128)",
        "decoder_name": "tf_decoder",
        "max_len": 9,
        "words": ["a", "other", "Words"],
        "layer_decay": 0.6,
        "clip_grad": 5.0,
        "fixed_encoder_layers": 3,
        "smoothing": 0.1,
        "steps": [{"lr": 0.0007, "loss": 0, "grad_norm": 0}, {"lr": 0.0009, "loss": 0, "grad_norm": 0}],
        "param_l2_after": {"encoder.mask_token": 0, "encoder.blocks.0.attn.qkv.weight": 0,
                           "encoder.blocks.9.mlp.fc1.weight": 0, "encoder.blocks.9.norm1.weight": 0},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVED)
def test_a_trace_with_other_values(name: str, filler, monkeypatch) -> None:
    """Every value differs from the public trace's: it passes with our own numbers and fails with others."""
    monkeypatch.setattr(noise, "RUNS", 1)
    public = json.loads((GOLDENS / "dig" / f"{name}.json").read_text())
    trace = own_trace(public, copy.deepcopy(DERIVED[name]), filler, monkeypatch)
    assert all(value > 0 for value in trace["param_l2_after"].values()) and trace["steps"][1]["grad_norm"] > 0
    measured: list[noise.Measured] = []

    def once(*words: object) -> noise.Measured:
        measured[:] = measured or [measure(*words)]
        return measured[0]

    monkeypatch.setattr(test_dig_tables, "measure", once)  # only the numbers to compare with change from here on
    traced_test(trace)(trace, filler)
    loss, norms = 1.02 * trace["steps"][1]["loss"], {key: 1.001 * n for key, n in trace["param_l2_after"].items()}
    for wrong in (with_value(trace, "param_l2_after", None, norms), trace | {"steps": [{"loss": loss}] * 2}):
        with pytest.raises(AssertionError):
            traced_test(wrong)(wrong, filler)


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
