"""DiG's networks against the published code: names, outputs, losses, gradients, momentum, decoding."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from projects.dig.model.beam import beam_search, published_beam_search
from projects.dig.model.losses import masked_targets, pixel_loss, sequence_cross_entropy, smoothed_cross_entropy
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import build_pretrainer
from projects.dig.model.recogniser import build_recogniser
from projects.dig.text import codec_of_classes
from tests.parity import harness
from tests.parity.noise import Cap, Measured, Outcome, float64, gradient_norms, measure, without_dropout
from tests.parity.recipes import images


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for fixture, key in (("pretrain_case", "mask_recipe"), ("recogniser_case", "cls_scale")):
        if fixture in metafunc.fixturenames:
            paths = [path for path in harness.case_files(goldens, "dig") if key in harness.load(path).meta]
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem, indirect=True, scope="module")


@pytest.fixture(scope="module")
def filler(pytestconfig):
    return harness.fill(pytestconfig.getoption("--goldens"))


def check(measured: Measured, arrays: dict, name: str, cap: float = Cap.PLAIN) -> None:
    """Compare with a stored tensor: shape, statistics, and the stored (possibly cut) values."""
    exact, expected = measured.exact.tensors[name], arrays[name]
    if f"{name}.shape" in arrays:
        stats = dict(zip(("mean", "std", "absmax"), arrays[f"{name}.stats"]))
        measured.check_stats(name, {"shape": arrays[f"{name}.shape"].tolist()} | stats, cap)
    where = np.unravel_index(np.arange(expected.size), exact.shape)
    measured.check(name, expected.reshape(-1), cap, where)


@contextmanager
def recording(model: nn.Module, arrays: dict) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of the sub-modules that a case stores as `hook.NAME`, during the forward passes inside."""
    outputs: dict[str, torch.Tensor] = {}
    names = [name.removeprefix("hook.") for name in arrays if name.startswith("hook.") and name.count(".") == 1]

    def keep(name):
        return lambda module, args, output: outputs.__setitem__(f"hook.{name}", output.detach())

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names if name != "pix_decoder"]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def check_manifest(model: nn.Module, manifest: dict) -> None:
    entries = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(entries) == list(manifest["entries"])
    assert entries == manifest["entries"]
    assert sum(p.numel() for p in model.parameters()) == manifest["total_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == manifest["trainable_parameters"]


@pytest.fixture(scope="module")
def pretrain_case(request):
    return load_pretrainer(request.param)


def load_pretrainer(path: Path) -> tuple[harness.Case, nn.Module]:
    """A case and the model that its `meta` describes."""
    case = harness.load(path)
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
    pattern = r"np\.random\.seed\((\d+)\);\s*"
    pattern += r"RandomMaskingGenerator\(\((\d+),\s*(\d+)\),\s*([\d.]+),\s*num_view=(\d+)\) called (\d+) times?"
    seed, rows, columns, ratio, views, calls = re.match(pattern, recipe).groups()
    masking, rng = RandomMasking((int(rows), int(columns)), float(ratio), int(views)), rng_of(int(seed))
    return np.stack([masking(rng) for _ in range(int(calls))])


def test_pretrain(pretrain_case, filler) -> None:
    case, model = pretrain_case
    meta, arrays = case.meta, case.arrays
    if case.has_manifest:
        check_manifest(model, case.manifest)
    filler.fill_module(model)
    momentum_names = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, value in meta.get("momentum_param_l2_before", {}).items():
        assert name in momentum_names
        assert float(model.get_parameter(name).norm()) == pytest.approx(value, rel=1e-5), name
    masks = stacked_masks(meta["mask_recipe"])
    np.testing.assert_array_equal(masks.astype(bool), arrays["mask"])

    def compute(model: nn.Module, view1: torch.Tensor, view2: torch.Tensor) -> Outcome:
        return pretraining_pass(model, view1, view2, torch.from_numpy(masks).bool(), meta, arrays)

    views = {"view1": images(filler, meta["image"]), "view2": images(filler, meta["aug_image"])}
    measured = measure(compute, without_dropout(model), views)
    batch_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    for name in [name for name in arrays if f"{name}.stats" in arrays]:
        check(measured, arrays, name, Cap.BATCH_NORM if batch_norms else Cap.PLAIN)
    for name, value in meta["losses"].items():
        measured.check_scalar(name, value, floor=1e-6)
    if "grad_l2" in meta:
        measured.check_gradients("loss", meta["grad_l2"])
    for name, values in meta.get("bn_buffers_after_forward_mean_std", {}).items():
        for what, value in zip(("mean", "std"), values):
            measured.check_scalar(f"{name}.{what}", value, floor=1e-6)
    for name, value in meta.get("momentum_param_l2_after_forward", {}).items():
        measured.check_scalar(f"{name}.norm", value, relative=2e-5)


def pretraining_pass(model, view1, view2, mask, meta: dict, arrays: dict) -> Outcome:
    """Forward, losses and one backward of the case."""
    only_first = meta["only_mim_on_ori_img"]
    model.train(meta.get("mode", "train") == "train")
    with recording(model, arrays) as tensors:
        output = model(view1, view2, mask, meta["moco_m"], only_first)
    if "hook.pix_decoder" in arrays:
        # ours decodes hidden tokens only; the published code decodes all and selects
        tensors["hook.pix_decoder"] = model.pix_decoder(tensors["hook.encoder"])
    losses, total = {}, 0.0
    if output.contrast is not None:
        losses = {"contra_loss": output.contrast, **output.accuracies}
        total = total + meta["loss_weight_contrast"] * output.contrast
    if output.pixels is not None:
        targets = masked_targets(
            view1, mask[:, :1] if only_first else mask, model.encoder.patch, meta["normlize_target"]
        )
        for view, (prediction, target) in enumerate(zip(output.pixels, targets)):
            tensors |= {f"vis_out{view}": prediction, f"vis_label{view}": target}
        losses["loss_pixel"] = pixel_loss(output.pixels, targets)
        total = total + meta["loss_weight_pixel"] * losses["loss_pixel"]
    made = Outcome(tensors, losses | {"loss": total}, {"loss": gradient_norms(model, total)})
    for name in meta.get("bn_buffers_after_forward_mean_std", {}):
        buffer = model.get_buffer(name)
        made.scalars |= {f"{name}.mean": buffer.mean(), f"{name}.std": buffer.std()}
    for name in meta.get("momentum_param_l2_after_forward", {}):
        made.scalars[f"{name}.norm"] = model.get_parameter(name).norm()
    return made


@pytest.fixture(scope="module")
def recogniser_case(request, filler):
    return load_recogniser(request.param, filler)


def load_recogniser(path: Path, filler) -> tuple[harness.Case, nn.Module]:
    """A case and its model, filled and scaled as the recipe says."""
    case = harness.load(path)
    args = case.meta["args"]
    names = case.manifest["entries"] if case.has_manifest else case.meta.get("grad_l2", {})
    recurrent = args.get("decoder_type") == "attention" or any(".gru." in name for name in names)
    if not names and "decoder_type" not in args:  # the attention decoder alone reads the encoder without a projection
        recurrent = "hook.encoder" in case.arrays and "hook.linear_norm" not in case.arrays
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
    if case.has_manifest:
        check_manifest(model, case.manifest)
    filler.fill_module(model)
    unit = model.decoder.decoder if recurrent else model.decoder
    classifier, embedding = (unit.fc, unit.tgt_embedding) if recurrent else (unit.classifier, unit.trg_word_emb)
    with torch.no_grad():
        classifier.weight *= case.meta["cls_scale"]
        biased = re.search(r"bias\[(\d+)\] \+= eos_bias", case.meta["recipe"])
        classifier.bias[int(biased.group(1)) if biased else model.end] += case.meta["eos_bias"]
        embedding.weight *= case.meta["emb_scale"]
    return case, without_dropout(model)


def targets_of(case: harness.Case, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Ids and lengths as stored, which the words must give, or from the words."""
    arrays, made = case.arrays, None
    if "words" in case.meta:
        made = codec_of_classes(model.classes, model.max_len).encode(case.meta["words"])
    if "target" not in arrays:
        return (torch.from_numpy(made[0]), torch.from_numpy(made[1])) if made else (None, None)
    if made:
        assert np.array_equal(made[0], arrays["target"]) and np.array_equal(made[1], arrays["length"])
    return torch.from_numpy(arrays["target"]), torch.from_numpy(arrays["length"])


def test_recogniser_training_pass(recogniser_case, filler) -> None:
    case, model = recogniser_case
    meta, arrays = case.meta, case.arrays
    target, length = targets_of(case, model)
    if target is None or "loss_ce" not in meta:
        pytest.skip("the case has no labels or no training pass")
    smoothed = re.compile(r"loss_label_smoothing_(\d+)p(\d+)_(\w+)")
    smoothings = {name: found.groups() for name in meta if (found := smoothed.fullmatch(name))}

    def compute(model: nn.Module, batch: torch.Tensor) -> Outcome:
        model.train()
        with recording(model, arrays) as tensors:
            reading = model(batch, target, length, attention=True)
        tensors["train_logits"] = reading.scores
        if "train_logits" not in arrays:
            del tensors["train_logits"]
        if "train_attn_maps_last_layer" in arrays:
            tensors["train_attn_maps_last_layer"] = reading.maps
        scalars = {"loss_ce": sequence_cross_entropy(reading.scores, target, length)}
        for name, (whole, part, form) in smoothings.items():
            amount = float(f"{whole}.{part}")
            scalars[name] = smoothed_cross_entropy(reading.scores, target, length, amount, legacy=form == "original")
        return Outcome(tensors, scalars, {"loss": gradient_norms(model, scalars["loss_ce"])})

    measured = measure(compute, model, {"batch": images(filler, meta["image"])})
    for name in measured.exact.tensors:
        check(measured, arrays, name)
    for name in measured.exact.scalars:
        measured.check_scalar(name, meta[name])
    if "grad_l2" in meta:
        measured.check_gradients("loss", meta["grad_l2"])


def test_recogniser_greedy(recogniser_case, filler) -> None:
    case, model = recogniser_case
    meta, arrays = case.meta, case.arrays
    if "eval_probs" not in arrays:
        pytest.skip("the case has no evaluation pass")

    def compute(model: nn.Module, batch: torch.Tensor) -> Outcome:
        model.eval()
        scores = model.read(batch, early_stop=False).scores
        if "eval_loss_on_probabilities" not in meta:
            return Outcome({"eval_probs": scores})
        # the published evaluation takes the cross-entropy of the probabilities themselves
        target, length = targets_of(case, model)
        return Outcome(
            {"eval_probs": scores}, {"eval_loss_on_probabilities": sequence_cross_entropy(scores, target, length)}
        )

    batch = images(filler, meta["image"])
    measured = measure(compute, model, {"batch": batch})
    exact = measured.exact.tensors["eval_probs"]
    steps = measured.check_decoding("eval_probs", arrays["eval_probs"], arrays.get("eval_ids"), feedback=True)
    if "eval_max_prob" in arrays:
        part = np.s_[:, :steps]
        off = np.abs(exact.max(-1) - arrays["eval_max_prob"])[part].max()
        assert off <= measured.limit("eval_probs", Cap.PLAIN, part)
    if "greedy_min_top2_margin" in meta:  # of the golden's own float32 run
        best = np.sort(exact, axis=-1)
        margin = (best[..., -1] - best[..., -2]).min()
        assert steps < exact.shape[1] or abs(margin - meta["greedy_min_top2_margin"]) <= 2 * measured.limit(
            "eval_probs", Cap.PLAIN
        )
    if steps < exact.shape[1]:
        return
    for name in measured.exact.scalars:
        measured.check_scalar(name, meta[name])
    if "greedy_strings" not in meta:
        return
    codec = codec_of_classes(model.classes, model.max_len)
    assert [row.text for row in codec.decode(exact.argmax(-1))] == meta["greedy_strings"]
    stopped = model.eval().read(batch)
    assert [row.text for row in codec.decode(stopped.ids.numpy())] == meta["greedy_strings"]


def test_recogniser_beam(recogniser_case, filler) -> None:
    """In float64, where every processor finds the same beams."""
    case, model = recogniser_case
    if not case.meta.get("beam_strings"):
        pytest.skip("the case has no beam search")
    codec = codec_of_classes(model.classes, model.max_len)
    model = copy.deepcopy(model).double().eval()
    with float64(), torch.no_grad():
        memory = model.memory(images(filler, case.meta["image"]).double())
        for width, strings in case.meta["beam_strings"].items():
            ids = published_beam_search(model, memory, int(width))
            np.testing.assert_array_equal(ids.numpy(), case.arrays[f"beam{width}_ids"], err_msg=f"width {width}")
            assert [row.text for row in codec.decode(ids.numpy())] == strings
            if int(width) == 1:
                greedy = [row.text for row in codec.decode(beam_search(model, memory, 1)[0].numpy())]
                assert greedy == case.meta["greedy_strings"]
