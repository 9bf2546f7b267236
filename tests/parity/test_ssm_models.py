"""SSM's pre-trainer and recognisers against the published code: names, outputs, losses, gradients, decoding."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.losses.contrastive import info_nce
from common.models.images import patchify
from common.models.positions import sincos_2d
from common.models.tps import Tps
from common.train.optim import parameter_groups
from projects.ssm.model.build import CLASSES, build_recogniser, codec_for
from projects.ssm.model.crnn import CTCRecogniser
from projects.ssm.model.parseq import attention_masks
from projects.ssm.model.pretrain_losses import TEMPERATURE, dense_loss
from projects.ssm.model.pretrainer import build_pretrainer, pixel_target
from tests.parity import harness
from tests.parity.noise import Cap, Measured, Outcome, float64, gradient_norms, measure, without_dropout
from tests.parity.recipes import images, stride_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    for fixture in ("pretrain_case", "recogniser_case", "table_case"):
        if fixture in metafunc.fixturenames:
            paths = [path for path in harness.case_files(goldens, "ssm") if kind(path) == fixture]
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem, indirect=True, scope="module")


def kind(path) -> str | None:
    meta = harness.load(path).meta
    if meta.get("cls") in CLASSES:
        return "recogniser_case"
    if {"pos", "neg", "norm_pix_loss"} <= meta.keys():
        return "pretrain_case"
    return "table_case" if str(meta.get("note", "")).startswith("rows ::") else None


@pytest.fixture(scope="module")
def filler(pytestconfig):
    return harness.fill(pytestconfig.getoption("--goldens"))


def compare(case: harness.Case, measured: Measured, name: str, cap: float = Cap.PLAIN, found: str = "") -> None:
    """With a stored array, whole or strided, and its shape; `found` names our tensor where it differs."""
    expected, stats = case.arrays[name], case.meta["stats"][name]
    exact = measured.exact.tensors[found or name]
    measured.check_stats(found or name, stats, cap)
    if expected.shape == exact.shape:
        measured.check(found or name, expected, cap)
    else:
        where = np.unravel_index(np.arange(0, exact.size, stats["flat_stride"]), exact.shape)
        measured.check(found or name, expected, cap, where)


def check_names(model: nn.Module, case: harness.Case) -> None:
    if not case.has_manifest:
        return
    state, manifest = model.state_dict(), case.manifest
    assert list(state) == list(manifest["entries"])
    assert {name: list(tensor.shape) for name, tensor in state.items()} == manifest["entries"]
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == manifest["parameters_trainable"]


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().norm())


def cap_of(model: nn.Module, training: bool = False) -> float:
    """The cap of a model's noise: with a rectification, with batch statistics, or plain."""
    if any(isinstance(module, Tps) for module in model.modules()):
        return Cap.TPS
    batch_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return Cap.BATCH_NORM if training and batch_norms else Cap.PLAIN


# ---------------------------------------------------------------- pre-training


@pytest.fixture(scope="module")
def pretrain_case(request, filler):
    return load_pretrainer(request.param, filler)


def load_pretrainer(path, filler) -> tuple[harness.Case, nn.Module, dict[str, torch.Tensor]]:
    """A case, its filled model with the fixed position tables, and its inputs."""
    case = harness.load(path)
    meta = case.meta
    model = build_pretrainer(meta["model"], img_size=tuple(meta["img_size"]), patch_size=tuple(meta["patch_size"]))
    tables = {name: getattr(model, name).clone() for name in ("pos_embed", "decoder_pos_embed")}
    check_names(model, case)
    filler.fill_module(model)
    with torch.no_grad():
        for name, table in tables.items():
            getattr(model, name).copy_(table)
    return case, model, superimposed(filler, meta)


def superimposed(filler, meta: dict) -> dict[str, torch.Tensor]:
    """x and t of the recipe `x=…; t=…; y,ty=inverted per image by neg; mix=(x+y)/2; teacher_mix=(t+ty)/2`."""
    first, second = meta["inputs"].split(";")[:2]
    x = images(filler, first)
    return {"x": x, "t": images(filler, second, tuple(x.shape))}


def unified_loss(queries: torch.Tensor, keys: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """The published code's second dense loss, which no recipe uses: it also spreads the rows over the keys' directions
    (spec section 6.1).
    """
    rows, targets = norm(queries), F.layer_norm(keys, keys.shape[-1:], eps=1e-5)
    spread = ((rows @ (targets.T @ targets / len(targets))) * rows).sum(1).mean() / rows.shape[1]
    return dense_loss(queries, keys, norm) + 0.02 * spread


def inverted(batch: torch.Tensor, directions: list[int]) -> torch.Tensor:
    axes = {0: [], 1: [2], 2: [1], 3: [1, 2]}
    return torch.stack([image.flip(axes[direction]) for image, direction in zip(batch, directions)])


def losses(output, x: torch.Tensor, y: torch.Tensor, model: nn.Module, meta: dict) -> dict[str, torch.Tensor]:
    temperature, alpha, parts = meta.get("temperature", TEMPERATURE), meta.get("alpha", 0.0), {}
    for name, part, image in (("pos", output.positive, x), ("neg", output.negative, y)):
        parts[f"pix_{name}"] = F.mse_loss(part.pixels, pixel_target(image, model.patch_size, meta["norm_pix_loss"]))
        parts[f"cl_{name}"] = info_nce(part.q, part.k, temperature).loss
    parts |= {
        "loss_pix": parts["pix_pos"] + parts["pix_neg"],
        "loss_feat_cl": parts["cl_pos"] + parts["cl_neg"],
    }
    parts["loss_feat_ratio"] = torch.tensor(alpha)
    return parts | {"loss": parts["loss_pix"] + alpha * parts["loss_feat_cl"]}


def pretraining_outputs(output, batch: int) -> dict[str, torch.Tensor]:
    found = {"latent": output.latent}
    for name, part in (("pos", output.positive), ("neg", output.negative)):
        found |= {
            f"feat_{name}": part.features, f"pred_{name}": part.pixels,
            f"q_{name}": part.q.unflatten(0, (batch, -1)), f"k_{name}": part.k.unflatten(0, (batch, -1)),
        }  # fmt: skip
    return found


def run_pretraining(model: nn.Module, x: torch.Tensor, t: torch.Tensor, meta: dict, momentum: float | None) -> tuple:
    """Output, tensors by stored name and losses of the superimposed batch; with a momentum the copy moves."""
    directions = torch.tensor([meta["pos"], meta["neg"]])
    y = inverted(x, meta["neg"])
    mix, teacher = (x + y) / 2, (t + inverted(t, meta["neg"])) / 2
    output = model(mix, teacher, directions, *([] if momentum is None else [momentum]))
    tensors = pretraining_outputs(output, len(x)) | {"mix_slice": mix}
    return output, tensors, losses(output, x, y, model, meta)


def test_pretrainer_inference(pretrain_case) -> None:
    case, model, inputs = pretrain_case
    meta = case.meta

    def compute(model: nn.Module, x: torch.Tensor, t: torch.Tensor) -> Outcome:
        with torch.no_grad():
            output, tensors, parts = run_pretraining(model.eval(), x, t, meta, None)
            for name, part in (("pos", output.positive), ("neg", output.negative)):
                parts[f"dense_v2_{name}"] = dense_loss(part.q, part.k, model.student_norm)
                parts[f"unigrad_{name}"] = unified_loss(part.q, part.k, model.student_norm)
        return Outcome({f"eval_{name}": value for name, value in tensors.items()}, parts)

    measured = measure(compute, model, inputs)
    for name in [name for name in case.arrays if name.startswith("eval_")]:
        compare(case, measured, name)
    if "patchify_x0" in case.arrays:
        harness.assert_close(patchify(inputs["x"], model.patch_size)[0], case.arrays["patchify_x0"], absolute=1e-6)
    if "mix_slice" in case.arrays:
        golden, exact = case.arrays["mix_slice"], measured.exact.tensors["eval_mix_slice"]
        measured.check("eval_mix_slice", golden, part=stride_of(exact.shape, golden.shape))
    for name, golden in meta.get("eval", {}).items():
        measured.check_scalar(name, golden, relative=1e-5)
    if "no_decay" in meta:
        spared = {
            name
            for group in parameter_groups(model.named_parameters(), 0.05)
            if not group["weight_decay"]
            for name in group["names"]
        }
        assert set(meta["no_decay"]) == spared


def test_pretrainer_step(pretrain_case) -> None:
    case, model, inputs = pretrain_case
    meta = case.meta
    if "train" not in meta and "grad_norm" not in meta:
        pytest.skip("the case has no training step")

    def compute(model: nn.Module, x: torch.Tensor, t: torch.Tensor) -> Outcome:
        _, tensors, parts = run_pretraining(model.train(), x, t, meta, meta.get("mm"))
        made = Outcome({f"train_{name}": value for name, value in tensors.items()}, parts)
        made.gradients["loss"] = gradient_norms(model, parts["loss"])
        state = model.state_dict()
        for name in [*meta.get("ema_norm", ()), *meta.get("bn_running_norm_after_train", ())]:
            made.scalars[name] = state[name].norm()
        for name in meta.get("bn_num_batches_tracked_after_train", ()):
            made.scalars[name] = state[name]
        return made

    measured = measure(compute, model, inputs)
    for name in [name for name in case.arrays if name.startswith("train_")]:
        compare(case, measured, name, Cap.BATCH_NORM)
    for name, golden in meta.get("train", {}).items():
        measured.check_scalar(name, golden)
    # batch norms over a few rows: the original's own float32 is 8e-4 off in the prompt's gradient, 8e-6 in the median
    if "grad_norm" in meta:
        measured.check_gradients("loss", meta["grad_norm"], floor=1e-5)
    for name, value in meta.get("ema_norm", {}).items():
        measured.check_scalar(name, value, relative=1e-5)
    for name, value in meta.get("bn_running_norm_after_train", {}).items():
        measured.check_scalar(name, value)
    for name, value in meta.get("bn_num_batches_tracked_after_train", {}).items():
        assert measured.exact.scalars[name] == value, name


@pytest.fixture(scope="module")
def table_case(request):
    return harness.load(request.param)


def test_position_tables(table_case) -> None:
    note = table_case.meta["note"]
    grid = tuple(int(part) for part in re.search(r"(\d+)x(\d+) grid", note).groups())
    rows = int(re.search(r"rows ::(\d+)", note).group(1))
    for name, expected in table_case.arrays.items():
        dim, columns = int(name.removeprefix("d")), int(re.search(rf"::(\d+) \({name}\)", note).group(1))
        harness.assert_close(sincos_2d(*grid, dim)[::rows, ::columns], expected, absolute=1e-6, what=name)


# ---------------------------------------------------------------- recognisers


@pytest.fixture(scope="module")
def recogniser_case(request, filler):
    return load_recogniser(request.param, filler)


def load_recogniser(path, filler) -> tuple[harness.Case, nn.Module, object, torch.Tensor]:
    """A case, its filled model as the recipe scales it, its codec and its images."""
    case = harness.load(path)
    meta = case.meta
    charset = meta["arguments"]["charset_train"]
    model = build_recogniser(meta["cls"], charset, meta["arguments"])
    check_names(model, case)
    filler.fill_module(model)
    with torch.no_grad():
        for name, factor in meta["gains"].items():
            model.get_parameter(name).mul_(factor)
        if "head_bias" in case.arrays:
            model.head.bias.copy_(torch.from_numpy(case.arrays["head_bias"]))
    return case, without_dropout(model).eval(), codec_for(model, charset), images(filler, meta["inputs"])


CTC = ("CRNN", "TRBC")
FEEDBACK = ("TRBA", "TransOCR", "ClusterSeq", "PARSeq")


def check_reading(case: harness.Case, measured: Measured, name: str, codec, expected: dict, cap: float) -> None:
    """Logits, then ids, texts and confidences; up to the first step whose best two classes nearly tie."""
    stored, stats = case.arrays.get(name), case.meta["stats"].get(name, {})
    exact = measured.exact.tensors[name]
    whole = stored is not None and stored.ndim == 3
    feedback = case.meta["cls"] in FEEDBACK
    steps = measured.check_decoding(name, stored if whole else None, expected.get("ids"), feedback=feedback, cap=cap)
    if stats:
        assert list(exact.shape) == stats["shape"]
    for key in ("min_top2_margin", "margin"):  # of the golden's own float32 run, over all its steps
        if key in expected and steps == exact.shape[1]:
            best = np.sort(exact, axis=-1)
            off = abs((best[..., -1] - best[..., -2]).min() - expected[key])
            assert off <= 2 * measured.limit(name, cap) + 1e-6 * np.abs(exact).max(), f"{name}: margin off by {off:.3g}"
    if steps == exact.shape[1]:
        if stored is not None and not whole:
            compare(case, measured, name, cap)
        ids = exact.argmax(-1)
        probabilities = np.exp(exact.max(-1)) / np.exp(exact).sum(-1)
        if "decoded" in expected:
            decoded = codec.decode(ids, probabilities)
            assert [word.text for word in decoded] == expected["decoded"]
            if "prob_len" in expected and case.meta["cls"] not in CTC:  # published: with the end's
                lengths = [min(len(word.char_confidences) + 1, steps) for word in decoded]
                assert lengths == expected["prob_len"]
            for word, confidence in zip(decoded, expected.get("confidence", [])):
                # a product over all steps, of logits whose margins are thousandths
                assert word.confidence == pytest.approx(confidence, rel=1e-2, abs=1e-30)


def test_recogniser_reads(recogniser_case) -> None:
    case, model, codec, x = recogniser_case
    meta, cap = case.meta, cap_of(model)
    shorter = [name for name in case.arrays if re.fullmatch(r"logits_max_length_\d+", name)]

    def compute(model: nn.Module, x: torch.Tensor) -> Outcome:
        with torch.no_grad():
            tensors = {"logits": model(x)}
            if "memory" in case.arrays:
                tensors["memory"] = model.encode(x)
            tensors |= {name: model(x, int(name.rpartition("_")[2])) for name in shorter}
            if "language_logits" in case.arrays:  # stored for the language model that reads the truth
                wanted = model.full_targets(targets_of(model, codec, meta["validation"]["labels"])[0])
                heads = model.separate(x, wanted)
                tensors |= {"vision_logits": heads.vision.logits, "language_logits": heads.language[0].logits}
        return Outcome(tensors)

    measured = measure(compute, model, {"x": x})
    check_reading(case, measured, "logits", codec, meta, cap)
    for name in measured.exact.tensors.keys() - {"logits"}:
        if name in shorter:
            measured.check_decoding(name, case.arrays[name], feedback=True, cap=cap)
        else:
            compare(case, measured, name, cap)
    if "logits_full_first_rows" in case.arrays:
        golden = case.arrays["logits_full_first_rows"]
        first = np.s_[:, : min(golden.shape[1], measured.sure_steps("logits", cap))]
        measured.check("logits", golden[first], cap, first)
    optional = {"encoder.cls_token", "encoder.dist_token", "model.cls_token", "model.dist_token"}
    if "no_weight_decay" in meta:
        assert set(meta["no_weight_decay"]) - optional == model.no_weight_decay() - optional


def decoding_modes(case: harness.Case) -> dict[str, dict]:
    """Stored logits of other ways of decoding and what is expected of them."""
    modes = {f"logits_{name}": expected for name, expected in case.meta.get("variants", {}).items()}
    return modes | ({"eos_logits": case.meta["eos_bias"]} if "eos_bias" in case.meta else {})


def decode_in(mode: str, expected: dict, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits of a mode: EOS-biased (early stop), or `ar<0|1>_refine<n>` of PARSeq; the model stays as it was."""
    if mode == "eos_logits":
        bias, before = model.head.bias, model.head.bias.clone()
        bias[int(re.search(r"\[(\d+)\]", expected.get("added_to", "[0]")).group(1))] += expected["value"]
        logits = model(x)
        bias.copy_(before)
        return logits
    before = model.decode_ar, model.refine_iters
    autoregressive, refinements = re.fullmatch(r"logits_ar(\d)_refine(\d+)", mode).groups()
    model.decode_ar, model.refine_iters = autoregressive == "1", int(refinements)
    logits = model(x)
    model.decode_ar, model.refine_iters = before
    return logits


def test_recogniser_modes(recogniser_case) -> None:
    case, model, codec, x = recogniser_case
    modes = decoding_modes(case)
    if not modes:
        pytest.skip("the case has one way of decoding")

    def compute(model: nn.Module, x: torch.Tensor) -> Outcome:
        with torch.no_grad():
            return Outcome({mode: decode_in(mode, expected, model, x) for mode, expected in modes.items()})

    measured = measure(compute, model, {"x": x})
    for mode, expected in modes.items():
        assert measured.exact.tensors[mode].shape[1] == expected.get("steps", measured.exact.tensors[mode].shape[1])
        check_reading(case, measured, mode, codec, expected, cap_of(model))


def targets_of(model: nn.Module, codec, labels: list[str]) -> tuple[torch.Tensor, ...]:
    ids, lengths = codec.encode(labels)
    ids, lengths = torch.from_numpy(ids), torch.from_numpy(lengths)
    return (ids, lengths) if isinstance(model, CTCRecogniser) else (ids,)


def test_recogniser_validation_loss(recogniser_case) -> None:
    """Greedy logits against the labels: what validation logs. In float64, where no tie depends on the processor."""
    case, model, codec, x = recogniser_case
    if "validation" not in case.meta:
        pytest.skip("no validation loss is stored for this case")
    expected = case.meta["validation"]
    targets = targets_of(model, codec, expected["labels"])
    model = copy.deepcopy(model).double()
    with float64(), torch.no_grad():
        if isinstance(model, CTCRecogniser):
            loss = model.loss(x.double(), *targets)
        else:
            wanted = targets[0][:, 1:]
            logits = model(x.double(), wanted.shape[1] - 1)
            assert list(logits.shape) == expected.get("logits_shape", list(logits.shape))
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=model.pad_id)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-4)
    if "numel" in expected:  # predicted symbols, or words where the loss is a mean over words
        counted = len(targets[0]) if isinstance(model, CTCRecogniser) else int((wanted != model.pad_id).sum())
        assert counted == expected["numel"]
    if "encoded_labels" in case.arrays:
        assert np.array_equal(targets[0].numpy(), case.arrays["encoded_labels"])


def test_recogniser_training_loss(recogniser_case) -> None:
    case, model, codec, x = recogniser_case
    meta = case.meta
    key = next((key for key in ("train_loss", "train_loss_train_mode_bn") if key in meta), None)
    if key is None and "abinet_eval_losses" not in meta:
        pytest.skip("no training loss is stored for this case")
    labels = meta.get("train_labels") or meta["validation"]["labels"]
    targets = targets_of(model, codec, labels)
    options = {"orders": torch.from_numpy(case.arrays["perms"])} if "perms" in case.arrays else {}
    batch_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())

    def compute(model: nn.Module, x: torch.Tensor) -> Outcome:
        if key is None:
            wanted = model.full_targets(targets[0])
            with torch.no_grad():
                return Outcome({}, model.eval().loss_parts(model.separate(x, wanted), wanted))
        # only a loss that is named so has batch statistics; models without batch norms have one mode, dropout being off
        loss = model.train(key.endswith("train_mode_bn") or not batch_norms).loss(x, *targets, **options)
        made = Outcome({}, {key: loss}, {"loss": gradient_norms(model, loss)})
        model.eval()
        return made

    measured = measure(compute, model, {"x": x})
    for name in measured.exact.scalars:
        measured.check_scalar(name, (meta if key else meta["abinet_eval_losses"])[name])
    if key and "grad_norm" in meta:
        measured.check_gradients("loss", meta["grad_norm"])


def test_permutation_masks(recogniser_case) -> None:
    case, model, _, _ = recogniser_case
    for name, expected in case.arrays.items():
        found = re.fullmatch(r"(content|query)_mask_perm(\d+)", name)
        if found:
            masks = attention_masks(torch.from_numpy(case.arrays["perms"][int(found.group(2))]))
            actual = masks[0] if found.group(1) == "content" else masks[1]
            assert np.array_equal(~actual.numpy(), expected != 0), name
