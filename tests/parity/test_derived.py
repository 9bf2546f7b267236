"""Cases of other values than the committed ones, derived here: small models, everything that a case may say changed.

The runner is asked what it computes of a case (our float64, before anything is compared), then the same with one value
of the case changed. Each value must change what is computed: a runner that had its own number in that place would
compare the new case's numbers with those of the old value.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.parity import (
    harness,
    noise,
    test_dig_models,
    test_mgpstr_models,
    test_siga_models,
    test_ssm_models,
    test_textssr_models,
    textssr_recipes,
)
from tests.parity.derived_cases import CASES, SCHEDULER, UNET, swapped

GOLDENS = ROOT / "tests" / "goldens"
MODULES = (test_dig_models, test_mgpstr_models, test_siga_models, test_ssm_models, test_textssr_models)


class Computed(Exception):
    """Ends a runner after it has computed and before it compares."""


def changed(content: dict, path: str, value: object) -> dict:
    """A copy with another value at `a/b/2`; a function gets the old one."""
    content = copy.deepcopy(content)
    *parents, last = path.split("/")
    holder = content
    for name in parents:
        holder = holder[int(name) if isinstance(holder, list) else name]
    key = int(last) if isinstance(holder, list) else last
    holder[key] = value(holder[key]) if callable(value) else value
    return content


# ---------------------------------------------------------------- what the runner computes of a case


def siga(path: Path, filler) -> Iterator[Callable]:
    case = test_siga_models.SigaCase(path, GOLDENS)
    yield lambda: test_siga_models.check_inference(case)
    if case.text is not None:
        yield lambda: test_siga_models.check_teaching(case)


def mgpstr(path: Path, filler) -> Iterator[Callable]:
    case = test_mgpstr_models.ModelCase(path, GOLDENS)
    yield lambda: test_mgpstr_models.check_mgp_outputs(case)
    if "loss" in case.meta:
        yield lambda: test_mgpstr_models.test_mgp_training_step(case)


def dig_pretraining(path: Path, filler) -> Iterator[Callable]:
    yield lambda: test_dig_models.test_pretrain(test_dig_models.load_pretrainer(path), filler)


def dig_recognition(path: Path, filler) -> Iterator[Callable]:
    case = test_dig_models.load_recogniser(path, filler)
    yield lambda: test_dig_models.test_recogniser_greedy(case, filler)
    if "loss_ce" in case[0].meta:
        yield lambda: test_dig_models.test_recogniser_training_pass(case, filler)


def ssm_pretraining(path: Path, filler) -> Iterator[Callable]:
    case = test_ssm_models.load_pretrainer(path, filler)
    yield lambda: test_ssm_models.test_pretrainer_inference(case)
    if "train" in case[0].meta:
        yield lambda: test_ssm_models.test_pretrainer_step(case)


def ssm_recognition(path: Path, filler) -> Iterator[Callable]:
    case = test_ssm_models.load_recogniser(path, filler)
    yield lambda: test_ssm_models.test_recogniser_reads(case)
    if test_ssm_models.decoding_modes(case[0]):
        yield lambda: test_ssm_models.test_recogniser_modes(case)
    if "train_loss" in case[0].meta:
        yield lambda: test_ssm_models.test_recogniser_training_loss(case)


def textssr_step(path: Path, filler) -> Iterator[Callable]:
    yield lambda: test_textssr_models.test_step(harness.load(path), GOLDENS, filler)


def textssr_inference(path: Path, filler) -> Iterator[Callable]:
    yield lambda: test_textssr_models.test_inference(harness.load(path), GOLDENS, filler)


def computed(case: harness.Case, runner: Callable, filler) -> list[dict[str, np.ndarray]]:
    """Every number that the parts of a runner compute of the case, by name, part by part."""
    found: list[dict[str, np.ndarray]] = []

    def exact_only(compute: Callable, model: torch.nn.Module, inputs: dict, runs: int | None = None) -> None:
        double = copy.deepcopy(model).double()
        with noise.float64():
            made = compute(double, **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
        made = made.frozen()
        norms = {f"{key} {n}": np.array(v or 0.0) for key, rows in made.gradients.items() for n, v in rows.items()}
        found.append({**made.tensors, **{key: np.array(value) for key, value in made.scalars.items()}, **norms})
        raise Computed

    with pytest.MonkeyPatch.context() as patch:
        load = harness.load
        patch.setattr(harness, "load", lambda path: copy.deepcopy(case) if path == case.path else load(path))
        for module in MODULES:
            patch.setattr(module, "measure", exact_only)
        for part in runner(case.path, filler):
            try:
                part()
            except Computed:
                continue
            except AssertionError:  # the case contradicts itself: another value than its stored arrays
                found.append({})
    return found


def equal(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> bool:
    """Whether two cases give the same numbers of the same names."""
    if [part.keys() for part in first] != [part.keys() for part in second]:
        return False
    pairs = [(left[name], right[name]) for left, right in zip(first, second) for name in left]
    return all(left.shape == right.shape and np.allclose(left, right, rtol=1e-9, atol=1e-12) for left, right in pairs)


RUNNERS = {
    "siga": siga,
    "mgpstr": mgpstr,
    "dig pre-training": dig_pretraining,
    "dig recognition": dig_recognition,
    "ssm pre-training": ssm_pretraining,
    "ssm recognition": ssm_recognition,
    "textssr step": textssr_step,
    "textssr inference": textssr_inference,
}


@pytest.fixture(scope="module")
def filler():
    return harness.fill(GOLDENS)


@pytest.fixture
def other_unets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small UNets that cases may name."""
    shared = textssr_recipes.shared
    constructors = {"unet_derived": UNET, "unet_other": UNET | {"norm_num_groups": 4}}

    def find(goldens: Path, name: str) -> harness.Case:
        if name in constructors:
            return harness.Case(name, goldens, {}, {"constructor": constructors[name]})
        return shared(goldens, name)

    monkeypatch.setattr(textssr_recipes, "shared", find)


@pytest.mark.parametrize("name", CASES)
def test_every_value_changes_what_is_computed(name: str, filler, other_unets, tmp_path: Path) -> None:
    runner, (arrays, meta, changes) = RUNNERS[name], CASES[name]

    def of(meta: dict) -> list[dict[str, np.ndarray]]:
        stored = dict(arrays)
        if "mask_recipe" in meta and isinstance(meta["mask_recipe"], str):
            stored["mask"] = test_dig_models.stacked_masks(meta["mask_recipe"])
        return computed(harness.Case(tmp_path.name, tmp_path / "case.npz", stored, meta), runner, filler)

    base, unread = of(meta), []
    assert base and all(base) and all(np.isfinite(value).all() for part in base for value in part.values())
    for place, value in changes.items():
        if equal(base, of(changed(meta, place.partition("#")[0], value))):
            unread.append(place)
    assert not unread


OPTIONS = {"cli", "configs", "hydra_configs"}  # flags and configurations: a test for each script or file


def test_every_file_is_run(request: pytest.FixtureRequest) -> None:
    """A file of a kind that nobody knows would be skipped without a word; of another folder it is warned of."""
    goldens = request.config.getoption("--goldens")
    names = [item.name.partition("[")[2] for item in request.session.items if item.path.parent == Path(__file__).parent]
    if not set(Path(__file__).parent.glob("test_*.py")) <= {item.path for item in request.session.items}:
        pytest.skip("only a part of the parity tests was collected")
    paths = [path for project in ("siga", "mgpstr", "dig", "ssm", "textssr") for path in (goldens / project).glob("*")]
    stems = {path.stem for path in paths if path.suffix in (".npz", ".json") and ".manifest" not in path.name}
    left = sorted(stem for stem in stems - OPTIONS if not any(stem in name for name in names))
    if goldens == GOLDENS:
        assert not left
    for stem in left:
        warnings.warn(f"{goldens}: no test runs {stem}", stacklevel=1)


@pytest.mark.parametrize("field", ["labels", "losses_iter7", "grad_norms_iter7", "coefficient_iter7", "mask_recipe"])
def test_what_a_case_lacks_is_skipped(field: str, filler, tmp_path: Path) -> None:
    """Inference is computed of a case without labels, losses, gradients or the recipe of its masks."""
    runner, (arrays, meta, _) = siga, CASES["siga"]
    less = {key: value for key, value in meta.items() if key != field}
    case = harness.Case("case", tmp_path / "case.npz", arrays, less)
    assert len(computed(case, runner, filler)) == (1 if field == "labels" else 2)


def test_goldens_without_the_rest_of_their_folder(filler, tmp_path: Path) -> None:
    """`fill.py` and the shared cases are then the committed ones."""
    assert harness.fill(tmp_path).__file__ == filler.__file__
    assert textssr_recipes.shared(tmp_path, "vae_tiny").meta == textssr_recipes.shared(GOLDENS, "vae_tiny").meta
    assert harness.cases_of(tmp_path, "dig", "*.json", lambda case: True) == []


def test_a_scheduler_of_other_values(filler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Five inference steps of a linear schedule: it passes with its own numbers, and with no other value."""
    steps = {f"prev_{t}{kind}": np.zeros((2, 4, 4, 4)) for t in (301, 1) for kind in ("", "_x0")}
    meta = {
        "scheduler": SCHEDULER,
        "alphas_cumprod": {},
        "inputs": {
            "x0": "images('derived/sched/x0',(2,4,4,4),-1,1)",
            "noise": "images('derived/sched/noise',(2,4,4,4),-2,2)",
            "timesteps": [4, 333],
            "step": "5 inference steps; step noise images('derived/sched/step/<t>',(2,4,4,4),-2,2)",
        },
    }
    arrays = {"noisy": np.zeros((2, 4, 4, 4)), "velocity": np.zeros((2, 4, 4, 4)), **steps}

    def case(meta: dict) -> harness.Case:
        return harness.Case("case", tmp_path / "case.npz", arrays, meta)

    with monkeypatch.context() as patch:
        keep = lambda actual, case, name: arrays.update({name: actual.detach().numpy().copy()})  # noqa: E731
        patch.setattr(test_textssr_models, "close", keep)
        test_textssr_models.test_scheduler(case(meta), filler)
    test_textssr_models.test_scheduler(case(meta), filler)
    for place, value in {
        "scheduler/beta_end": 0.012, "scheduler/beta_schedule": "scaled_linear", "scheduler/num_train_timesteps": 1000,
        "scheduler/prediction_type": "epsilon", "inputs/x0": swapped("x0", "x1"), "inputs/noise": swapped("-2", "-1"),
        "inputs/timesteps/0": 5, "inputs/step": swapped("5 inf", "4 inf"), "inputs/step#noise": swapped("step/", "s/"),
    }.items():  # fmt: skip
        with pytest.raises((AssertionError, IndexError)):  # the second where a stored step is none of the schedule's
            test_textssr_models.test_scheduler(case(changed(meta, place.partition("#")[0], value)), filler)
