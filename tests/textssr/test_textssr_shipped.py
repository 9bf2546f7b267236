"""The painter that ships: written, found, announced, taken where none is named; one clear line where it is absent."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from common import cli
from common.data.synth.scenes import SceneOptions, ScenePainter
from common.infer.recognizer import Prediction
from projects.textssr import conditions, config, infer, registry, ship, shipped
from projects.textssr.config import DIFFUSION_KEYS, read_config
from projects.textssr.fonts import default_font
from projects.textssr.model.build import SCHEDULER, build_unet, build_vae
from projects.textssr.paint import TRIES, Painter, legibility, paint
from tests.conftest import ROOT
from tests.textssr.textssr_runs import CONFIGS, run

FACTS = {
    "data": "noise", "terms": "none", "licence": "Apache-2.0", "images_seen": 0, "hours": 0, "readable": "Nothing.",
    "measured": [], "sampling": {"steps": 2, "sampler": "dpm-solver", "guidance": 1.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An untrained small painter in the form of a training's `final`."""
    out = tmp_path_factory.mktemp("painter") / "final"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build_vae("small").save_pretrained(out / "vae")
    build_unet("small").save_pretrained(out / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    facts = {"resolution": 64, "exact_crop": True, "clean_glyph": True, "tight_glyph": True, "condition_dropout": 0.1}
    facts |= {"font": conditions.font_facts(default_font()), "scaling_factor": 1.0}
    conditions.write(out / "unet", facts)
    return out


@pytest.fixture
def installed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `ship.py` writes, in the place of the one of the package."""
    facts, out = tmp_path / "facts.json", tmp_path / "weights"
    facts.write_text(json.dumps(FACTS))
    parts = ["--vae", trained / "vae", "--scheduler", trained / "scheduler", "--facts", facts]
    assert run(ship, trained / "unet", out, *parts) == 0
    use(out, monkeypatch)
    return out


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `folder` be the one of the painter that ships."""
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(config, "SHIPPED", folder)
    shipped.announce.cache_clear()


def photo(folder: Path) -> Path:
    path = folder / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 250, (90, 120, 3), np.uint8))
    return path


def test_the_written_folder_holds_half_precision_and_its_card(installed: Path, trained: Path) -> None:
    card = json.loads((installed / "painter.json").read_text())
    assert card["licence"] == "Apache-2.0" and card["resolution"] == 64 and card["parameters"] > 2_000_000
    assert conditions.read(installed / "unet")["sampling"] == FACTS["sampling"]
    for name in ("unet", "vae"):
        half, whole = (folder / name / "diffusion_pytorch_model.safetensors" for folder in (installed, trained))
        assert half.stat().st_size < 0.56 * whole.stat().st_size
        assert card["sha256"][f"{name}/{half.name}"] == shipped.sha256(half)
    assert sum(path.stat().st_size for path in installed.rglob("*") if path.is_file()) < 9_000_000


def test_it_paints_where_none_is_named(installed: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["paint", str(photo(tmp_path)), "--box", "20,30,84,54", "--text", "OPEN", "--device", "cpu"]
    assert cli.main(words) == 0
    said = capfd.readouterr()
    assert said.err.count("M parameters, 64 pixels, trained on noise). Nothing.") == 1
    assert f"of {TRIES} tries the one with --seed 2" in said.out and "default reads" in said.out
    generator = Painter.open(device="cpu").generator
    assert (generator.steps, generator.guidance, type(generator.scheduler).__name__[:3]) == (2, 1.5, "DPM")
    assert Painter.open(steps=1, guidance=1.0, sampler="ddpm", device="cpu").generator.steps == 1
    picture = cv2.imread("photo.png")[..., ::-1]
    painted = paint(picture, (20, 30, 84, 54), "OPEN", tries=2, device="cpu")
    assert (painted != picture).any(-1)[30:54, 20:84].mean() > 0.9


def test_infer_takes_it_where_the_published_folders_are_not_there(
    installed: Path, tmp_path: Path, capfd, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path)
    box = [[20, 30], [84, 30], [84, 54], [20, 54]]
    words = [{"img_name": "photo.png", "annotations": [{"polygon": box, "text": "OPEN"}]}]
    Path("scenes.json").write_text(json.dumps({"data_root": ".", "data_list": words}))
    command = ["--data", "scenes.json", "--output", "out", "--device", "cpu"]
    assert run(infer, *command) == 0
    assert "painter: the one that ships" in capfd.readouterr().err
    assert cv2.imread("out/local/0.png").shape == (64, 64, 3)
    Path("model/step2/checkpoint-25000/unet").mkdir(parents=True)
    assert run(infer, *command) == 2  # the published folders win, and say what they lack
    assert "checkpoint-25000" in capfd.readouterr().err


def test_a_training_may_start_from_it(installed: Path, tmp_path: Path, monkeypatch) -> None:
    keys = ["pretrained_unet=shipped", "pretrained_vae=shipped", "scheduler_path=shipped"]
    read = read_config(CONFIGS / "tiny_step2_cfg.py", DIFFUSION_KEYS, keys)
    assert (read.pretrained_unet, read.scheduler_path) == (str(installed / "unet"), str(installed / "scheduler"))


def test_without_it_and_damaged(installed: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    words = ["paint", str(photo(tmp_path)), "--box", "20,30,84,54", "--text", "OPEN", "--out", str(tmp_path / "o.png")]
    weights = installed / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert cli.main(words) == 2
    error = capfd.readouterr().err
    assert "damaged: its sha256" in error and error.strip().count("\n") == 0
    use(tmp_path / "nothing", monkeypatch)
    assert cli.main(words) == 2
    error = capfd.readouterr().err
    assert "--weights: no painter ships with this installation" in error and error.strip().count("\n") == 0
    keys = ["train_diff.py", "--config", str(CONFIGS / "tiny_step2_cfg.py"), "--set", "pretrained_unet=shipped"]
    with pytest.raises(Exception, match="pretrained_unet: no painter ships"):
        read_config(keys[2], DIFFUSION_KEYS, keys[4:])
    monkeypatch.setattr(registry, "CARD", tmp_path / "nothing" / "painter.json")
    assert registry._shipped() == ()


def test_the_try_that_reads_best_is_taken() -> None:
    readings = [Prediction("0pen", 0.9), Prediction("open", 0.6), Prediction("OPEN", 0.7), Prediction("", 1.0)]
    best = max(readings, key=lambda reading: legibility(reading, "Open"))
    assert best is readings[2]


@pytest.mark.skipif(not shipped.ships(), reason="no painter ships with this tree")
def test_the_shipped_painter_is_what_its_card_says() -> None:
    """Files, sizes and conditions; and a word that it paints into a rendered scene is read by the default reader."""
    folder = shipped.find("--weights")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 9_000_000
    (row,) = [row for row in registry.ROWS if row.name == "textssr/CDM_small"]
    assert row.weights and row.weights[0].sha256 in shipped.metadata()["sha256"].values()
    assert shipped.metadata()["readable"] in row.weights[0].where
    painter = Painter.open(device="cpu")
    assert painter.maker.resolution == 64 and painter.maker.tight_glyph
    assert ROOT in folder.parents
    scene = ScenePainter(SceneOptions(min_length=3, max_length=5, difficulty="easy"), "test").paint(0)
    assert scene.words and painter(scene.image, scene.words[0][0].tolist(), "open").picture.shape == scene.image.shape


def test_no_shipped_model_names_a_folder_of_its_training() -> None:
    files = sorted(shipped.FOLDER.rglob("config.json"))
    assert len(files) == 2
    assert [path for path in files if "_name_or_path" in path.read_text("utf-8")] == []
