"""MGP-STR <-> transformers: the names, the logits with both eps, and the same strings after a round trip."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from projects.mgpstr.convert import exact_eps, from_hf, hf_config, hf_name, original_name, to_hf
from projects.mgpstr.model.build import build_model
from tests.conftest import ROOT
from tests.parity import harness, recipes
from tests.parity.noise import Cap, Measured, Outcome, measure


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for fixture, ending, key in (("name_map", "json", "hf_to_original"), ("exchange", "npz", "diff_to_original")):
        if fixture in metafunc.fixturenames:
            paths = harness.cases_of(goldens, "mgpstr", f"*.{ending}", lambda case, key=key: key in case.meta)
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem)


def test_names(name_map) -> None:
    golden = json.loads(name_map.read_text())["hf_to_original"]
    for theirs, ours in golden.items():
        assert original_name(theirs) == ours
        assert hf_name(ours) == theirs


def hf_model(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from transformers import MgpstrConfig, MgpstrForSceneTextRecognition

    model = MgpstrForSceneTextRecognition(MgpstrConfig(**hf_config(state))).eval()
    model.load_state_dict(to_hf(state))
    return model


def test_exchange(exchange, request) -> None:
    case, fill = harness.load(exchange), harness.fill(request.config.getoption("--goldens"))
    path = case.path.with_name(case.meta["golden"] + ".npz")  # of this folder, or of the committed one
    golden = harness.load(path if path.is_file() else ROOT / "tests/goldens/mgpstr" / path.name)
    ours = build_model(
        "mgp-str", golden.meta["model"], golden.meta["num_tokens"], golden.meta["batch_max_length"]
    ).eval()
    fill.fill_module(ours)
    images = recipes.images(fill, case.meta["input"])
    theirs = hf_model(ours.state_dict())
    back = from_hf(theirs.state_dict())
    for key, tensor in ours.state_dict().items():
        if key.removeprefix("module.") not in case.meta["original_only"]:
            assert np.array_equal(back[f"module.{key}"], tensor), key
    assert set(back) == {f"module.{key}" for key in ours.state_dict()}

    strides = {key: int(n) for key, n in re.findall(r"(\w+) \[::(\d+)\]", case.meta["columns"])}
    own = measure(lambda model, images: exchanged(model(images, is_eval=True)), ours, {"images": images})
    for eps in case.meta["diff_to_original"]:  # transformers' own everywhere, or the original's in the blocks
        model = exact_eps(theirs) if eps == "eps_blocks_1e-6" else theirs
        measured = measure(published_exchange, model, {"images": images})
        for key in ("char", "bpe", "wp"):
            stride = strides.get(key, 1)
            measured.check(f"{key} logits", case.arrays[f"{key}_logits_{eps}"], part=np.s_[..., ::stride])
            check_difference(own, measured, key, case.meta["diff_to_original"][eps][key])


def exchanged(output: list) -> Outcome:
    """[attentions, char, bpe, wp logits] of our model by name."""
    tensors = {}
    for key, logits, attention in zip(("char", "bpe", "wp"), output[1:], output[0]):
        tensors |= {f"{key} logits": logits.detach(), f"{key} attention": attention.detach()}
    return Outcome(tensors)


def published_exchange(model: torch.nn.Module, images: torch.Tensor) -> Outcome:
    with torch.no_grad():
        output = model(images, output_a3_attentions=True)
    return exchanged([output.a3_attentions, *output.logits])


def check_difference(own: Measured, theirs: Measured, key: str, told: dict) -> None:
    """How far the exchanged model is from ours, in float64, against what the case says of float32 runs."""
    for what, name in (("max_abs_logit_diff", "logits"), ("max_abs_attn_diff", "attention")):
        found = np.abs(own.exact.tensors[f"{key} {name}"] - theirs.exact.tensors[f"{key} {name}"]).max()
        noise = own.noise(f"{key} {name}") + theirs.noise(f"{key} {name}")
        # the case measured both models in float32 on one processor: its rounding counts as well
        rounding = 2.4e-7 if name == "attention" else 1e-5 * np.abs(own.exact.tensors[f"{key} {name}"]).max()
        allowed = 3 * noise + rounding
        assert abs(found - told[what]) <= allowed, f"{key} {what}: {found:.3g}, told {told[what]:.3g}"
    sure = ~own.ties(f"{key} logits", Cap.PLAIN)
    same = own.exact.tensors[f"{key} logits"].argmax(-1) == theirs.exact.tensors[f"{key} logits"].argmax(-1)
    assert same[sure].all() or not told["argmax_equal"]
