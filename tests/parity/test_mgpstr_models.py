"""MGP-STR and ACDS-STR against the published code: names of weights, outputs, losses, gradients, an optimizer step."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.build import build_model
from projects.mgpstr.model.names import ACDS, MODELS
from tests.parity import harness

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    if "manifest" in metafunc.fixturenames:
        paths = harness.case_files(goldens, "mgpstr", "*.manifest.json")
        metafunc.parametrize("manifest", paths, ids=lambda path: path.name.removesuffix(".manifest.json"))
    for fixture, member in (("mgp_case", "char_logits"), ("acds_case", "map_train")):
        if fixture in metafunc.fixturenames:
            paths = [path for path in harness.case_files(goldens, "mgpstr") if member in np.load(path).files]
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem)


def known_names() -> list[tuple[str, str]]:
    return [("char-str" if name.startswith("char") else "mgp-str", name) for name in MODELS] + [
        (name, "") for name in ACDS
    ]


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def model_of_manifest(state: dict[str, list[int]], device: str = "cpu") -> torch.nn.Module:
    """The model whose state dict has exactly these names and shapes."""
    head = next(shape for name, shape in state.items() if name.endswith("str.head.weight"))
    for transformer, name in known_names():
        with torch.device("meta"):
            found = shapes(build_model(transformer, name, num_classes=head[0]))
        if found == state:
            with torch.device(device):
                return build_model(transformer, name, num_classes=head[0])
    raise AssertionError("no model has this state dict")


def test_state_dict(manifest) -> None:
    golden = json.loads(manifest.read_text())
    model = model_of_manifest(golden["state_dict"], "meta")
    assert len(model.state_dict()) == golden["entries"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["total_parameters"]


def prepared(case: harness.Case, fill) -> tuple[torch.nn.Module, torch.Tensor]:
    """The case's model with filled weights, and its input."""
    manifest = case.path.parent / f"{case.name}.manifest.json"
    if manifest.exists():
        model = model_of_manifest(case.manifest["state_dict"])
    else:
        name = case.meta["model"]
        transformer = name if name in ACDS else ("char-str" if name.startswith("char") else "mgp-str")
        model = build_model(transformer, name, case.meta.get("num_tokens", 38), case.meta.get("batch_max_length", 27))
    fill.fill_module(model)
    name, shape, low, high = re.match(
        r"images\('(.*?)', \((.*?)\), ([\d.-]+), ([\d.-]+)\)", case.meta["input"]
    ).groups()
    size = tuple(int(part) for part in shape.split(","))
    return model, torch.from_numpy(fill.images(name, size, float(low), float(high)))


def sliced(tensor: torch.Tensor, expression: str) -> torch.Tensor:
    """Apply a text such as "[:, ::16, ::12]"."""
    parts = re.match(r"\[(.*?)\]", expression).group(1).split(",")
    return tensor[tuple(slice(*(int(n) if n.strip() else None for n in part.split(":"))) for part in parts)]


def check_gradients(model: torch.nn.Module, meta: dict, relative: float) -> None:
    # a float32 norm of a million small numbers is itself wrong by 1e-4, so norms are taken in float64
    norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters() if p.grad is not None}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    assert total == pytest.approx(meta["total_grad_norm"], rel=max(relative, 2e-4))  # the original summed in float32
    for name, parameter in model.named_parameters():
        golden = meta["grad_norms"][name]
        if golden is None:
            assert parameter.grad is None, name
        else:
            # what lies far below the total norm is the rounding noise of larger terms
            assert norms[name] == pytest.approx(golden, rel=relative, abs=relative * 1e-4 * total), name


def step_once(model: torch.nn.Module, meta: dict) -> None:
    """Clip and step as the case's optimizer text says."""
    lr, clip = (float(re.search(rf"{key} ([\d.]+(e-?\d+)?)", meta["optimizer"]).group(1)) for key in ("lr", "clip"))
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    torch.nn.utils.clip_grad_norm_(trained, clip)
    torch.optim.Adadelta(trained, lr=lr, rho=0.95, eps=1e-8).step()


def test_mgp(mgp_case, request) -> None:
    case, fill = harness.load(mgp_case), harness.fill(request.config.getoption("--goldens"))
    model, images = prepared(case, fill)
    check_mgp_outputs(model, images, case)
    check_mgp_training_step(model, images, case)


def check_mgp_outputs(model: torch.nn.Module, images: torch.Tensor, case: harness.Case) -> None:
    arrays, meta = case.arrays, case.meta
    absolute = 2e-5 if model.mgp_str.embed_dim <= 192 else 5e-5
    with torch.no_grad():
        encoded = model.mgp_str.encode(images)
        attention, *logits = model.eval()(images, is_eval=True)
        decoded = model.read(images).decoded
    harness.assert_close(
        sliced(encoded, meta["encoder_slice"]), arrays["encoder_slice"], absolute=absolute, what="encoder"
    )
    for name, scores, weights in zip(model.granularities, logits, attention):
        stride, golden = meta["logit_column_strides"][name], arrays[f"{name}_attn"]
        harness.assert_close(scores[..., ::stride], arrays[f"{name}_logits"], absolute=absolute, what=f"{name} logits")
        harness.assert_close(weights[:, : golden.shape[1]], golden, absolute=absolute, what=f"{name} attention")
        harness.assert_close(
            scores.softmax(-1).max(-1).values, arrays[f"{name}_maxprob"], absolute=absolute, what=f"{name} probability"
        )
        assert np.array_equal(scores.argmax(-1), arrays[f"{name}_argmax"])
        # the decoder that stops at end tokens agrees where it has decoded
        ids, probs = decoded[name].ids.numpy(), decoded[name].probs.numpy()
        done = probs > 0
        assert np.array_equal(ids[done], arrays[f"{name}_argmax"][:, 1:][done])
        harness.assert_close(
            probs[done], arrays[f"{name}_maxprob"][:, 1:][done], absolute=absolute, what=f"{name} decoded probability"
        )


def check_mgp_training_step(model: torch.nn.Module, images: torch.Tensor, case: harness.Case) -> None:
    meta = case.meta
    codes = LabelCodes(CHARACTERS, meta["batch_max_length"] - 2, model.granularities)
    targets = {name: torch.from_numpy(ids) for name, ids in codes.encode(meta["labels"]).items()}
    for name, ids in targets.items():
        assert np.array_equal(ids, case.arrays[f"{name}_target"])
    losses = model.train().losses(images, targets)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(meta["loss"], rel=1e-5)
    total = sum(losses.values())
    assert total.item() == pytest.approx(meta["loss_total"], rel=1e-5)
    total.backward()
    check_gradients(model, meta, 1e-4)
    step_once(model, meta)
    for name, golden in meta.get("param_l2_after_step", {}).items():
        assert float(model.get_parameter(name).detach().double().norm()) == pytest.approx(golden, rel=1e-3), name
    with torch.no_grad():
        after = model.losses(images, targets)
    assert {name: loss.item() for name, loss in after.items()} == pytest.approx(
        meta["after_one_adadelta_step"], rel=1e-3
    )


def acds_inputs(case: harness.Case) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    target = torch.from_numpy(case.arrays["char_target"]).long()
    codes = LabelCodes(CHARACTERS, target.shape[1] - 2, ("char",))
    assert np.array_equal(codes.encode(case.meta["labels"])["char"], target)
    return {"char": target}, torch.from_numpy(case.arrays["mask"] > 0)


def test_acds_outputs(acds_case, request) -> None:
    case, fill = harness.load(acds_case), harness.fill(request.config.getoption("--goldens"))
    model, images = prepared(case, fill)
    net, slices = model.eval().acds_str, case.meta["slices"]
    with torch.no_grad():
        stages = net.cnnBackbone.stages(images)
        pyramid = net.cnnBackbone.pyramid(stages)
        maps = net.character_map(pyramid)
        streams = net.streams(net.embed_features(stages[5]), net.guidance(maps))
        [logits], same, published_map = model(images, is_eval=True)
    assert same is logits
    expected = case.arrays
    harness.assert_close(logits, expected["logits"], absolute=5e-5, what="logits")
    harness.assert_close(published_map, expected["map"], absolute=5e-5, what="map")
    assert np.array_equal(logits.argmax(-1), expected["argmax"])
    slices_of = {
        "cnn": (stages[5], "cnn_slice"),
        "fpn": (pyramid, "fpn_slice"),
        "fused": (streams["fused"], "fused_slice"),
        "x_last": (streams["x"], "x_last_slice"),
        "z_last_block": (streams["block"], "z_last_block_slice"),
    }
    for name, (value, key) in slices_of.items():
        harness.assert_close(sliced(value, slices[name]), expected[key], absolute=5e-5, what=name)


def test_acds_training_step(acds_case, request) -> None:
    case, fill = harness.load(acds_case), harness.fill(request.config.getoption("--goldens"))
    model, images = prepared(case, fill)
    meta = case.meta
    targets, masks = acds_inputs(case)
    _, maps = model.train()(images)
    harness.assert_close(maps, case.arrays["map_train"], relative_to_absmax=1e-4, what="map in train mode")
    for name, golden in meta.get("running_stat_l2_after_first_forward", {}).items():
        assert float(model.get_buffer(name).double().norm()) == pytest.approx(golden, rel=1e-4), name
    fill.fill_module(model)
    losses = model.losses(images, targets, masks)
    assert losses["char"].item() == pytest.approx(meta["loss"]["char"], rel=1e-4)
    assert losses["mask"].item() == pytest.approx(0.5 * meta["loss"]["mask"], rel=1e-4)
    total = sum(losses.values())
    assert total.item() == pytest.approx(meta["loss"]["total"], rel=1e-4)
    total.backward()
    check_gradients(model, meta, 1e-3)
    step_once(model, meta)
    after = model.losses(images, targets, masks)
    assert after["char"].item() == pytest.approx(meta["after_one_adadelta_step"]["char"], rel=1e-3)
    assert after["mask"].item() == pytest.approx(0.5 * meta["after_one_adadelta_step"]["mask"], rel=1e-3)
