"""SIGA's models, losses and mask tool at small sizes: shapes, single images, gradients, loading, and the edges."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.bad import stored
from common.data.decode import decode_mask, decode_rgb
from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError
from common.models.weights import add_prefix
from projects.siga.mask_create import generate_mask, merge, shards
from projects.siga.model.build import build_siga, init_published, load_published, load_tps, make_codec
from projects.siga.model.kmeans_mask import kmeans_mask, text_mask
from projects.siga.model.losses import glyph_class_weights, segmentation_loss, structural_losses
from projects.siga.model.variants import LossSettings, variant

SMALL = ("TRBA_small", "TSBA_small", "char_str_small")
WORDS = ["glyph", "a", "siga2023"]


def batch_for(model, words=WORDS):
    """(images, text ids, lengths, masks) of random pixels for these words."""
    torch.manual_seed(1)
    height, width = model.settings.image_size
    charset = "0123456789abcdefghijklmnopqrstuvwxyz"
    ids, lengths = make_codec(model.settings.family, charset, model.steps - 1).encode(words)
    images = torch.rand(len(words), 3, height, width)
    masks = (torch.rand(len(words), 1, height, width) > 0.6).float()
    return images, torch.from_numpy(ids), torch.from_numpy(lengths), masks


@pytest.fixture(scope="module", params=SMALL)
def model(request):
    torch.manual_seed(0)
    return build_siga(request.param, batch_max_length=10)


@pytest.mark.parametrize("words", [WORDS, WORDS[:1]], ids=["three", "one"])
def test_a_training_step_reaches_every_used_parameter(model, words) -> None:
    """Also with one image, and with all outputs in their documented shapes."""
    model.train()
    images, text, lengths, masks = batch_for(model, words)
    output = model(images, text[:, :-1], masks)
    assert {logits.shape for logits in output.logits.values()} == {(len(words), model.steps, model.num_class)}
    assert output.attention.shape[:2] == (len(words), model.steps)
    assert output.maps.seg_logits.shape == (len(words), 2, *model.settings.image_size)
    assert output.maps.low.shape[1] == output.maps.middle.shape[1] == model.steps + 1
    losses = model.losses(output, text, lengths, 0)
    assert all(torch.isfinite(part) for part in losses.parts.values())
    model.zero_grad()
    losses.total.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = ("downsampler", "head.", "mgp_str.norm.", "token_norm_2")
    assert all(any(part in name for part in unused) for name in without), without


def test_reading_is_the_share_branch_and_may_end_early(model) -> None:
    model.eval()
    images = batch_for(model)[0]
    with torch.inference_mode():
        full, _ = model.read(images, stop_early=False)
        early, maps = model.read(images)
        everything = model(images)
    assert torch.allclose(full.logits, everything.logits["share"], atol=1e-4)
    assert torch.allclose(early.logits, full.logits[:, : early.logits.shape[1]], atol=1e-4)
    assert torch.allclose(full.attention.sum(dim=2), torch.ones(len(images), model.steps), atol=1e-4)
    assert maps.seg_logits is None


def test_reading_stops_when_every_word_has_ended(model) -> None:
    model.eval()
    heads = (model.mgp_str if model.settings.family == "T" else model.model_two).heads()
    before = heads.generator.generator.bias.detach().clone()
    with torch.no_grad():
        heads.generator.generator.bias[model.end_id] += 1e6
        reading, _ = model.read(batch_for(model)[0])
        heads.generator.generator.bias.copy_(before)
    assert reading.logits.shape[1] == 1


def test_dropout_only_in_training(model) -> None:
    images, text, _, masks = batch_for(model)
    model.eval()
    once, again = (model(images, text[:, :-1], masks).logits["share"] for _ in range(2))
    assert torch.equal(once, again)
    assert model.active_dropout == 0 and model.train().active_dropout == 0.3


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_load_with_and_without_prefix(model, prefix) -> None:
    state = {
        name: torch.randn(value.shape) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    load_published(model, {"net": add_prefix(state, prefix)})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_checkpoints_with_spline_constants_load_strictly() -> None:
    model = build_siga("TRBA_small")
    state = model.state_dict()
    assert not any("GridGenerator" in name for name in state)
    place = "model_one.Transformation.GridGenerator."
    pixels = model.settings.image_size[0] * model.settings.image_size[1]
    load_published(
        model, {**state, place + "inv_delta_C": torch.zeros(23, 23), place + "P_hat": torch.zeros(pixels, 23)}
    )
    assert model.model_one.Transformation.GridGenerator.P_hat.abs().sum() > 0
    state.pop("model_two.pw.weight")
    with pytest.raises(UserError, match=r"missing: model_two\.pw\.weight"):
        load_published(model, state)
    with pytest.raises(UserError, match=r"other shape: .*generator"):
        load_published(model, build_siga("TRBA_small", num_class=95).state_dict())


def test_rectification_is_frozen_with_its_weights_only() -> None:
    model = build_siga("TRBA_small")
    spline = model.model_one.Transformation
    assert all(parameter.requires_grad for parameter in spline.parameters())
    load_tps(model, add_prefix({name: value for name, value in model.state_dict().items() if "Localization" in name}))
    assert not any(parameter.requires_grad for parameter in spline.parameters())
    with pytest.raises(UserError, match="LocalizationNetwork"):
        load_tps(model, {"other": torch.zeros(1)})


def test_published_start() -> None:
    model = build_siga("TSBA_small")
    init_published(model)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(not value.any() for name, value in state.items() if name.endswith("bias") and "fc2" not in name)
    assert (state["model_one.FeatureExtraction.norm.weight"] == 1).all()
    assert state["model_two.pw.weight"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    positions = state["model_one.FeatureExtraction.pos_embed"]  # [1, N, D]: Xavier with fans N D and D
    _, cells, width = positions.shape
    assert positions.std() == pytest.approx((2 / (width * (cells + 1))) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["CRNN", "TRBB"])
def test_other_names_are_refused(name) -> None:
    with pytest.raises(UserError, match=name):
        variant(name)


def test_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="imgH"):
        build_siga("TRBA", image_size=(64, 128))
    with pytest.raises(UserError, match="num_fiducial"):
        build_siga("TRBA", num_fiducial=7)


def test_no_image_below_the_outlier_limit_falls_back_to_the_mean() -> None:
    """After iteration 20 000 all images inverted: the published loss is NaN, ours the plain mean."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1
    wrong = torch.stack([masks[:, 0], 1 - masks[:, 0]], dim=1) * 40 - 20
    assert segmentation_loss(wrong, masks, 20_001) == segmentation_loss(wrong, masks, 0) > 1.0
    one_right = torch.cat([wrong[:1], -wrong[1:]])
    assert segmentation_loss(one_right, masks, 20_001) < segmentation_loss(one_right, masks, 20_000)


def test_an_empty_word_gives_finite_losses() -> None:
    parts = structural_losses(
        torch.full((2, 6, 8), 1 / 8),
        torch.randn(2, 2, 16, 32),
        torch.ones(2, 1, 16, 32),
        {"low": torch.randn(2, 7, 8, 16), "middle": torch.randn(2, 7, 4, 8)},
        torch.tensor([0, 3]),
        0,
        LossSettings(),
    )
    assert all(torch.isfinite(value) for value in parts.values())


def test_class_weights_of_s() -> None:
    weights = glyph_class_weights(27)
    assert weights.shape == (27,) and (weights[21:] == 1).all() and (weights[8:14] == 2.859).all()
    assert torch.equal(weights[14:21], weights[1:8].flip(0))


def test_masks_follow_the_border_vote() -> None:
    grey = np.full((12, 40), 200, np.uint8)
    grey[4:8, 10:30] = 30
    assert np.array_equal(kmeans_mask(grey), (grey < 100).astype(np.uint8))
    assert np.array_equal(kmeans_mask(255 - grey), (grey < 100).astype(np.uint8))
    assert not kmeans_mask(np.full((5, 5), 7, np.uint8)).any()
    with pytest.raises(ValueError, match="uint8"):
        kmeans_mask(np.zeros((0, 4), np.uint8))


def picture(seed: int) -> np.ndarray:
    """A noisy crop with a dark bar."""
    rng = np.random.default_rng(seed)
    image = rng.integers(150, 255, (20 + seed, 60, 3)).astype(np.uint8)
    image[6:12, 10:50] = rng.integers(0, 60, (6, 40, 3))
    return image


def write_pictures(folder, count: int) -> None:
    """A word LMDB of PNG crops; the third picture is broken."""
    import cv2

    with LmdbWriter(folder) as writer:
        for index in range(count):
            data = cv2.imencode(".png", picture(index)[:, :, ::-1])[1].tobytes()
            writer.add(b"broken" if index == 2 else data, "word")


def test_mask_tool_end_to_end(tmp_path, capsys, monkeypatch) -> None:
    """All samples in the mirrored layout, resumed after a stop, a broken picture listed; a second run does nothing."""
    source, root = tmp_path / "training" / "label" / "MJ", tmp_path / "Mask"
    write_pictures(source, 7)
    words = [
        "--data_path",
        str(tmp_path / "training"),
        "--mask_path",
        str(root),
        "--part_size",
        "2",
        "--max_bad",
        "0.5",
    ]
    assert generate_mask.main([*words, "--processes", "2", "--max_bad", "0.1"]) == 2  # stops: one in seven is broken
    assert "cannot be read" in capsys.readouterr().err and not (root / "label" / "MJ").exists()
    done = len(shards.finished(root / "label" / "MJ"))
    assert done >= 1
    unfinished = shards.parts_folder(root / "label" / "MJ") / ".000000006-000000007.77.tmp"  # of a stopped worker
    unfinished.mkdir()
    assert len(shards.plan(source, root / "label" / "MJ", 2)) == 4 - done and not unfinished.exists()
    made = []
    original = shards.make_part
    monkeypatch.setattr(generate_mask, "make_part", lambda part: made.append(part) or original(part))
    assert generate_mask.main([*words, "--processes", "1"]) == 0
    assert len(made) == 4 - done
    pictures, masks = WordLmdb(source), WordLmdb(root / "label" / "MJ")
    assert len(masks) == len(pictures) == 7 and masks.count_keys("mask") == 6 and masks.value("mask", 2) is None
    for index in (0, 1, 3, 4, 5, 6):
        mask = decode_mask(masks.value("mask", index))
        assert np.array_equal(mask, text_mask(decode_rgb(pictures.image_bytes(index)))) and mask.max() == 1
    assert not shards.parts_folder(root / "label" / "MJ").exists()
    assert generate_mask.main(words) == 0 and "there already" in capsys.readouterr().out


def test_mask_tool_keeps_the_list_of_all_its_runs(tmp_path, capsys) -> None:
    """Of a run that was stopped, and of other data with the same --mask_path."""
    roots, listed = [tmp_path / name / "training" for name in ("one", "two")], tmp_path / "Mask" / "bad_samples.csv"
    for root, name in zip(roots, ("MJ", "ST")):
        write_pictures(root / name, 7)

    def run(root, limit: str) -> int:
        words = ["--data_path", str(root), "--mask_path", str(tmp_path / "Mask"), "--part_size", "2"]
        return generate_mask.main([*words, "--processes", "1", "--max_bad", limit])

    def rows() -> list[tuple[str, int, str]]:
        return [(Path(row.path).name, row.number, row.reason[:4]) for row in stored(listed)]

    assert run(roots[0], "0.1") == 2  # after the second part, whose first picture is broken
    assert run(roots[0], "0.1") == 2, "the pictures of the earlier run count too"
    assert run(roots[0], "0.5") == 0 and rows() == [("MJ", 3, "not ")]
    assert "1 pictures have no mask" in capsys.readouterr().out
    assert run(roots[1], "0.2") == 0, "those of other data do not"
    assert rows() == [("MJ", 3, "not "), ("ST", 3, "not ")]
    shutil.rmtree(tmp_path / "Mask" / "ST")
    assert run(roots[1], "0.1") == 2
    listed.unlink()
    assert run(roots[1], "0.2") == 0 and rows() == [("ST", 3, "not ")]


def test_merging_numbered_folders(tmp_path) -> None:
    target = tmp_path / "Mask" / "MJ"
    for shard, indices in (("0", (0, 1)), ("1", (2, 3, 4)), ("10", (5,))):
        with LmdbWriter(target / shard) as writer:
            for index in indices:
                writer.add_value("mask", index, bytes([index]))
    assert merge.main(["--mask_path", str(tmp_path / "Mask")]) == 0
    masks = WordLmdb(target)
    assert len(masks) == 6 and [value for _, value in masks.items("mask")] == [bytes([i]) for i in range(6)]
    assert not (target / "0").exists()
    with LmdbWriter(tmp_path / "Mask" / ".MJ.1.old" / "0") as writer:  # of a stopped run
        writer.add_value("mask", 0, b"mask")
    assert merge.main(["--mask_path", str(tmp_path / "Mask")]) == 2 and len(masks) == 6


def test_merging_deletes_nothing_else(tmp_path, capsys) -> None:
    root = tmp_path / "Mask"
    for name in ("MJ/0", "label/2019", "label/IIIT"):
        with LmdbWriter(root / name) as writer:
            writer.add_value("mask", 0, b"mask")
    assert merge.main(["--mask_path", str(root)]) == 2
    line = capsys.readouterr().err
    assert f"{root / 'label'}: IIIT is no part of the masks" in line
    assert len(list(root.rglob("data.mdb"))) == 3 and not (root / "MJ" / "data.mdb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_exported_graph_reads_the_same_at_any_batch_size(name) -> None:
    pytest.importorskip("onnxruntime")
    from common.infer.export import check, drawn_words, export
    from common.infer.recognizer import Recognizer
    from projects.siga.model.build import build_row
    from projects.siga.reader import SigaReader

    model = build_row(name, batch_max_length=4).eval()
    recognizer = Recognizer(SigaReader(model, make_codec(model.settings.family, None, 4), torch.device("cpu")))
    assert check(recognizer, export(recognizer), drawn_words(recognizer)) < 1e-3


def test_coordinates_that_are_not_finite_give_nan_and_no_crash() -> None:
    from common.models.tps import sample

    grid = torch.zeros(2, 8, 16, 2)
    grid[0, 3, 3, 0] = float("nan")
    assert sample(torch.ones(2, 3, 8, 16), grid).isnan().all()
    assert not sample(torch.ones(2, 3, 8, 16), torch.zeros_like(grid)).isnan().any()
