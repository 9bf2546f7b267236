"""SSM's pre-trainer and recognisers against the published code: names, outputs, losses, gradients, decoding."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.losses.contrastive import info_nce
from common.models.patches import patchify
from common.models.positions import sincos_2d
from projects.ssm.models.build import CLASSES, build_recogniser, codec_for
from projects.ssm.models.crnn import CTCRecogniser
from projects.ssm.models.parseq import attention_masks
from projects.ssm.pretrain.losses import dense_loss
from projects.ssm.pretrain.model import build_pretrainer
from tests.parity import harness


def has_meta(path, key: str) -> bool:
    return key in harness.load(path).meta


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    keys = {"pretrain_case": "teacher_mix", "recogniser_case": "cls", "table_case": "rows ::"}
    for fixture in keys:
        if fixture in metafunc.fixturenames:
            paths = [path for path in harness.case_files(goldens, "ssm") if kind(path) == fixture]
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem, indirect=True, scope="module")


def kind(path) -> str | None:
    meta = harness.load(path).meta
    if meta.get("cls") in CLASSES:
        return "recogniser_case"
    if "mm" in meta and "alpha" in meta:
        return "pretrain_case"
    return "table_case" if str(meta.get("note", "")).startswith("rows ::") else None


@pytest.fixture(scope="module")
def filler(pytestconfig):
    return harness.fill(pytestconfig.getoption("--goldens"))


def images(filler, recipe: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """The first `images('name',(shape)[,low,high])` of a recipe; "repeated 8" enlarges it 8 times each way."""
    name, sizes, bounds = re.search(r"images\('([^']+)',(?:\(([\d,]+)\)|same)((?:,[-\d.]+)*)\)", recipe).groups()
    shape = tuple(int(part) for part in sizes.split(",")) if sizes else shape
    limits = [float(part) for part in bounds.split(",") if part]
    array = filler.images(name, shape, *limits)
    if "repeated 8" in recipe:
        array = array.repeat(8, 2).repeat(8, 3)
    return torch.from_numpy(array)


def compare(case: harness.Case, name: str, actual, *, absolute: float) -> None:
    """With a stored array, whole or strided, and its shape."""
    expected, stats = case.arrays[name], case.meta["stats"][name]
    actual = harness.to_numpy(actual)
    if expected.shape != tuple(stats["shape"]):
        assert list(actual.shape) == stats["shape"], name
        actual = actual.reshape(-1)[:: stats["flat_stride"]]
    harness.assert_close(actual, expected, absolute=absolute, what=name)


def check_names(model: nn.Module, manifest: dict) -> None:
    state = model.state_dict()
    assert list(state) == list(manifest["entries"])
    assert {name: list(tensor.shape) for name, tensor in state.items()} == manifest["entries"]
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == manifest["parameters_trainable"]


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().norm())


def check_gradients(model: nn.Module, expected: dict[str, float], rel: float) -> None:
    actual = {name: norm(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    assert set(actual) == set(expected)
    floor = 1e-4 * max(expected.values())
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=rel, abs=floor), name


# ---------------------------------------------------------------- pre-training


@pytest.fixture(scope="module")
def pretrain_case(request, filler):
    case = harness.load(request.param)
    meta = case.meta
    model = build_pretrainer(meta["model"], img_size=tuple(meta["img_size"]), patch_size=tuple(meta["patch_size"]))
    tables = {name: getattr(model, name).clone() for name in ("pos_embed", "decoder_pos_embed")}
    check_names(model, case.manifest)
    filler.fill_module(model)
    with torch.no_grad():
        for name, table in tables.items():
            getattr(model, name).copy_(table)
    return case, model, superimposed(filler, meta)


def superimposed(filler, meta: dict) -> dict[str, torch.Tensor]:
    """x, y and the two mixtures, from the recipe `x=…; t=…; y,ty=inverted per image by neg; mix=(x+y)/2; …`."""
    first, second = meta["inputs"].split(";")[:2]
    x = images(filler, first)
    t = images(filler, second, tuple(x.shape))
    axes = {0: [], 1: [2], 2: [1], 3: [1, 2]}

    def invert(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.flip(axes[direction]) for image, direction in zip(batch, meta["neg"])])

    y = invert(x)
    return {"x": x, "y": y, "mix": (x + y) / 2, "teacher": (t + invert(t)) / 2}


def losses(output, inputs: dict, patch: tuple[int, int], normalise: bool) -> dict[str, torch.Tensor]:
    from projects.ssm.pretrain.model import pixel_target

    parts = {}
    for name, part, image in (("pos", output.positive, inputs["x"]), ("neg", output.negative, inputs["y"])):
        parts[f"pix_{name}"] = F.mse_loss(part.pixels, pixel_target(image, patch, normalise))
        parts[f"cl_{name}"] = info_nce(part.q, part.k, 0.2).loss
    return parts | {
        "loss_pix": parts["pix_pos"] + parts["pix_neg"],
        "loss_feat_cl": parts["cl_pos"] + parts["cl_neg"],
    }


def test_pretrainer_inference(pretrain_case) -> None:
    case, model, inputs = pretrain_case
    meta, directions = case.meta, torch.tensor([case.meta["pos"], case.meta["neg"]])
    model.eval()
    with torch.no_grad():
        output = model(inputs["mix"], inputs["teacher"], directions)
    found = {"latent": output.latent}
    for name, part in (("pos", output.positive), ("neg", output.negative)):
        batch = len(inputs["x"])
        found |= {
            f"feat_{name}": part.features, f"pred_{name}": part.pixels,
            f"q_{name}": part.q.unflatten(0, (batch, -1)), f"k_{name}": part.k.unflatten(0, (batch, -1)),
        }  # fmt: skip
    for name in [name for name in case.arrays if name.startswith("eval_")]:
        compare(case, name, found[name.removeprefix("eval_")], absolute=2e-4)
    harness.assert_close(patchify(inputs["x"], model.patch_size)[0], case.arrays["patchify_x0"], absolute=1e-6)
    parts = losses(output, inputs, model.patch_size, meta["norm_pix_loss"])
    for name, part in (("pos", output.positive), ("neg", output.negative)):
        if f"dense_v2_{name}" in meta["eval"]:
            parts[f"dense_v2_{name}"] = dense_loss(part.q, part.k, model.student_norm)
    for name, value in parts.items():
        assert float(value) == pytest.approx(meta["eval"][name], rel=1e-5), name


def test_pretrainer_step(pretrain_case) -> None:
    case, model, inputs = pretrain_case
    meta, directions = case.meta, torch.tensor([case.meta["pos"], case.meta["neg"]])
    model.train()
    output = model(inputs["mix"], inputs["teacher"], directions, meta["mm"])
    parts = losses(output, inputs, model.patch_size, meta["norm_pix_loss"])
    total = parts["loss_pix"] + meta["alpha"] * parts["loss_feat_cl"]
    total.backward()
    for name, value in (parts | {"loss": total}).items():
        if name in meta["train"]:
            assert float(value.detach()) == pytest.approx(meta["train"][name], rel=1e-4), name
    check_gradients(model, meta["grad_norm"], 2e-3)
    state = model.state_dict()
    for name, value in meta["ema_norm"].items():
        assert norm(state[name]) == pytest.approx(value, rel=1e-5), name
    for name, value in meta["bn_running_norm_after_train"].items():
        assert norm(state[name]) == pytest.approx(value, rel=1e-4), name
    for name, value in meta["bn_num_batches_tracked_after_train"].items():
        assert int(state[name]) == value, name


@pytest.fixture(scope="module")
def table_case(request):
    return harness.load(request.param)


def test_position_tables(table_case) -> None:
    grid = tuple(int(part) for part in re.search(r"(\d+)x(\d+) grid", table_case.meta["note"]).groups())
    for name, expected in table_case.arrays.items():
        dim = int(name.removeprefix("d"))
        columns = re.search(rf"::(\d+) \({name}\)", table_case.meta["note"])
        step = int(columns.group(1))
        harness.assert_close(sincos_2d(*grid, dim)[::7, ::step], expected, absolute=1e-6, what=name)


# ---------------------------------------------------------------- recognisers


@pytest.fixture(scope="module")
def recogniser_case(request, filler):
    case = harness.load(request.param)
    meta = case.meta
    charset = meta["arguments"]["charset_train"]
    model = build_recogniser(meta["cls"], charset, meta["arguments"])
    manifest = case.path.parent / f"{case.name}.manifest.json"
    if manifest.exists():
        check_names(model, case.manifest)
    filler.fill_module(model)
    with torch.no_grad():
        for name, factor in meta["gains"].items():
            model.get_parameter(name).mul_(factor)
        if "head_bias" in case.arrays:
            model.head.bias.copy_(torch.from_numpy(case.arrays["head_bias"]))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return case, model.eval(), codec_for(model, charset), images(filler, meta["inputs"])


def check_reading(case: harness.Case, name: str, logits: torch.Tensor, codec, expected: dict) -> None:
    """Logits within 1e-3, then ids, texts and confidences; up to the first step whose best two classes nearly tie."""
    stored, shape = case.arrays.get(name), case.meta["stats"].get(name, {}).get("shape")
    best = logits.topk(2, dim=-1).values
    tie = ((best[..., 0] - best[..., 1]) < 1e-3).any(0).nonzero()
    sure = int(tie[0]) + 1 if len(tie) else logits.shape[1]
    feedback = case.meta["cls"] in ("TRBA", "TransOCR", "ClusterSeq", "PARSeq")
    limit = sure if feedback else logits.shape[1]
    if stored is not None and stored.ndim == 3:
        harness.assert_close(logits[:, :limit], stored[:, :limit], absolute=1e-3, what=name)
        assert list(logits.shape) == shape
    elif stored is not None:
        compare(case, name, logits, absolute=1e-3)
    probabilities, ids = logits.softmax(-1).max(-1)
    if "ids" in expected:
        harness.assert_close(ids[:, :sure], np.array(expected["ids"])[:, :sure], what=f"{name}: ids")
    if sure == logits.shape[1] and "decoded" in expected:
        decoded = codec.decode(ids.numpy(), probabilities.numpy())
        assert [word.text for word in decoded] == expected["decoded"]
        for word, confidence in zip(decoded, expected.get("confidence", [])):
            assert word.confidence == pytest.approx(confidence, rel=1e-2, abs=1e-30)


def test_recogniser_reads(recogniser_case) -> None:
    case, model, codec, x = recogniser_case
    meta = case.meta
    with torch.no_grad():
        check_reading(case, "logits", model(x), codec, meta)
        if "memory" in case.arrays:
            compare(case, "memory", model.encode(x), absolute=1e-3)
        if "logits_max_length_5" in case.arrays:
            compare(case, "logits_max_length_5", model(x, 5), absolute=1e-3)
        if "language_logits" in case.arrays:  # stored for the language model that reads the truth
            wanted = model.full_targets(targets_of(model, codec, meta["validation"]["labels"])[0])
            heads = model.separate(x, wanted)
            compare(case, "vision_logits", heads.vision.logits, absolute=1e-3)
            compare(case, "language_logits", heads.language[0].logits, absolute=1e-3)
    optional = {"encoder.cls_token", "encoder.dist_token", "model.cls_token", "model.dist_token"}
    if "no_weight_decay" in meta:
        assert set(meta["no_weight_decay"]) - optional == model.no_weight_decay() - optional


def test_recogniser_modes(recogniser_case) -> None:
    """EOS-biased decoding (early stop) and PARSeq's other ways of decoding."""
    case, model, codec, x = recogniser_case
    with torch.no_grad():
        if "eos_bias" in case.meta:
            biased = case.meta["eos_bias"]
            model.head.bias[0] += biased["value"]
            try:
                logits = model(x)
                assert logits.shape[1] == biased["steps"]
                check_reading(case, "eos_logits", logits, codec, biased)
            finally:
                model.head.bias[0] -= biased["value"]
        for name, expected in case.meta.get("variants", {}).items():
            before = model.decode_ar, model.refine_iters
            autoregressive, refinements = re.fullmatch(r"ar(\d)_refine(\d+)", name).groups()
            model.decode_ar, model.refine_iters = autoregressive == "1", int(refinements)
            try:
                check_reading(case, f"logits_{name}", model(x), codec, expected)
            finally:
                model.decode_ar, model.refine_iters = before


def targets_of(model: nn.Module, codec, labels: list[str]) -> tuple[torch.Tensor, ...]:
    ids, lengths = codec.encode(labels)
    ids, lengths = torch.from_numpy(ids), torch.from_numpy(lengths)
    return (ids, lengths) if isinstance(model, CTCRecogniser) else (ids,)


def test_recogniser_validation_loss(recogniser_case) -> None:
    """Greedy logits against the labels: what validation logs."""
    case, model, codec, x = recogniser_case
    if "validation" not in case.meta:
        pytest.skip("no validation loss is stored for this case")
    expected = case.meta["validation"]
    targets = targets_of(model, codec, expected["labels"])
    with torch.no_grad():
        if isinstance(model, CTCRecogniser):
            loss = model.loss(x, *targets)
        else:
            wanted = targets[0][:, 1:]
            logits = model(x, wanted.shape[1] - 1)
            assert list(logits.shape) == expected["logits_shape"]
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=model.pad_id)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-4)
    if "encoded_labels" in case.arrays:
        assert np.array_equal(targets[0].numpy(), case.arrays["encoded_labels"])


def test_recogniser_training_loss(recogniser_case) -> None:
    case, model, codec, x = recogniser_case
    meta = case.meta
    if "abinet_eval_losses" in meta:
        wanted = model.full_targets(targets_of(model, codec, meta["validation"]["labels"])[0])
        with torch.no_grad():
            parts = model.loss_parts(model.separate(x, wanted), wanted)
        for name, value in parts.items():
            assert float(value) == pytest.approx(meta["abinet_eval_losses"][name], rel=1e-4), name
        return
    key = next((key for key in ("train_loss", "train_loss_train_mode_bn") if key in meta), None)
    if key is None:
        pytest.skip("no training loss is stored for this case")
    labels = meta.get("train_labels") or meta["validation"]["labels"]
    options = {"orders": torch.from_numpy(case.arrays["perms"])} if "perms" in case.arrays else {}
    model.train()
    try:
        loss = model.loss(x, *targets_of(model, codec, labels), **options)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(meta[key], rel=1e-4)
        check_gradients(model, meta["grad_norm"], 5e-3)
    finally:
        model.eval()
        model.zero_grad()


def test_permutation_masks(recogniser_case) -> None:
    case, model, _, _ = recogniser_case
    for name, expected in case.arrays.items():
        found = re.fullmatch(r"(content|query)_mask_perm(\d+)", name)
        if found:
            masks = attention_masks(torch.from_numpy(case.arrays["perms"][int(found.group(2))]))
            actual = masks[0] if found.group(1) == "content" else masks[1]
            assert np.array_equal(~actual.numpy(), expected != 0), name
