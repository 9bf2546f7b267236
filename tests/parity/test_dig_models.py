"""DiG's networks against the published code: names, outputs, losses, gradients, momentum, decoding."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from projects.dig.model.beam import beam_search, published_beam_search
from projects.dig.model.losses import masked_targets, pixel_loss, sequence_cross_entropy, smoothed_cross_entropy
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import build_pretrainer
from projects.dig.model.recogniser import build_recogniser
from tests.parity import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for fixture, pattern in (("pretrain_case", "pretrain_*.npz"), ("recogniser_case", "rec_*.npz")):
        if fixture in metafunc.fixturenames:
            paths = harness.case_files(goldens, "dig", pattern)
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem, indirect=True, scope="module")


@pytest.fixture(scope="module")
def filler(pytestconfig):
    return harness.fill(pytestconfig.getoption("--goldens"))


def images(filler, recipe: str) -> torch.Tensor:
    """Evaluate a recipe such as `fill.images('name',(2,3,32,128))` without running it as code."""
    name, shape = re.fullmatch(r"fill\.images\('([^']+)',\(([\d,]+)\)\)", recipe).groups()
    return torch.from_numpy(filler.images(name, tuple(int(part) for part in shape.split(","))))


def close(actual, arrays: dict, name: str, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    """Compare with a stored tensor: shape, statistics, and the stored (possibly cut) values."""
    actual = harness.to_numpy(actual)
    if f"{name}.shape" in arrays:
        assert list(actual.shape) == arrays[f"{name}.shape"].tolist(), name
        mean, deviation, largest = arrays[f"{name}.stats"]
        np.testing.assert_allclose(
            [actual.mean(), actual.std(), np.abs(actual).max()],
            [mean, deviation, largest],
            rtol=1e-3,
            atol=1e-4,
            err_msg=f"{name}.stats",
        )
    expected = arrays[name]
    values = actual.reshape(-1)[: expected.size]
    harness.assert_close(values, expected.reshape(-1), absolute=atol, relative_to_absmax=rtol, what=name)


def record(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Keep the outputs of sub-modules during the next forward."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, args, output: outputs.__setitem__(name, output.detach())

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    return outputs


def check_manifest(model: nn.Module, manifest: dict) -> None:
    entries = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(entries) == list(manifest["entries"])
    assert entries == manifest["entries"]
    assert sum(p.numel() for p in model.parameters()) == manifest["total_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == manifest["trainable_parameters"]


def check_gradients(model: nn.Module, expected: dict[str, float]) -> None:
    actual = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    assert not set(expected) - set(actual), sorted(set(expected) - set(actual))
    extra = {name: value for name, value in actual.items() if name not in expected and value > 1e-5}
    assert not extra, extra
    # the comparison is of norms: relative where the norm is a number, absolute where it is rounding of a zero
    scale = max(expected.values())
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=2e-3, abs=max(1e-5, 1e-6 * scale)), name


@pytest.fixture(scope="module")
def pretrain_case(request, filler):
    case = harness.load(request.param)
    meta, kwargs = case.meta, case.meta["kwargs"]
    model = build_pretrainer(
        meta["model"],
        dim=kwargs["dim"],
        mlp_dim=kwargs["mlp_dim"],
        temperature=kwargs["T"],
        windows=kwargs["num_windows"],
        patchnet_name=kwargs["patchnet_name"],
        drop_path=kwargs["drop_path_rate"],
    )
    return case, model


def stacked_masks(recipe: str, rng_of=np.random.RandomState) -> np.ndarray:
    """Masks as a recipe of the goldens draws them: `[calls, views, tokens]`."""
    pattern = r"np\.random\.seed\((\d+)\); "
    pattern += r"RandomMaskingGenerator\(\((\d+),(\d+)\),([\d.]+),num_view=(\d+)\) called (\d+) times"
    seed, rows, columns, ratio, views, calls = re.match(pattern, recipe).groups()
    masking, rng = RandomMasking((int(rows), int(columns)), float(ratio), int(views)), rng_of(int(seed))
    return np.stack([masking(rng) for _ in range(int(calls))])


def test_pretrain(pretrain_case, filler) -> None:
    case, model = pretrain_case
    meta, arrays = case.meta, case.arrays
    check_manifest(model, case.manifest)
    filler.fill_module(model)
    momentum_names = {name for name, p in model.named_parameters() if not p.requires_grad}
    before = meta.get("momentum_param_l2_before", {})
    for name, value in before.items():
        assert name in momentum_names
        assert float(model.get_parameter(name).norm()) == pytest.approx(value, rel=1e-5), name

    masks = stacked_masks(meta["mask_recipe"])
    np.testing.assert_array_equal(masks.astype(bool), arrays["mask"])
    mask = torch.from_numpy(masks).bool()
    hooks = [name.removeprefix("hook.") for name in arrays if name.startswith("hook.") and name.count(".") == 1]
    outputs = record(model, [name for name in hooks if name != "pix_decoder"])
    model.train()
    view1, view2 = images(filler, meta["image"]), images(filler, meta["aug_image"])
    only_first = meta["only_mim_on_ori_img"]
    output = model(view1, view2, mask, meta["moco_m"], only_first)
    for name, tensor in outputs.items():
        close(tensor, arrays, f"hook.{name}")
    if "hook.pix_decoder" in arrays:
        # ours decodes hidden tokens only; the published code decodes all and selects
        close(model.pix_decoder(outputs["encoder"]), arrays, "hook.pix_decoder")

    losses, total = {}, 0.0
    if output.contrast is not None:
        losses = {"contra_loss": output.contrast, **output.accuracies}
        total = total + meta["loss_weight_contrast"] * output.contrast
    if output.pixels is not None:
        targets = masked_targets(
            view1, mask[:, :1] if only_first else mask, model.encoder.patch, meta["normlize_target"]
        )
        for view, (prediction, target) in enumerate(zip(output.pixels, targets)):
            close(prediction, arrays, f"vis_out{view}")
            close(target, arrays, f"vis_label{view}")
        losses["loss_pixel"] = pixel_loss(output.pixels, targets)
        total = total + meta["loss_weight_pixel"] * losses["loss_pixel"]
    losses["loss"] = total
    assert set(losses) == set(meta["losses"])
    for name, value in meta["losses"].items():
        assert float(torch.as_tensor(losses[name]).detach()) == pytest.approx(value, rel=2e-4, abs=2e-5), name

    total.backward()
    check_gradients(model, meta["grad_l2"])
    for name, (mean, deviation) in meta["bn_buffers_after_forward_mean_std"].items():
        buffer = model.get_buffer(name)
        assert [float(buffer.mean()), float(buffer.std())] == pytest.approx([mean, deviation], rel=2e-4, abs=2e-5), name
    for name, value in meta.get("momentum_param_l2_after_forward", {}).items():
        assert float(model.get_parameter(name).norm()) == pytest.approx(value, rel=2e-5), name


def switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0


@pytest.fixture(scope="module")
def recogniser_case(request, filler):
    case = harness.load(request.param)
    args = case.meta["args"]
    recurrent = any(".gru." in name for name in case.manifest["entries"])
    model = build_recogniser(
        args["model"],
        decoder_type="attention" if recurrent else "tf_decoder",
        decoder_name=args["decoder_name"],
        classes=args["nb_classes"],
        max_len=args["max_len"],
        conditioned=args["text_cond_vis"],
        one_row=args["use_1d_attdec"],
        drop=args["drop"],
        attention_drop=args["attn_drop_rate"],
        drop_path=args["drop_path"],
    )
    check_manifest(model, case.manifest)
    filler.fill_module(model)
    unit = model.decoder.decoder if recurrent else model.decoder
    classifier, embedding = (unit.fc, unit.tgt_embedding) if recurrent else (unit.classifier, unit.trg_word_emb)
    with torch.no_grad():
        classifier.weight *= case.meta["cls_scale"]
        classifier.bias[model.end] += case.meta["eos_bias"]
        embedding.weight *= case.meta["emb_scale"]
    return case, model


def test_recogniser_training_pass(recogniser_case, filler) -> None:
    case, model = recogniser_case
    meta, arrays = case.meta, case.arrays
    switch_off_dropout(model)
    model.train()
    hooks = [name.removeprefix("hook.") for name in arrays if name.startswith("hook.") and name.count(".") == 1]
    outputs = record(model, hooks)
    target, length = torch.from_numpy(arrays["target"]), torch.from_numpy(arrays["length"])
    reading = model(images(filler, meta["image"]), target, length, attention=True)
    for name, tensor in outputs.items():
        close(tensor, arrays, f"hook.{name}")
    close(reading.scores, arrays, "train_logits")
    if "train_attn_maps_last_layer" in arrays:
        close(reading.maps, arrays, "train_attn_maps_last_layer")
    loss = sequence_cross_entropy(reading.scores, target, length)
    assert loss.item() == pytest.approx(meta["loss_ce"], rel=2e-4)
    faulty = smoothed_cross_entropy(reading.scores, target, length, 0.1, legacy=True)
    assert faulty.item() == pytest.approx(meta["loss_label_smoothing_0p1_original"], rel=2e-4)
    model.zero_grad()
    loss.backward()
    check_gradients(model, meta["grad_l2"])


def test_recogniser_greedy(recogniser_case, filler) -> None:
    case, model = recogniser_case
    meta, arrays = case.meta, case.arrays
    model.eval()
    batch = images(filler, meta["image"])
    reading = model.read(batch, early_stop=False)
    close(reading.scores, arrays, "eval_probs")
    np.testing.assert_array_equal(reading.ids.numpy(), arrays["eval_ids"])
    np.testing.assert_allclose(reading.scores.max(-1).values.numpy(), arrays["eval_max_prob"], rtol=2e-4, atol=2e-5)
    # the published evaluation takes the cross-entropy of the probabilities themselves
    target, length = torch.from_numpy(arrays["target"]), torch.from_numpy(arrays["length"])
    loss = sequence_cross_entropy(reading.scores, target, length)
    assert loss.item() == pytest.approx(meta["eval_loss_on_probabilities"], rel=2e-4)
    from projects.dig.text import codec_of_classes

    codec = codec_of_classes(model.classes, model.max_len)
    assert [row.text for row in codec.decode(reading.ids.numpy())] == meta["greedy_strings"]
    stopped = model.read(batch)
    assert [row.text for row in codec.decode(stopped.ids.numpy())] == meta["greedy_strings"]


def test_recogniser_beam(recogniser_case, filler) -> None:
    case, model = recogniser_case
    from projects.dig.text import codec_of_classes

    model.eval()
    memory, codec = model.memory(images(filler, case.meta["image"])), codec_of_classes(model.classes, model.max_len)
    for width, strings in case.meta["beam_strings"].items():
        ids = published_beam_search(model, memory, int(width))
        np.testing.assert_array_equal(ids.numpy(), case.arrays[f"beam{width}_ids"], err_msg=f"width {width}")
        assert [row.text for row in codec.decode(ids.numpy())] == strings
        if int(width) == 1:
            assert [row.text for row in codec.decode(beam_search(model, memory, 1)[0].numpy())] == case.meta[
                "greedy_strings"
            ]
