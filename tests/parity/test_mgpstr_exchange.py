"""MGP-STR <-> transformers: the names, the logits with both eps, and the same strings after a round trip."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from projects.mgpstr.convert import exact_eps, from_hf, hf_config, hf_name, original_name, to_hf
from projects.mgpstr.model.build import build_model
from tests.parity import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, pattern in (("name_map", "hf_map*.json"), ("exchange", "hf_exchange*.npz")):
        if fixture in metafunc.fixturenames:
            paths = harness.case_files(metafunc.config.getoption("--goldens"), "mgpstr", pattern)
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
    golden = harness.load(case.path.with_name(case.meta["golden"] + ".npz"))
    ours = build_model(
        "mgp-str", golden.meta["model"], golden.meta["num_tokens"], golden.meta["batch_max_length"]
    ).eval()
    fill.fill_module(ours)
    name, shape = re.search(r"images\('(.*?)', \((.*?)\)", case.meta["input"]).groups()
    images = torch.from_numpy(fill.images(name, tuple(map(int, shape.split(","))), 0.0, 1.0))
    theirs = hf_model(ours.state_dict())
    strides = {"char": 1, **{key: int(n) for key, n in re.findall(r"(bpe|wp) \[::(\d+)\]", case.meta["columns"])}}
    with torch.no_grad():
        own = dict(zip(("char", "bpe", "wp"), ours(images)))
        for eps in ("eps_all_1e-5", "eps_blocks_1e-6"):
            model = exact_eps(theirs) if eps == "eps_blocks_1e-6" else theirs
            logits = dict(zip(("char", "bpe", "wp"), model(images).logits))
            for key, stride in strides.items():
                harness.assert_close(
                    logits[key][..., ::stride], case.arrays[f"{key}_logits_{eps}"], absolute=2e-5, what=f"{key} {eps}"
                )
                harness.assert_close(
                    own[key], logits[key], absolute=1e-5 if eps == "eps_blocks_1e-6" else 1e-4, what=f"ours {key} {eps}"
                )
    back = from_hf(theirs.state_dict())
    for key, tensor in ours.state_dict().items():
        if not key.startswith(("mgp_str.norm", "mgp_str.head")):
            assert np.array_equal(back[f"module.{key}"], tensor), key
    assert set(back) == {f"module.{key}" for key in ours.state_dict()}
