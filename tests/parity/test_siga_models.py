"""SIGA's models against numbers measured on the published code: every case of the folder, by what its `meta` says.

`r_rba` is our own: R without the rectification, whose noise hides small errors, computed by our own float64
(`python -m tests.parity.own_siga_case`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.models.tps import Tps, initial_fiducials, sample
from common.text.charset import CHARSET_36, SIGA_36
from common.text.codecs import GlyphCodec, GoCodec
from projects.siga.model.build import build_siga, load_published, make_codec
from projects.siga.model.decoding import HEADS
from projects.siga.model.losses import glyph_targets, predicted_text
from projects.siga.model.variants import VARIANTS
from tests.parity import harness, noise
from tests.parity.noise import Cap, Measured, Outcome, gradient_norms, measure, without_dropout
from tests.parity.spline import check_displacement

LOSS_NAMES = {  # R, S: the published name of each term; T sums the pairs
    "ours": ("loss1D_task", "loss_our"),
    "trba": ("loss1D_1D", "loss_TRBA"),
    "share": ("s_lossr1", "loss_final"),
    "glyph1": ("loss2D_1",),
    "glyph2": ("loss2D_2",),
    "iter1": ("lossr1",),
    "iter2": ("lossr2",),
    "predmask": ("predmask_loss",),
    "correct": ("Correct_loss",),
    "low": ("loss_low",),
    "middle": ("loss_middle",),
    "glyph1+glyph2": ("loss_glyph",),
    "iter1+iter2": ("loss_Iter",),
}
PARTS = ("eval", "tf")
TENSORS = {"char_attn_middle": "middle", "char_attn_low": "low"}
MODULES = {"block": "mgp_str.blocks.{}", "mlahead": "mgp_str.segmentation.mlahead"}


def model_cases(goldens):
    """Files that hold a whole model's outputs."""
    return [
        path
        for path in harness.case_files(goldens, "siga")
        if any(key.partition("/")[0] in PARTS for key in harness.load(path).arrays)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = metafunc.config.getoption("--goldens")
    if "model_case" in metafunc.fixturenames:
        paths = model_cases(goldens)
        metafunc.parametrize("model_case", paths, ids=[path.stem for path in paths], scope="module")
    if "manifest_path" in metafunc.fixturenames:
        paths = harness.case_files(goldens, "siga", "*.manifest.json")
        metafunc.parametrize("manifest_path", paths, ids=[path.name.split(".")[0] for path in paths])


def build_for(entries: dict[str, list[int]], meta: dict, image_size=None, steps: int | None = None):
    """The model whose state dict has these names and shapes: variant by name, sizes read off the shapes."""
    if any(name.startswith("mgp_str.") for name in entries):
        name, prefix = "char_str_base_patch4_3_32_128", "mgp_str."
    else:
        svtr = any("blocks1" in entry for entry in entries)
        tps = any("LocalizationNetwork" in entry for entry in entries)
        name, prefix = "TSBA" if svtr else "TRBA" if tps else "RBA", "model_two."
    options = {"num_class": entries[prefix + "generator.generator.weight"][0], "image_size": image_size}
    options |= {key: meta[key] for key in ("output_channel", "hidden_size") if key in meta}
    fiducials = entries.get("model_one.Transformation.LocalizationNetwork.localization_fc2.bias")
    if fiducials:
        options["num_fiducial"] = fiducials[0] // 2
    if steps:
        options["batch_max_length"] = steps - 1
    return build_siga(meta.get("model_name", name), **options)


def default_entries(meta: dict) -> dict[str, list[int]]:
    """Names and shapes of the case's model, for a case without a manifest of its own."""
    name = meta.get("model_name", "TRBA" if "coefficient_iter0" in meta else "char_str_base_patch4_3_32_128")
    options = {"num_class": meta["num_class"]} if "num_class" in meta else {}
    return {entry: list(value.shape) for entry, value in build_siga(name, **options).state_dict().items()}


class SigaCase:
    """One case: our model filled as the recipe says, its inputs, and what is computed of them."""

    def __init__(self, path, goldens) -> None:
        self.case = harness.load(path)
        self.arrays, self.meta, self.fill = self.case.arrays, self.case.meta, harness.fill(goldens)
        manifest = path.parent / f"{self.case.name}.manifest.json"
        entries = json.loads(manifest.read_text())["entries"] if manifest.exists() else default_entries(self.meta)
        name, shape, *limits = self.meta["image"]
        self.text, self.lengths = self.labels(entries)
        steps = None if self.text is None else self.text.shape[1] - 1
        self.images = torch.from_numpy(self.fill.images(name, tuple(shape), *limits))
        self.masks = block_masks(self.meta.get("mask_recipe", {}), shape)
        self.model = without_dropout(build_for(entries, self.meta, tuple(shape[2:]), steps))
        self.fill.fill_module(self.model)
        self.rescale()
        self.cap = Cap.TPS if any(isinstance(module, Tps) for module in self.model.modules()) else Cap.PLAIN

    def labels(self, entries: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Ids and lengths as stored, else the meta's words through our codec, else None."""
        for ids, lengths in (("labels_index", "labels_length"), ("char_target", "len_target")):
            if ids in self.arrays:
                return torch.from_numpy(self.arrays[ids]).long(), torch.from_numpy(self.arrays[lengths]).long()
        if "labels" not in self.meta:
            return None, None
        family = "T" if any(name.startswith("mgp_str.") for name in entries) else "R"
        charset = self.meta.get("character", CHARSET_36 if family == "T" else SIGA_36)
        ids, lengths = make_codec(family, charset, self.meta.get("batch_max_length", 25)).encode(self.meta["labels"])
        return torch.from_numpy(ids).long(), torch.from_numpy(lengths).long()

    def rescale(self) -> None:
        state = self.model.state_dict()
        for name, factor in self.meta.get("scaled_after_fill", {}).items():
            state[name].mul_(factor)
        for module in self.model.modules():
            if isinstance(module, Tps) and "tps_after_fill" in self.meta:
                factor = float(re.search(r"weight x([\d.]+)", self.meta["tps_after_fill"]).group(1))
                last = module.LocalizationNetwork.localization_fc2
                with torch.no_grad():
                    last.weight.mul_(factor)
                    last.bias.copy_(initial_fiducials(len(last.bias) // 2).flatten())

    def batch_statistics(self, part: str) -> bool:
        """Inference uses running statistics whatever the training part does; `bn` may name the parts."""
        bn = self.meta.get(f"bn_{part}", self.meta.get("bn", "eval"))
        return part != "eval" and "train" in (bn.get(part, "eval") if isinstance(bn, dict) else bn)

    def cap_of(self, part: str) -> float:
        return max(self.cap, Cap.BATCH_NORM) if self.batch_statistics(part) else self.cap

    def keys(self, part: str) -> list[str]:
        return [key for key in self.arrays if key.startswith(f"{part}/")]

    def stored(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """The values that the case stores of a tensor."""
        described = self.meta["tensors"].get(key, {"flat_step": 1})
        assert list(value.shape) == described.get("shape", list(value.shape)), f"{key}: shape {list(value.shape)}"
        step = described["flat_step"]
        return value.detach() if step == 1 else value.detach().flatten()[::step]

    def infer(self, model: torch.nn.Module, images: torch.Tensor) -> Outcome:
        """Every branch's greedy outputs, the features on the way, and the short path to Share."""
        model.train(self.batch_statistics("eval"))
        masks = self.masks.to(images.dtype)
        with torch.no_grad(), watching(model, [key.removeprefix("eval/") for key in self.keys("eval")]) as seen:
            output = model(images, None, masks)
            tensors = self.collect("eval", output, seen, masks)
            tensors["share"] = output.logits["share"]
            tensors["read"] = model.read(images, stop_early=False)[0].logits
        early = model.read(images)[0].logits
        tensors["early end"] = (early - tensors["read"][:, : early.shape[1]]).abs().max()
        return Outcome(tensors)

    def teach(self, model: torch.nn.Module, images: torch.Tensor) -> Outcome:
        """Teacher-forced outputs, and per iteration the losses, their total and its gradients."""
        model.train(self.batch_statistics("tf"))
        masks = self.masks.to(images.dtype)
        output = model(images, self.text[:, :-1], masks)
        made = Outcome(self.collect("tf", output, {}, masks))
        iterations = [int(key.removeprefix("losses_iter")) for key in self.meta if key.startswith("losses_iter")]
        for iteration in iterations:
            weight = self.meta.get(f"coefficient_iter{iteration}", self.meta.get("Correct_weight"))
            if weight is not None:
                loss = replace(model.settings.loss, correct_weight=weight, correct_weight_late=weight)
                model.settings = replace(model.settings, loss=loss)
            losses = model.losses(output, self.text, self.lengths, iteration)
            golden = self.meta[f"losses_iter{iteration}"]
            named = {name: ours for ours, names in LOSS_NAMES.items() for name in names if name in golden}
            assert set(named) == set(golden)
            for name, ours in named.items():
                made.scalars[f"{name} {iteration}"] = sum(losses.parts[part] for part in ours.split("+"))
            made.scalars[f"total {iteration}"] = losses.total
            if f"grad_norms_iter{iteration}" in self.meta:
                made.gradients[str(iteration)] = gradient_norms(model, losses.total, retain=True)
        return made

    def collect(self, part: str, output, seen: dict, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for key in self.keys(part):
            name = key.partition("/")[2]
            if name.endswith("argmax") and name.startswith("share"):
                continue  # compared with the logits
            if name == "fore_mask":
                value = predicted_text(output.maps.seg_logits)
            elif name.startswith("single_char_mask_"):
                value = pseudo_classes(output, self.lengths - 1, getattr(output.maps, name.split("_")[3]))
            else:
                value = tensor_of(output, name, seen, masks)
            found[key] = self.stored(key, value)
            if value.is_floating_point() and "mean" in self.meta["tensors"].get(key, {}):
                found[f"{key} stats"] = torch.stack([value.mean(), value.std(correction=0), value.abs().max()]).detach()
        return found


def block_masks(recipe: dict, shape: list[int]) -> torch.Tensor:
    """The recipe's stripes in the middle half of the image's height, shifted from sample to sample."""
    batch, _, height, width = shape
    period, duty, shift = recipe.get("period", 8), recipe.get("duty", 5), recipe.get("shift", (0, 3))
    masks = torch.zeros(batch, 1, height, width)
    for index in range(batch):
        columns = (torch.arange(width) + shift[index % len(shift)]) % period < duty
        masks[index, :, height // 4 : height - height // 4] = columns.float()
    return masks


@pytest.fixture(scope="module")
def siga(model_case, request) -> SigaCase:
    return SigaCase(model_case, request.config.getoption("--goldens"))


@contextmanager
def watching(model, wanted: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of the modules that golden tensors are named after."""
    seen, handles = {}, []
    for name in wanted:
        path = MODULES["block"].format(name[5:]) if name.startswith("block") else MODULES.get(name, f"mgp_str.{name}")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def tensor_of(output, name: str, seen: dict[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    if name == "seg_logits":
        return output.maps.seg_logits
    if name in TENSORS:
        return getattr(output.maps, TENSORS[name])
    if name == "rectified_mask":
        return sample(masks, output.features["grid"])
    if name == "seq_attention":
        return output.attention.transpose(1, 2)
    if name.removesuffix("_logits") in HEADS:
        return output.logits[name.removesuffix("_logits")]
    return seen[name] if name in seen else output.features[name]


def pseudo_classes(output, lengths: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return glyph_targets(
        predicted_text(output.maps.seg_logits), output.attention, lengths, tuple(maps.shape[2:])
    ).classes


def compare(case: SigaCase, measured: Measured, part: str) -> None:
    for key in case.keys(part):
        name, golden, cap = key.partition("/")[2], case.arrays[key], case.cap_of(part)
        if f"{key} stats" in measured.exact.tensors:  # of the whole tensor: each moves by what a value may be off
            stats = [case.meta["tensors"][key][what] for what in ("mean", "std", "absmax")]
            off = np.abs(measured.exact.tensors[f"{key} stats"] - stats).max()
            allowed = 2 * measured.limit(key, cap)  # of the stored values, and the largest may not be one of them
            assert off <= allowed, f"{key}: statistics off by {off:.3g}, allowed {allowed:.3g}"
        if name == "fore_mask" or name.startswith("single_char_mask_"):
            assert (measured.exact.tensors[key] != golden).sum() <= 2, key
        elif name == "share_argmax":
            measured.check_decoding("share", None, golden, feedback=True, cap=cap)
        elif name.endswith("_logits") and name != "seg_logits" and part == "eval":
            measured.check_decoding(key, golden, feedback=True, cap=cap)
        elif name == "seq_attention" or not name.endswith("argmax"):
            measured.check(key, golden, cap)


def check_strings(meta: dict, ids: np.ndarray) -> None:
    """The strings that the published decoding makes of Share's ids."""
    charset = meta.get("character", CHARSET_36 if "decoded_raw" in meta else SIGA_36)
    if "decoded_raw" in meta:
        codec = GoCodec(charset, ids.shape[1] - 1)
        assert codec.raw_text(ids) == meta["decoded_raw"]
        assert [decoded.text for decoded in codec.decode(ids)] == meta["decoded_pruned"]
    elif "decoded" in meta:
        assert [decoded.text for decoded in GlyphCodec(charset, ids.shape[1]).decode(ids)] == meta["decoded"]


def check_grid(case: SigaCase) -> None:
    """The spline behind a stored rectified picture."""
    key = "eval/rectified_image"
    if key in case.arrays and case.cap == Cap.TPS:
        step = case.meta["tensors"].get(key, {"flat_step": 1})["flat_step"]
        check_displacement(case.model, case.images, case.arrays[key], step, runs=noise.RUNS)


def check_inference(case: SigaCase) -> None:
    measured = measure(case.infer, case.model, {"images": case.images})
    compare(case, measured, "eval")
    check_grid(case)
    exact = measured.exact.tensors
    assert np.abs(exact["read"] - exact["share"]).max() <= 1e-9, "the short path to Share differs"
    assert exact["early end"] <= 1e-9, "reading with an early end differs"
    if measured.sure_steps("share", case.cap) == exact["share"].shape[1]:
        if "min_top2_gap" in case.meta:  # of the golden's own float32 run
            best = np.sort(exact["share"], axis=-1)
            off = abs((best[..., -1] - best[..., -2]).min() - case.meta["min_top2_gap"])
            assert off <= 2 * measured.limit("share", case.cap), f"smallest gap of the best two is off by {off:.3g}"
        check_strings(case.meta, exact["share"].argmax(2))


def check_teaching(case: SigaCase) -> None:
    measured, meta = measure(case.teach, case.model, {"images": case.images}), case.meta
    compare(case, measured, "tf")
    for key in [key for key in meta if key.startswith("losses_iter")]:
        iteration = key.removeprefix("losses_iter")
        for name, golden in meta[key].items():
            measured.check_scalar(f"{name} {iteration}", golden)
        if f"total_iter{iteration}" in meta:
            measured.check_scalar(f"total {iteration}", meta[f"total_iter{iteration}"])
    for iteration in measured.exact.gradients:
        measured.check_gradients(iteration, meta[f"grad_norms_iter{iteration}"])
    if "grad_total_norm" in meta:
        first = min(measured.exact.gradients, key=int)  # the case's first iteration with gradients
        norms = [norm for norm in measured.exact.gradients[first].values() if norm is not None]
        # one sum over all parameters: as good as the largest of them, whose maximum was compared above
        assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(meta["grad_total_norm"], rel=1e-3)


def test_inference(siga: SigaCase) -> None:
    if not siga.keys("eval"):
        pytest.skip("the case has no inference part")
    check_inference(siga)


def test_teacher_forced_losses_and_gradients(siga: SigaCase) -> None:
    if siga.text is None or not (siga.keys("tf") or any(key.startswith("losses_iter") for key in siga.meta)):
        pytest.skip("the case has no training part")
    check_teaching(siga)


def test_weights_of_the_sequence_term() -> None:
    """The published weight of L_seq before and after iteration 20000."""
    for name, expected in (("TRBA", (1.0, 0.3)), ("TSBA", (0.1, 0.1)), ("char_str_base_patch4_3_32_128", (0.15, 0.15))):
        loss = VARIANTS[name].loss
        assert (loss.correct_weight, loss.correct_weight_late) == expected


def test_names_shapes_and_counts(manifest_path) -> None:
    manifest = json.loads(manifest_path.read_text())
    meta = {}
    if (data := manifest_path.parent / (manifest_path.name.split(".")[0] + ".npz")).exists():
        meta = harness.load(data).meta
    size = tuple(meta["image"][1][2:]) if "image" in meta else None
    model = build_for(manifest["entries"], meta, size)
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    constants = {name for name in manifest["entries"] if name.endswith(("inv_delta_C", "P_hat"))}
    assert list(ours) == [name for name in manifest["entries"] if name not in constants]
    assert ours == {name: shape for name, shape in manifest["entries"].items() if name not in constants}
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert sum(count for count, _ in counts) == manifest["total_parameters"]
    assert sum(count for count, trained in counts if trained) == manifest["trainable_parameters"]
    state = {f"module.{name}": torch.zeros(shape) for name, shape in manifest["entries"].items()}
    assert not load_published(model, {"net": state}).missing
