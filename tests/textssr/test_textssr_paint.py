"""`strlab paint`: one word into one picture, its refusals, and the glyph and judge that it relies on."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from common import cli
from common.data.synth.scenes import SceneOptions, ScenePainter
from common.errors import UserError
from common.infer import peers, shipped
from projects.textssr import conditions, judge
from projects.textssr.data import RegionMaker
from projects.textssr.fonts import default_font
from projects.textssr.model.build import SCHEDULER, build_unet, build_vae
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.paint import Painter, corners, paint
from projects.textssr.painting import blend_back, paste_back
from projects.textssr.regions import mask_rectangle, region_mask

BOX = (20, 30, 84, 54)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An untrained tiny painter in the form of a training's `final`."""
    out = tmp_path_factory.mktemp("painter") / "final"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build_vae("tiny").save_pretrained(out / "vae")
    build_unet("tiny").save_pretrained(out / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    facts = {"resolution": 64, "ttf_size": 64, "max_len": 25, "exact_crop": True, "clean_glyph": True}
    facts |= {"tight_glyph": True, "font": conditions.font_facts(default_font()), "scaling_factor": 1.0}
    conditions.write(out / "unet", facts)
    return out


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 250, (90, 120, 3), np.uint8)


def test_the_word_changes_its_region_only(weights: Path, picture: np.ndarray) -> None:
    painter = Painter.open(weights, steps=2, device="cpu")
    assert painter.maker.tight_glyph and painter.maker.resolution == 64
    one = painter(picture, BOX, "OPEN")
    assert one.picture.shape == picture.shape and one.crop.shape == one.before.shape == (64, 64, 3)
    changed = (one.picture != picture).any(-1)
    assert changed[30:55, 20:85].mean() > 0.9
    changed[30:55, 20:85] = False
    assert not changed.any()
    again = paint(picture, BOX, "OPEN", weights=weights, steps=2, device="cpu")
    assert (again == one.picture).all()
    other = painter(picture, [[20, 30], [84, 30], [84, 54], [20, 54]], "OPEN", seed=3)
    assert (other.picture != one.picture).any()


def test_the_command_writes_before_and_after(weights: Path, picture: np.ndarray, tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "photo.png", tmp_path / "out.png"
    cv2.imwrite(str(file), picture)
    command = ["paint", str(file), "--box", "20,30,84,54", "--text", "OPEN", "--weights", str(weights), "--steps", "1"]
    assert cli.main([*command, "--out", str(out), "--device", "cpu", "--reader", "default"]) == 0
    assert "default reads" in capsys.readouterr().out
    both = cv2.imread(str(tmp_path / "out.both.png"))
    assert both.shape == (90, 248, 3) and (both[:, :120] == picture).all()
    assert (both[:, 128:] == cv2.imread(str(out))).all()


def copied(weights: Path, to: Path) -> Path:
    shutil.copytree(weights, to)
    return to


def test_refusals_are_one_line(weights: Path, picture: np.ndarray, tmp_path: Path, capfd) -> None:
    file, text = tmp_path / "photo.png", tmp_path / "notes.txt"
    cv2.imwrite(str(file), picture)
    text.write_text("no picture")
    bare = copied(weights, tmp_path / "bare")
    (bare / "unet/conditions.json").unlink()
    swapped = copied(weights, tmp_path / "swapped")
    shutil.rmtree(swapped / "vae")
    shutil.copytree(weights / "unet", swapped / "vae")
    empty = copied(weights, tmp_path / "empty")
    (empty / "unet/diffusion_pytorch_model.safetensors").unlink()
    scaled = copied(weights, tmp_path / "scaled")
    facts = json.loads((scaled / "unet/conditions.json").read_text()) | {"scaling_factor": 0.5}
    (scaled / "unet/conditions.json").write_text(json.dumps(facts))
    font = copied(weights, tmp_path / "font")
    facts |= {"scaling_factor": 1.0, "font": {"name": "Other.ttf", "sha256": "0"}}
    (font / "unet/conditions.json").write_text(json.dumps(facts))
    wrong = [
        ({"--box": "20,30,400,54"}, "it leaves the picture of 120 x 90 pixels"),
        ({"--box": "84,30,20,54"}, "right must be more than left"),
        ({"--text": "\u4e2d"}, "no glyph for"),
        ({"--text": "x" * 26}, "at most 25"),
        ({"--text": " "}, "it is empty"),
        ({"--weights": tmp_path / "none"}, "no such folder"),
        ({"--weights": weights / "unet"}, "no vae in it: give --vae"),
        ({"--weights": bare}, "no conditions.json"),
        ({"--weights": swapped}, "it holds a UNet2DConditionModel"),
        ({"--weights": empty}, "diffusion_pytorch_model"),
        ({"--weights": scaled}, "scaling factor"),
        ({"--weights": font}, "trained with Other.ttf"),
        ({"--resolution": 128}, "was trained with 64"),
        ({"--reader": "nowhere.pth"}, "does not exist"),
        ({"--out": tmp_path / "x.jpg"}, "ends in .png"),
        ({"picture": text}, "not a readable picture"),
    ]
    for changes, message in wrong:
        flags = {"--box": "20,30,84,54", "--text": "OPEN", "--weights": weights, "--out": tmp_path / "o.png"} | changes
        place = flags.pop("picture", file)
        words = [str(word) for pair in flags.items() for word in pair]
        assert cli.main(["paint", str(place), *words, "--steps", "1", "--device", "cpu"]) == 2, message
        error = capfd.readouterr().err
        assert message in error and error.strip().count("\n") == 0, error
    assert not (tmp_path / "o.png").exists()
    assert Painter.open(bare, resolution=64, steps=1, device="cpu").maker.clean_glyph is False  # as published


def test_corners_keep_inside() -> None:
    assert corners((0, 0, 120, 90), 120, 90) == [[0, 0], [119, 0], [119, 89], [0, 89]]
    with pytest.raises(UserError, match="three or more"):
        corners([1, 2, 3], 120, 90)


def ink_correlation(tight: bool, scenes: int = 12) -> float:
    """Correlation of the glyph's ink with the real ink (distance from the region's ground), over rendered words."""
    maker = RegionMaker(64, GlyphRenderer(default_font()), exact_crop=True, clean_glyph=True, tight_glyph=tight)
    painter, values = ScenePainter(SceneOptions(max_length=4, charset="36", difficulty="plain"), "train"), []
    for number in range(scenes):
        scene = painter.paint(number)
        for polygon, text in scene.words:
            sample = maker.make(scene.image, polygon.tolist(), text, random.Random(0))
            inside = sample.mask[0].numpy() == 0
            grey = sample.image.mean(0).numpy()
            ring = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) - inside
            if not ring.any():
                continue  # the word fills its crop
            ink = np.abs(grey - np.median(grey[ring > 0]))[inside]
            glyph = (sample.glyph[0].numpy() < 0.9)[inside]
            if glyph.std() and ink.std():
                values.append(np.corrcoef(glyph, ink)[0, 1])
    return float(np.mean(values))


def test_a_tight_glyph_lies_on_the_word() -> None:
    loose, tight = ink_correlation(False), ink_correlation(True)
    assert tight > loose + 0.08, (loose, tight)


def test_a_tight_glyph_fills_its_rectangle() -> None:
    mask = region_mask((100, 100), np.array([[10, 40], [90, 40], [90, 60], [10, 60]]), (0, 0, 100, 100), 100)
    renderer, rectangle = GlyphRenderer(default_font()), mask_rectangle(mask)
    for text in ("nose", "Type", "a b"):
        rows = renderer.word(text, rectangle, 100, clean=True, tight=True).any(1).nonzero()[0]
        columns = renderer.word(text, rectangle, 100, clean=True, tight=True).any(0).nonzero()[0]
        assert rows[0] <= 42 and rows[-1] >= 58 and columns[0] <= 12 and columns[-1] >= 88, text
    assert renderer.word("nose", rectangle, 100, clean=True).any(1).nonzero()[0][0] > 45
    assert not renderer.word(" ", rectangle, 100, clean=True, tight=True).any()


class OldEngine:
    """RapidOCR as rapidocr_onnxruntime has it: (rows, times); it keeps nothing between calls."""

    def __call__(self, picture, use_det, use_cls, use_rec):
        assert picture[0, 0].tolist() == [3, 2, 1]  # blue first
        assert not use_det and not use_cls
        return [["a b", 0.75]], [0.1]


class NewEngine(OldEngine):
    """RapidOCR 3.x: objects with txts and scores."""

    def __init__(self, params=None) -> None:
        assert params == {"Global.log_level": "error"}

    def __call__(self, picture, use_det, use_cls, use_rec):
        return SimpleNamespace(txts=("a b",), scores=(0.75,))


@pytest.mark.parametrize("package, engine", [("rapidocr", NewEngine), ("rapidocr_onnxruntime", OldEngine)])
def test_both_packages_of_rapidocr_read(package: str, engine: type, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(package)
    module.RapidOCR = engine
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr(peers, "rapidocr_package", lambda wanted=None: wanted or package)
    crop = np.full((8, 9, 3), (1, 2, 3), np.uint8)
    (reading,) = judge.open_reader(package, None, "cpu")([crop])
    assert (reading.text, reading.confidence) == ("a b", 0.75)
    assert peers.open_peer("rapidocr")(crop).text == "ab"


def test_a_judge_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for name in judge.PACKAGES:
        with pytest.raises(UserError, match="not installed"):
            judge.check_reader(name)


def test_the_default_judge_is_the_shipped_reader() -> None:
    judge.check_reader("default")
    assert judge.reader_files("default") == [shipped.default().path]
    assert judge.reader_files("rapidocr") == [] and judge.readable_characters("rapidocr") is None
    characters = judge.readable_characters("default")
    assert characters and "a" in characters
    with pytest.raises(UserError, match="default"):
        judge.check_reader("nothing")


@pytest.mark.parametrize("picture, out", [("x.png", "x.png"), ("x.png", "./x.png"), ("x.both.png", "x.png")])
def test_the_picture_is_not_painted_over(
    picture: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(picture).write_bytes(b"kept")
    words = ["paint", picture, "--box", "0,0,9,9", "--text", "A", "--weights", "none", "--out", out]
    assert cli.main(words) == 2
    assert f"{picture} is the picture to paint into" in capsys.readouterr().err
    assert Path(picture).read_bytes() == b"kept"


@pytest.mark.parametrize("polygon", [[[15, 10], [65, 10], [65, 40], [15, 40]], [[0, 0], [40, 0], [40, 20], [0, 20]]])
def test_blending_fits_the_ground_to_what_is_around_and_changes_nothing_outside(polygon: list[list[int]]) -> None:
    rows, columns = np.mgrid[0:60, 0:80]
    picture = np.stack([120 + rows // 4, 110 + columns // 4, 90 + 0 * rows], -1).astype(np.uint8)
    (left, top), _, (right, bottom), _ = polygon
    crop = picture[top : bottom + 1, left : right + 1] + np.uint8(50)
    letters = np.s_[6:14, 8:-8]
    crop[letters] = 20
    box, inside = (left, top, right + 1, bottom + 1), np.zeros((60, 80), bool)
    inside[top : bottom + 1, left : right + 1] = True
    hard, soft = (paste(picture, crop, box, polygon).astype(int) for paste in (paste_back, blend_back))
    assert np.array_equal(soft[~inside], picture[~inside]) and np.array_equal(hard[~inside], picture[~inside])
    ground = inside.copy()
    ground[top : bottom + 1, left : right + 1][letters] = False
    assert np.abs(hard[ground] - picture[ground]).mean() > 45
    assert np.abs(soft[ground] - picture[ground]).mean() < 8
    assert soft[top : bottom + 1, left : right + 1][letters].max() < 40
    whole = [[0, 0], [79, 0], [79, 59], [0, 59]]
    grey = np.full((60, 80, 3), 9, np.uint8)
    assert np.array_equal(blend_back(picture, grey, (0, 0, 80, 60), whole), grey)
