"""SIGA's models against numbers measured on the published code: every case of the folder, by what its `meta` says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.models.tps import Tps, initial_fiducials, sample
from common.text.charset import CHARSET_36, SIGA_36
from common.text.codecs import GlyphCodec, GoCodec
from projects.siga.model.build import build_siga, load_published, make_codec
from projects.siga.model.decoding import HEADS
from projects.siga.model.losses import glyph_targets, predicted_text
from tests.parity import harness

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
STRUCTURAL = ("predmask", "correct", "low", "middle")
TENSORS = {"char_attn_middle": "middle", "char_attn_low": "low"}
MODULES = {"block": "mgp_str.blocks.{}", "mlahead": "mgp_str.segmentation.mlahead"}


def model_cases(goldens):
    """Files that hold a whole model's outputs."""
    return [
        path
        for path in harness.case_files(goldens, "siga")
        if "losses_iter0" in harness.load(path).meta and "image" in harness.load(path).meta
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
    fiducials = entries.get("model_one.Transformation.LocalizationNetwork.localization_fc2.bias")
    if fiducials:
        options["num_fiducial"] = fiducials[0] // 2
    if steps:
        options["batch_max_length"] = steps - 1
    return build_siga(meta.get("model_name", name), **options)


def default_entries(meta: dict) -> dict[str, list[int]]:
    """Names and shapes of the case's model, for a case without a manifest of its own."""
    name = meta.get("model_name", "TRBA" if "coefficient_iter0" in meta else "char_str_base_patch4_3_32_128")
    return {entry: list(value.shape) for entry, value in build_siga(name).state_dict().items()}


class Measured:
    """One case: our model filled as the recipe says, its inputs, and the golden tensors."""

    def __init__(self, path, goldens) -> None:
        self.case = harness.load(path)
        self.arrays, self.meta, self.fill = self.case.arrays, self.case.meta, harness.fill(goldens)
        manifest = path.parent / f"{self.case.name}.manifest.json"
        entries = json.loads(manifest.read_text())["entries"] if manifest.exists() else default_entries(self.meta)
        ids, lengths = self.labels(entries)
        self.text, self.lengths = torch.from_numpy(ids).long(), torch.from_numpy(lengths).long()
        name, shape, *limits = self.meta["image"]
        self.images = torch.from_numpy(self.fill.images(name, tuple(shape), *limits))
        self.masks = block_masks(self.meta.get("mask_recipe", {}), shape)
        self.model = build_for(entries, self.meta, tuple(shape[2:]), ids.shape[1] - 1)
        self.model.dropout = 0.0
        self.fill.fill_module(self.model)
        self.rescale()
        self.model.train(self.meta.get("bn", "eval") == "train")

    def labels(self, entries: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths as stored, else the meta's words through our codec."""
        for ids, lengths in (("labels_index", "labels_length"), ("char_target", "len_target")):
            if ids in self.arrays:
                return self.arrays[ids], self.arrays[lengths]
        family = "T" if any(name.startswith("mgp_str.") for name in entries) else "R"
        charset = self.meta.get("character", CHARSET_36 if family == "T" else SIGA_36)
        return make_codec(family, charset, self.meta.get("batch_max_length", 25)).encode(self.meta["labels"])

    def rescale(self) -> None:
        state = self.model.state_dict()
        for name, factor in self.meta["scaled_after_fill"].items():
            state[name].mul_(factor)
        for module in self.model.modules():
            if isinstance(module, Tps):
                last = module.LocalizationNetwork.localization_fc2
                with torch.no_grad():
                    last.weight.mul_(0.1)
                    last.bias.copy_(initial_fiducials(len(last.bias) // 2).flatten())

    def expect(self, name: str, actual: torch.Tensor, **tolerance) -> None:
        described = self.meta["tensors"].get(name, {"flat_step": 1})
        step = described["flat_step"]
        actual = harness.to_numpy(actual)
        if "shape" in described:
            assert list(actual.shape) == described["shape"], f"{name}: shape {actual.shape}"
        harness.assert_close(actual if step == 1 else actual.ravel()[::step], self.arrays[name], what=name, **tolerance)


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
def measured(model_case, request) -> Measured:
    return Measured(model_case, request.config.getoption("--goldens"))


def watch(model, wanted: list[str]) -> dict[str, torch.Tensor]:
    """Outputs of the modules that golden tensors are named after."""
    seen: dict[str, torch.Tensor] = {}
    for name in wanted:
        path = MODULES["block"].format(name[5:]) if name.startswith("block") else MODULES.get(name, f"mgp_str.{name}")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    return seen


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


def tolerance(name: str) -> dict[str, float]:
    return {"absolute": 1e-3} if name.endswith("_logits") and name != "seg_logits" else {"relative_to_absmax": 1e-4}


def compare(measured: Measured, output, part: str, seen: dict) -> None:
    for key in measured.arrays:
        folder, _, name = key.partition("/")
        if folder != part:
            continue
        if name.endswith("argmax") and name.startswith("share"):
            assert np.array_equal(output.logits["share"].argmax(2).numpy(), measured.arrays[key])
        elif name == "fore_mask":
            assert (predicted_text(output.maps.seg_logits).numpy() != measured.arrays[key]).sum() <= 2
        elif name.startswith("single_char_mask_"):
            classes = pseudo_classes(output, measured.lengths - 1, getattr(output.maps, name.split("_")[3]))
            assert (classes.numpy() != measured.arrays[key]).sum() <= 2
        else:
            measured.expect(key, tensor_of(output, name, seen, measured.masks), **tolerance(name))


def pseudo_classes(output, lengths: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return glyph_targets(
        predicted_text(output.maps.seg_logits), output.attention, lengths, tuple(maps.shape[2:])
    ).classes


def check_strings(meta: dict, ids: np.ndarray) -> None:
    """The strings that the published decoding makes of Share's ids."""
    charset = meta.get("character", CHARSET_36 if "decoded_raw" in meta else SIGA_36)
    if "decoded_raw" in meta:
        codec = GoCodec(charset, ids.shape[1] - 1)
        assert codec.raw_text(ids) == meta["decoded_raw"]
        assert [decoded.text for decoded in codec.decode(ids)] == meta["decoded_pruned"]
    else:
        assert [decoded.text for decoded in GlyphCodec(charset, ids.shape[1]).decode(ids)] == meta["decoded"]


def test_inference(measured: Measured) -> None:
    """Every branch's greedy outputs and the features on the way; the short path to Share says the same."""
    seen = watch(measured.model, [key.removeprefix("eval/") for key in measured.arrays if key.startswith("eval/")])
    with torch.no_grad():
        output = measured.model(measured.images, None, measured.masks)
        compare(measured, output, "eval", seen)
        reading, _ = measured.model.read(measured.images, stop_early=False)
        early, _ = measured.model.read(measured.images)
    check_strings(measured.meta, reading.logits.argmax(2).numpy())
    harness.assert_close(reading.logits, output.logits["share"].numpy(), absolute=1e-3, what="read")
    harness.assert_close(
        early.logits, reading.logits[:, : early.logits.shape[1]].numpy(), absolute=1e-5, what="early end"
    )


def test_teacher_forced_losses_and_gradients(measured: Measured) -> None:
    model, meta = measured.model, measured.meta
    output = model(measured.images, measured.text[:, :-1], measured.masks)
    with torch.no_grad():
        compare(measured, output, "tf", {})
    for key in [key for key in meta if key.startswith("losses_iter")]:
        iteration = int(key.removeprefix("losses_iter"))
        losses = model.losses(output, measured.text, measured.lengths, iteration)
        check_losses(losses.parts, meta[key])
        if f"total_iter{iteration}" in meta:
            assert losses.total.item() == pytest.approx(meta[f"total_iter{iteration}"], rel=2e-3)
        if f"grad_norms_iter{iteration}" in meta:
            check_gradients(model, losses.total, meta[f"grad_norms_iter{iteration}"])


def check_losses(parts: dict[str, torch.Tensor], golden: dict[str, float]) -> None:
    checked = set()
    for ours, names in LOSS_NAMES.items():
        for name in names:
            if name in golden:
                value = sum(parts[part].item() for part in ours.split("+"))
                relative = 0.01 if ours in STRUCTURAL else 0
                assert value == pytest.approx(golden[name], abs=1e-4 * ("+" in ours) + 1e-4, rel=relative), name
                checked.add(name)
    assert checked == set(golden)


def check_gradients(model, total: torch.Tensor, golden: dict[str, float | None]) -> None:
    model.zero_grad()
    total.backward(retain_graph=True)
    largest = max(value for value in golden.values() if value is not None)
    for name, parameter in model.named_parameters():
        if golden[name] is None:
            assert parameter.grad is None, f"{name}: has a gradient, the published model's has none"
        else:
            # Exact zeros are noise of about 1e-7 of the largest gradient in either code.
            assert parameter.grad.norm().item() == pytest.approx(golden[name], rel=0.01, abs=1e-6 * largest), name


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
