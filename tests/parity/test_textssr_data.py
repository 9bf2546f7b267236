"""TextSSR's data path, readers, metrics, flags and configuration files against the published code."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch

from projects.textssr import train_diff, train_vae
from projects.textssr.config import DIFFUSION_KEYS, VAE_KEYS, read_config
from projects.textssr.data import JsonRegions, LmdbRegions, RegionMaker, Sample, read_words
from projects.textssr.metrics import mean_similarity, ocr_crop, sequence_accuracy, similarity
from projects.textssr.model.glyphs import GlyphRenderer, glyph_image
from projects.textssr.regions import Rectangle, content_box, crop_image, mask_rectangle, region_mask, square_crop
from tests.conftest import ROOT
from tests.parity import harness
from tests.parity import textssr_recipes as recipes
from tests.parity.recipes import stride_of

CONFIGS = ROOT / "projects" / "textssr" / "configs"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    recipes.parametrize(metafunc, {"pipeline": ("pipeline", "*.npz"), "datasets": ("datasets", "*.npz")})
    folder = metafunc.config.getoption("--goldens") / "textssr"
    if "published_config" in metafunc.fixturenames:
        path = folder / "configs.json"
        cases = json.loads(path.read_text()).items() if path.is_file() else []
        metafunc.parametrize("published_config", cases, ids=lambda case: case[0])


@pytest.fixture(scope="module")
def filler(pytestconfig):
    return harness.fill(pytestconfig.getoption("--goldens"))


@pytest.fixture(scope="module")
def pipeline(request):
    return harness.load(request.param)


datasets = pipeline


@pytest.fixture(scope="module")
def pictures(pipeline, filler) -> dict[str, np.ndarray]:
    made = {}
    for name, entry in pipeline.meta["images"].items():
        picture = recipes.picture(filler, entry["recipe"]).astype(np.uint8)
        top, bottom, left, right = entry["border_top_bottom_left_right"] or (0, 0, 0, 0)
        height, width = picture.shape[:2]
        picture[:top], picture[height - bottom :], picture[:, :left], picture[:, width - right :] = 255, 255, 255, 255
        made[name] = picture
    return made


def differing(ink: np.ndarray, bits: np.ndarray) -> int:
    """How many of a boolean picture's pixels differ from the packed ones."""
    return int(np.unpackbits(np.packbits(ink.astype(bool)) ^ bits).sum())


def near(ink: np.ndarray, bits: np.ndarray) -> None:
    """Word glyphs may differ where OpenCV's warp rounds differently."""
    assert differing(ink, bits) <= max(8, 0.03 * ink.sum())


def test_square(pipeline, pictures) -> None:
    square = pipeline.meta["square"]
    rng = random.Random(int(re.search(r"seed\((\d+)\)", square["note"]).group(1)))
    found = [list(square_crop(content_box(pictures[name]), np.array(p), rng)) for name, p in square["cases"]]
    assert found == square["json"] == square["lmdb"]
    case = square["json_float_polygon"]
    box = content_box(pictures[case["image"]])
    assert list(square_crop(box, np.array(case["polygon"]), random.Random(case["seed"]))) == case["box"]


def test_masks(pipeline, pictures) -> None:
    for number, case in enumerate(pipeline.meta["masks"]):
        picture, box, side = pictures[case["image"]], tuple(case["location"]), case["resolution"]
        mask = region_mask(picture.shape[1::-1], np.array(case["polygon"]), box, side)
        assert list(mask.shape) == case["mask_shape"] and int((mask == 0).sum()) == case["zeros"]
        assert differing(mask[0].numpy(), pipeline.arrays[f"mask{number}_bits"]) == 0
        image, stride = crop_image(picture, box, side), case["stored_stride"]
        for name, value in (("image", image), ("masked", image * mask)):
            stored = value[:, ::stride, ::stride]
            harness.assert_close(stored, pipeline.arrays[f"{name}{number}"], absolute=1e-4, what=f"{name} {number}")
            assert float(value.mean()) == pytest.approx(case[f"{name}_mean"], abs=1e-5)
            # the published deviation divides by one less
            assert float(value.std()) == pytest.approx(case[f"{name}_std"], abs=1e-5)
        assert float(image.abs().max()) == pytest.approx(case["image_absmax"], abs=1e-5)
        rectangle = mask_rectangle(mask)
        harness.assert_close(rectangle.corners(), case["box_points"], absolute=1e-3, what=f"corners {number}")
        assert (*rectangle.centre, *rectangle.size, rectangle.angle) == pytest.approx(
            (*case["rect_center"], *case["rect_size"], case["rect_angle"]), abs=1e-3
        )


def test_planes(pipeline) -> None:
    for case in pipeline.meta["draw_text"]:
        planes = GlyphRenderer(recipes.FONT, case["ttf_size"], case["max_len"]).planes(case["text"])
        assert list(planes.shape) == case["shape"]
        expected, count = pipeline.arrays[case["key"]], len(case["text"][: case["max_len"]])
        if expected.ndim == 3:
            assert np.array_equal(planes[: len(expected)], expected)
        else:
            assert np.array_equal(planes.reshape(len(planes), -1).astype(np.int64).sum(1)[: len(expected)], expected)
        if "min_grey" in case:
            assert planes[:count].min((1, 2)).tolist() == case["min_grey"]
        assert planes.mean() / 255 == pytest.approx(case["mean"], abs=1e-6)


def test_words(pipeline) -> None:
    font = pipeline.meta.get("stack", {}).get("font_sha256")
    assert font in (None, hashlib.sha256(recipes.FONT.read_bytes()).hexdigest())
    renderer = GlyphRenderer(recipes.FONT)
    for number, case in enumerate(pipeline.meta["draw_glyph"]):
        rectangle = Rectangle(*case["rect"])
        harness.assert_close(rectangle.corners(), case["box_points"], absolute=1e-3, what=case["text"])
        ink = renderer.word(case["text"], rectangle, case["resolution"])
        near(ink, pipeline.arrays[f"glyph{number}_bits"])
        assert int(ink.sum()) == pytest.approx(case["ink"], abs=max(8, 0.03 * case["ink"]))
        assert float(glyph_image(ink).min()) == pytest.approx(case["min"], abs=1e-6)


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def check_sample(sample: Sample, expected: dict, arrays: dict, key: str) -> None:
    """Statistics and stored bits of one sample as the published datasets give it."""
    fields = {"image": sample.image, "mask": sample.mask, "masked_image": sample.masked, "ttf_img": sample.planes}
    for name, value in fields.items():
        stats = expected[name]
        assert list(value.shape) == stats["shape"], name
        found = (value.mean(), value.std(), value.min(), value.max())
        wanted = [stats[key] for key in ("mean", "std", "min", "max")]
        assert [float(part) for part in found] == pytest.approx(wanted, abs=1e-4), name
    assert sample.text == expected["text"]
    assert differing(sample.mask[0].numpy(), arrays[f"{key}_mask"]) == 0
    near(sample.glyph[0].numpy() < 1, arrays[f"{key}_glyph"])
    stored = arrays[f"{key}_image"]
    part = stride_of(sample.image.shape, stored.shape)
    harness.assert_close(sample.image[part], stored, absolute=1e-4, what=key)


def test_json_reader(datasets, tmp_path) -> None:
    case, path = datasets.meta["json_loader"], tmp_path / "t.json"
    path.write_text(json.dumps(case["json"]), encoding="utf-8")
    for language, expected in case["kept_by_language"].items():
        words = read_words(path, None if language == "None" else language)
        assert [[word.picture, word.text, word.polygon] for word in words] == expected
    maker = RegionMaker(case.get("resolution", 64), GlyphRenderer(recipes.FONT))
    assert len(JsonRegions([path, path], maker, 0)) == case["two_files_length"]


def test_json_samples(datasets, filler, tmp_path, monkeypatch) -> None:
    case, content = datasets.meta["json_samples"], datasets.meta["json_loader"]["json"]
    monkeypatch.chdir(tmp_path)
    for item in content["data_list"]:
        picture = recipes.picture(filler, case["recipe"].replace("<img_name>", item["img_name"])).astype(np.uint8)
        write_picture(Path(content["data_root"]) / item["img_name"], picture)
    Path("t.json").write_text(json.dumps(content), encoding="utf-8")
    seed, side = (int(re.search(rf"{name}=(\d+)", case["recipe"]).group(1)) for name in ("seed", "resolution"))
    regions = JsonRegions([Path("t.json")], RegionMaker(side, GlyphRenderer(recipes.FONT)), seed, published_order=True)
    for number, expected in enumerate(case["samples"]):
        check_sample(regions[number], expected, datasets.arrays, f"json{number}")


def test_lmdb_samples(datasets, filler, tmp_path) -> None:
    case = datasets.meta["lmdb"]
    (tmp_path / "db").mkdir()
    environment = lmdb.open(str(tmp_path / "db" / "one"), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        identities = re.findall(r"'(\w+)'", case["recipe"].split("ids written:")[1])
        for identity in identities:
            picture = recipes.picture(filler, case["recipe"].replace("<id>", identity)).astype(np.uint8)
            transaction.put(f"image-{identity}".encode(), cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
            if identity in case["annotations"]:
                entries = json.dumps(case["annotations"][identity])
                transaction.put(f"annotations-{identity}".encode(), entries.encode())
        transaction.put(b"num-samples", str(len(identities)).encode())
    environment.close()
    maker = RegionMaker(case["resolution"], GlyphRenderer(recipes.FONT))
    regions = LmdbRegions(tmp_path / "db", maker, case["seed"], published_order=True)
    assert [list(entry) for entry in regions.entries] == case["index"]
    for number, expected in enumerate(case["samples"]):
        check_sample(regions[number], expected, datasets.arrays, f"lmdb{number}")
    crop = LmdbRegions(tmp_path / "db", RegionMaker(case["resolution"], None), case["seed"])[0]
    assert isinstance(crop, torch.Tensor) and case["train_vae_keys"] == ["image"]
    # a text over 25 characters ends the published run; here it is cut to the planes there are
    assert maker.renderer.planes("x" * 26).shape == (25, 64, 64)


def test_metrics(datasets) -> None:
    pairs = datasets.meta["metrics"]
    for pair in pairs:
        assert similarity(pair["pred"], pair["gt"]) == pytest.approx(pair["ned"], abs=1e-9), pair
        assert int(pair["pred"] == pair["gt"]) == pair["exact"]
    predictions, labels = [pair["pred"] for pair in pairs], [pair["gt"] for pair in pairs]
    means = datasets.meta["metrics_mean"]
    assert mean_similarity(predictions, labels) == pytest.approx(means["ned"], abs=1e-9)
    assert sequence_accuracy(predictions, labels) == pytest.approx(means["acc"], abs=1e-9)


def test_ocr_crop(datasets, filler) -> None:
    for number, case in enumerate(datasets.meta["ocr_crop"]):
        prepared = ocr_crop(torch.from_numpy(recipes.picture(filler, case["recipe"])))
        assert list(prepared.shape) == case["shape"]
        stored = datasets.arrays[f"pp{number}"]
        part = stride_of(prepared.shape, stored.shape)
        harness.assert_close(prepared[part], stored, absolute=1e-2, what=f"crop {number}")
        assert float(prepared.mean()) == pytest.approx(case["mean"], abs=1e-3)
        assert int((prepared != 0).any(0).any(-1).sum()) == case["nonzero_columns"]


def test_configs(published_config) -> None:
    name, values = published_config
    known = VAE_KEYS if "vae" in name else DIFFUSION_KEYS
    config = read_config(CONFIGS / name, known)
    assert {key: getattr(config, key) for key in values} == values


def test_flags(pytestconfig) -> None:
    path = pytestconfig.getoption("--goldens") / "textssr" / "cli.json"
    if not path.is_file():
        pytest.skip("this folder of goldens has no cli.json")
    published = json.loads(path.read_text())
    parsers = {"train_vae.py": train_vae.parse, "train_diff.py": train_diff.parse}
    for script, parse in parsers.items():
        flags = Counter(flag for entry in published[script] for flag in entry["flags"])
        assert set(flags) == {"--config"}
        assert parse(["--config", "some.py"]) == ("some.py", [])
