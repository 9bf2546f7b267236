"""What TextSSR does when things go wrong: bad words, other data, killed processes, half precision, overflows."""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.data.synth.scenes import SceneOptions, render_scenes
from common.errors import UserError
from common.infer.recognizer import Prediction
from common.train import checkpoint
from common.train.session import LOCK, check_room, take_lock
from projects.textssr import checkpoints, evaluate, fonts, infer, make_base, synthesize, train_diff, train_vae
from projects.textssr import run as runs
from projects.textssr.config import DIFFUSION_KEYS, VAE_KEYS, notices, read_config
from projects.textssr.data import LmdbRegions, RegionMaker
from projects.textssr.fonts import Coverage, default_font
from projects.textssr.model.build import build_unet
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.painting import _bytes
from projects.textssr.regions import BadRegion
from tests.textssr.textssr_runs import (
    BAD_TEXTS,
    BAD_WORDS,
    CONFIGS,
    GOOD,
    equal_weights,
    painting,
    picture,
    run,
    train_step,
    train_the_vae,
    write_scenes,
)  # fmt: skip

PLAIN = ("train_batch_size=1", "gradient_accumulation_steps=1", "lr_scheduler=constant", "checkpoints_total_limit=None")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    return render_scenes(out, SceneOptions(train=3, more=0, test=2, max_length=5), progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Random weights: a stock folder, and `text/`, a UNet that can paint."""
    out = tmp_path_factory.mktemp("base") / "base"
    assert run(make_base, out) == 0
    torch.manual_seed(0)
    build_unet("tiny").save_pretrained(out / "text")
    return out


@pytest.fixture
def flags(base) -> list:
    return painting(base, base / "vae", base / "text")


def state_of(folder: Path) -> dict:
    return checkpoint.load(folder / checkpoints.STATE)


# ---------------------------------------------------------------------- training


def test_a_longer_run_goes_on_within_its_epoch(scenes, base, tmp_path) -> None:
    """3 updates, then 5 in all, are the 5 of one run: an extension does not leave the rest of an epoch out."""
    data, changes = scenes / "train/lmdb", (*PLAIN, "checkpointing_steps=2")
    for limit in (3, 5):
        train_the_vae(tmp_path / "parts", data, base, *changes, f"max_train_steps={limit}")
    train_the_vae(tmp_path / "whole", data, base, *changes, "max_train_steps=5")
    assert [state_of(tmp_path / f"parts/checkpoint-{number}")["update"] for number in (3, 5)] == [3, 5]
    assert equal_weights(tmp_path / "parts/checkpoint-5/vae", tmp_path / "whole/checkpoint-5/vae")


def test_other_data_and_another_seed_are_refused(scenes, base, tmp_path, capfd) -> None:
    data, out = scenes / "train/lmdb", tmp_path / "vae"
    train_the_vae(out, data, base, *PLAIN, "max_train_steps=1")
    state = state_of(out / "checkpoint-1")
    assert state["options"]["seed"] == state["sampler"]["seed"] == 3407 and state["commit"]
    capfd.readouterr()
    for changes, message in (
        ((scenes / "test/lmdb", "max_train_steps=2"), "sampler n was"),
        ((data, "seed=1", "max_train_steps=2"), "sampler seed was 3407, now 1"),
        ((data, "resume_from_checkpoint=final", "max_train_steps=2"), "checkpoint-<update>"),
        ((data, "learning_rate=0.5", "max_train_steps=2"), "written with other options: learning_rate"),
    ):
        (out / "final").mkdir(exist_ok=True)
        train_the_vae(out, changes[0], base, *PLAIN, *changes[1:], code=2)
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1 and message in error[0], error
    train_the_vae(out, data, base, *PLAIN, "max_train_steps=1")
    assert "nothing to do: checkpoint-1 is already there" in capfd.readouterr().out


def test_a_folder_in_use_is_refused(scenes, base, tmp_path, capfd) -> None:
    out = tmp_path / "vae"
    out.mkdir()
    take_lock(out / LOCK)  # by this process, which lives
    train_the_vae(out, scenes / "train/lmdb", base, *PLAIN, "max_train_steps=1", code=2)
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "of another run writes there" in error[0] and not list(out.glob("checkpoint-*"))


def test_a_published_checkpoint_goes_on(scenes, base, tmp_path, capfd) -> None:
    """One without our state, whose optimizer numbers the parameters as the published fork does."""
    data, changes = scenes / "train/lmdb", (*PLAIN, "checkpointing_steps=1")
    places = data, base, base / "vae", base / "unet"
    for name in ("ours", "theirs"):
        train_step(1, tmp_path / name, *places, *changes, "max_train_steps=1")
    folder = tmp_path / "theirs/checkpoint-1"
    (folder / checkpoints.STATE).unlink()
    names = [name for name, _ in build_unet("tiny").named_parameters()]
    order = checkpoints.published_order(names)
    assert names != order and order[2].startswith("ttf_net.") and order[:2] == ["conv_in.weight", "conv_in.bias"]
    state = checkpoint.load(folder / "optimizer.bin")
    state["state"] = {number: state["state"][names.index(name)] for number, name in enumerate(order)}
    checkpoint.save_atomic(folder / "optimizer.bin", state)
    for name in ("ours", "theirs"):
        train_step(1, tmp_path / name, *places, *changes, "max_train_steps=2", "resume_from_checkpoint=checkpoint-1")
    assert "a published checkpoint" in capfd.readouterr().out
    assert equal_weights(tmp_path / "ours/checkpoint-2/unet", tmp_path / "theirs/checkpoint-2/unet")
    state["state"][0], state["state"][2] = state["state"][2], state["state"][0]
    checkpoint.save_atomic(folder / "optimizer.bin", state)
    changes = (*changes, "max_train_steps=3", "resume_from_checkpoint=checkpoint-1")
    train_step(1, tmp_path / "theirs", *places, *changes, code=2)
    assert "not of this model" in capfd.readouterr().err


def test_a_checkpoint_is_whole_or_not_there(scenes, base, tmp_path, capfd, monkeypatch) -> None:
    data, out = scenes / "train/lmdb", tmp_path / "vae"
    train_the_vae(out, data, base, *PLAIN, "checkpointing_steps=1", "max_train_steps=1")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_flush", full)
        train_the_vae(out, data, base, *PLAIN, "checkpointing_steps=1", "max_train_steps=2", code=2)
    assert "checkpoint-2: cannot be written" in capfd.readouterr().err
    assert sorted(path.name for path in out.glob("*checkpoint*")) == ["checkpoint-1"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "check_room", lambda folder, needed: check_room(folder, 1 << 60))
        train_the_vae(out, data, base, *PLAIN, "max_train_steps=2", code=2)
    assert "no room for checkpoints" in capfd.readouterr().err


def test_an_overflow_lowers_the_scale_only(scenes, base, tmp_path, monkeypatch) -> None:
    """fp16's loss scaler, on a CPU: the first step overflows and is skipped; the scale goes into the checkpoint."""
    begin = runs.start

    def scaled(config):
        accelerator = begin(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
        return accelerator

    measure = train_vae.F.mse_loss
    monkeypatch.setattr(train_vae, "start", scaled)
    monkeypatch.setattr(train_vae.F, "mse_loss", lambda *pair: 99 * measure(*pair))
    data, changes = scenes / "train/lmdb", (*PLAIN, "lr_scheduler=cosine", "lr_warmup_steps=0", "checkpointing_steps=1")
    for limit in (1, 3):
        train_the_vae(tmp_path, data, base, *changes, f"max_train_steps={limit}")
    assert equal_weights(tmp_path / "checkpoint-1/vae", base / "vae")
    assert not equal_weights(tmp_path / "checkpoint-3/vae", base / "vae")
    assert [state_of(tmp_path / f"checkpoint-{n}")["scaler"]["scale"] for n in (1, 3)] == [2.0**7] * 2
    steps = [checkpoint.load(tmp_path / f"checkpoint-{n}/scheduler.bin")["last_epoch"] for n in (1, 2, 3)]
    assert steps == [0, 1, 2]


def test_batches_without_a_word_change_nothing(base, tmp_path, capfd, caplog) -> None:
    good = [{"polygon": GOOD, "text": "fine"}] * 2
    data = write_scenes(tmp_path / "scenes", {"1": (None, BAD_WORDS), "2": (None, good)})
    changes = (*PLAIN, "checkpointing_steps=1")
    total = len(BAD_WORDS) + len(good)
    with caplog.at_level("INFO"):
        for limit in (4, total):  # the second run resumes and still knows what the first skipped
            train_the_vae(tmp_path / "out", data, base, *changes, f"max_train_steps={limit}")
    moved = [not equal_weights(tmp_path / f"out/checkpoint-{n}/vae", tmp_path / f"out/checkpoint-{n + 1}/vae")
             for n in range(1, total)]  # fmt: skip
    assert sum(moved) + (not equal_weights(tmp_path / "out/checkpoint-1/vae", base / "vae")) == len(good)
    printed = capfd.readouterr().out
    assert printed.count("no sample of its batches can be read") == len(BAD_WORDS)
    left_out = [message for message in caplog.messages if "Samples skipped" in message]
    assert sum(int(part.split(")")[0]) for part in left_out[-1].split("(")[1:]) == len(BAD_WORDS)
    assert len((tmp_path / "out/bad_samples.csv").read_text().splitlines()) == 1 + len(BAD_WORDS)
    assert "Epoch: 0" in printed
    only_bad = write_scenes(tmp_path / "bad", {"1": (None, BAD_WORDS)})
    train_the_vae(tmp_path / "none", only_bad, base, *changes, "max_train_steps=50", code=2)
    error = capfd.readouterr().err
    assert "no usable word: " in error and "the polygon is outside the picture or has no extent (1)" in error


def test_a_blank_teaches_nothing(base, tmp_path, monkeypatch) -> None:
    """An update of a good word and a bad one is the same whatever stands in for the bad one."""
    data = write_scenes(tmp_path / "scenes", {"1": (None, [{"polygon": GOOD, "text": "fine"}, BAD_WORDS[0]])})
    changes = (*PLAIN, "gradient_accumulation_steps=2", "max_train_steps=1")
    train_the_vae(tmp_path / "zeros", data, base, *changes)
    monkeypatch.setattr(RegionMaker, "blank", lambda maker: torch.rand(3, 64, 64))
    train_the_vae(tmp_path / "noise", data, base, *changes)
    assert equal_weights(tmp_path / "zeros/checkpoint-1/vae", tmp_path / "noise/checkpoint-1/vae")
    assert not equal_weights(tmp_path / "zeros/checkpoint-1/vae", base / "vae")


@pytest.mark.parametrize("kept", [False, True])
def test_words_of_the_diffusion_model_that_cannot_be_used(kept, base, tmp_path, caplog) -> None:
    data = write_scenes(tmp_path / "scenes", {"1": (None, BAD_TEXTS), "2": (None, [{"polygon": GOOD, "text": "fine"}])})
    changes = (*PLAIN, f"cache_latents={kept}", "checkpointing_steps=9")
    places = data, base, base / "vae", base / "unet"
    for limit in (1, len(BAD_TEXTS) + 1):
        with caplog.at_level("INFO"):
            train_step(1, tmp_path / "out", *places, *changes, f"max_train_steps={limit}")
    left_out = [message for message in caplog.messages if "Samples skipped" in message][-1]
    for reason in ("not a string (1)", "text is empty (1)", "half a character (1)"):
        assert reason in left_out, left_out


# ---------------------------------------------------------------------- data


def test_a_region_of_one_pixel_at_the_edge(tmp_path) -> None:
    corner = [[119, 89], [130, 89], [130, 95], [119, 95]]
    data = write_scenes(tmp_path / "s", {"1": (None, [{"polygon": corner, "text": "a"}])})
    regions = LmdbRegions(data, RegionMaker(64, None), 0)
    found = []
    for regions.epoch in range(12):
        found.append(regions[0] is None)
    assert any(found) and "outside the picture" in regions.rejected[0]


def test_a_word_that_opencv_cannot_warp(monkeypatch) -> None:
    """OpenCV 4 takes pictures of up to 32,767 pixels; 5 takes any."""

    def refuse(*_: object, **__: object) -> None:
        raise cv2.error("too wide")

    monkeypatch.setattr(GlyphRenderer, "word", refuse)
    maker = RegionMaker(64, GlyphRenderer(default_font()))
    with pytest.raises(BadRegion, match="too long to be drawn"):
        maker.make(picture(), GOOD, "x", random.Random(0))


def test_the_index_keeps_language_and_order(tmp_path, capfd) -> None:
    named = (("one", "Latin"), ("zwei", "German"))
    entries = [{"polygon": GOOD, "text": text, "language": name} for text, name in named]
    entries.append({"polygon": GOOD, "text": "three"})
    write_scenes(tmp_path / "b", {"7": (None, entries), "8": (None, None), "9": (None, [])})
    write_scenes(tmp_path / "a", {"x1": (None, entries[:1])})
    maker = RegionMaker(64, GlyphRenderer(default_font()))
    regions = LmdbRegions(tmp_path, maker, 0)
    assert list(regions.entries) == [(0, "x1", 0), (1, "7", 0), (1, "7", 1), (1, "7", 2)]
    assert regions.texts() == ["one", "one", "zwei", "three"] and regions.text(2) == "zwei"
    assert "Building Index for Dataset 1" in capfd.readouterr().out
    assert [regions.index.places.dtype.kind, regions.index.identities.dtype.kind] == ["i", "S"]
    assert LmdbRegions(tmp_path, maker, 0, language="Latin").texts() == ["one", "one", "three"]
    with pytest.raises(UserError, match="in Greek"):
        LmdbRegions(tmp_path / "a", maker, 0, language="Greek")


def test_missing_characters_are_named(base, tmp_path, monkeypatch, capfd) -> None:
    font = default_font()
    assert Coverage(font, ["abc", ""]).check("--font", "x") is None
    warning = Coverage(font, ["fine"] * 99 + ["\u4e2d\u6587"]).check("--font", "x")
    assert "'\u4e2d\u6587'" in warning and "1 of 100 words" in warning and "boxes" in warning
    with pytest.raises(UserError, match="2 of 100 words of x need them, more than 1%"):
        Coverage(font, ["fine"] * 98 + ["\u4e2d"] * 2).check("--font", "x")
    words = [{"polygon": GOOD, "text": text} for text in ["fine"] * 5 + ["\u4e2d"]]
    data = write_scenes(tmp_path / "scenes", {"1": (None, words)})
    train_step(1, tmp_path / "out", data, base, base / "vae", base / "unet", *PLAIN, code=2)
    assert "font_path: no glyph for '\u4e2d'" in capfd.readouterr().err and not list((tmp_path / "out").glob("*-1"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / fonts.PUBLISHED).write_bytes(font.read_bytes())
    assert default_font() == Path(fonts.PUBLISHED)
    (tmp_path / fonts.PUBLISHED).write_bytes(b"no font")
    with pytest.raises(UserError, match="cannot be listed"):
        Coverage(default_font())


# ---------------------------------------------------------------------- painting


def test_half_precision_and_wrapping(scenes, flags, tmp_path) -> None:
    data = scenes / "test/test.json"
    for name, more in (("fp32", []), ("bf16", ["--precision", "bf16"]), ("wrap", ["--wrap"])):
        assert run(infer, "--data", data, "--output", tmp_path / name, *flags, *more, "--limit", 2) == 0
    full, half = (cv2.imread(str(tmp_path / name / "local/1.png")).astype(int) for name in ("fp32", "bf16"))
    assert np.abs(full - half).mean() < 8
    made = ["--no-filter", "--per-region", 1, "--limit", 1, "--precision", "bf16"]
    assert run(synthesize, data, tmp_path / "made", *flags, *made) == 0
    values = torch.tensor([-1.02, 0.0, 1.1]).reshape(1, 3, 1, 1)
    assert _bytes(values, True).ravel().tolist() == [0, 127, 255]
    assert _bytes(values, False).ravel().tolist() == [254, 127, 11]


def test_nothing_of_an_earlier_run_is_left(scenes, flags, tmp_path, capfd) -> None:
    data, out = scenes / "test/test.json", tmp_path / "out"
    assert run(infer, "--data", data, "--output", out, *flags, "--limit", 3) == 0
    assert json.loads((out / "languages.json").read_text()) == {f"{n}.png": "Latin" for n in range(3)}
    (out / "region/own.png").write_bytes(b"x")
    assert run(infer, "--data", data, "--output", out, *flags, "--limit", 1, "--text", "word") == 0
    assert sorted(path.name for path in (out / "region").iterdir()) == ["0.png", "own.png"]
    assert not (out / "truth").exists() and not (out / "languages.json").exists()
    none = write_scenes(tmp_path / "none", {"1": (None, BAD_WORDS)})
    assert run(infer, "--data", none, "--output", out, *flags) == 2
    assert "no word could be painted: the polygon is outside" in capfd.readouterr().err
    assert not (out / "labels.json").exists()


def test_json_with_bad_entries_beside_its_pictures(flags, tmp_path, monkeypatch) -> None:
    """data_root counts from the file where the working folder has none, as in `strlab data convert anyword`."""
    (tmp_path / "set/images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set/images/1.png"), picture())
    words = [{"polygon": GOOD, "text": "fine", "language": "Latin"}, *BAD_WORDS, *BAD_TEXTS]
    content = {"data_root": "./images", "data_list": [{"img_name": "1.png", "annotations": words}]}
    (tmp_path / "set/test.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert run(infer, "--data", tmp_path / "set/test.json", "--output", tmp_path / "out", *flags) == 0
    assert json.loads((tmp_path / "out/labels.json").read_text()) == {"0.png": "fine"}


def test_evaluate_by_language(scenes, flags, tmp_path, monkeypatch, capsys) -> None:
    data, out = scenes / "test/test.json", tmp_path / "out"
    assert run(infer, "--data", data, "--output", out, *flags, "--limit", 2) == 0
    labels = json.loads((out / "labels.json").read_text())
    (out / "languages.json").write_text(json.dumps({"0.png": "Greek"}))

    def reader(paths: list) -> list[Prediction]:
        return [Prediction(labels["0.png"], 1.0) for _ in paths]

    monkeypatch.setattr(evaluate, "open_reader", lambda *_: reader)
    assert run(evaluate, out, "--reader", "any") == 0
    languages = json.loads((out / "evaluation.json").read_text())["languages"]
    found = {entry["language"]: entry["SeqAcc"] for entry in languages}
    assert found == {"Greek": 100.0, "not named": 100.0 * (labels["1.png"] == labels["0.png"])}
    assert "    Greek: words 1, SeqAcc 100.000" in capsys.readouterr().out


# ---------------------------------------------------------------------- synthesis


def kill_the_first_child(of_others: set[int]) -> None:
    while not (children := [one for one in multiprocessing.active_children() if one.pid not in of_others]):
        time.sleep(0.02)
    children[0].kill()


def test_processes_that_fail_end_the_run(scenes, base, flags, tmp_path, capfd) -> None:
    command = [scenes / "test/test.json", tmp_path / "out", *flags, "--no-filter", "--workers", 1]
    assert run(synthesize, *command, "--unet", tmp_path / "nowhere") == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path}/nowhere: no config.json")
    others = {one.pid for one in multiprocessing.active_children()}
    killer = threading.Thread(target=kill_the_first_child, args=(others,), daemon=True)
    killer.start()
    assert run(synthesize, *command) == 2
    killer.join()
    assert "--workers: a process was killed" in capfd.readouterr().err
    # neither run has spoilt the folder for the right command
    assert run(synthesize, *command[:2], *flags, "--no-filter", "--limit", 1, "--per-region", 1) == 0


def test_files_that_changed_are_noticed(scenes, base, flags, tmp_path, capfd) -> None:
    command = [scenes / "test/test.json", tmp_path / "out", *flags, "--no-filter", "--limit", 2, "--per-region", 1]
    assert run(synthesize, *command, "--unet", base / "unet") == 2  # a stock UNet: refused once it was opened
    assert run(synthesize, *command) == 0
    file = base / "text/diffusion_pytorch_model.safetensors"
    file.touch()
    assert run(synthesize, *command) == 2
    assert f"{file}: changed since it was begun; give a new folder" in capfd.readouterr().err


def test_regions_that_cannot_be_used_are_recorded(base, flags, tmp_path) -> None:
    words = [{"polygon": GOOD, "text": "fine"}, {"polygon": [[500, 500], [600, 500], [600, 600]], "text": "lost"}]
    data = write_scenes(tmp_path / "scenes", {"1": (None, words)})
    assert run(synthesize, data, tmp_path / "out", *flags, "--no-filter", "--per-region", 1) == 0
    lines = (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    good, bad = sorted(map(json.loads, lines), key=lambda entry: entry["region"])
    assert good["accepted"] and not bad["accepted"] and bad["reason"].startswith("the polygon is outside")
    assert (bad["source"], bad["polygon"]) == (f"{data}/image-1", words[1]["polygon"]) and bad["seed"] > 0


# ---------------------------------------------------------------------- configuration


def test_keys_without_effect_are_told() -> None:
    changes = ["revision=main", "hub_token=secret", "gradient_checkpointing=True", "cache_latents=True"]
    told = notices(read_config(CONFIGS / "train_vae_cfg.py", VAE_KEYS, changes))
    for name in ("lr_warmup_steps", "revision", "hub_token", "gradient_checkpointing", "cache_latents"):
        assert sum(line.startswith(name) for line in told) == 1, told
    assert "secret" not in " ".join(told)
    told = notices(read_config(CONFIGS / "tiny_step1_cfg.py", DIFFUSION_KEYS, ["fit_scaling_factor=True"]))
    assert [line.split()[0] for line in told] == ["guidance_scale", "select_data_lenth", "fit_scaling_factor"]


def test_values_out_of_range_are_one_line(scenes, base, flags, tmp_path, capfd) -> None:
    config = ["--config", CONFIGS / "tiny_step1_cfg.py", "--set"]
    wrong = [(train_diff, [*config, change], change.split("=")[0]) for change in (
        "lr_scheduler=cosin", "mixed_precision=fp8", "checkpointing_steps=0", "log_every=0", "train_batch_size=0",
        "max_len=30", "ttf_size=32", "resolution=100", "max_train_steps=0", "learning_rate=-1", "adam_beta2=1",
    )]  # fmt: skip
    data = ["--data", scenes / "test/test.json", "--output", tmp_path / "out", *flags]
    for more, message in (
        (["--max-len", 30], "--max-len"), (["--steps", 2000], "--steps"), (["--resolution", 100], "--resolution"),
        (["--limit", 0], "--limit"),
    ):  # fmt: skip
        wrong.append((infer, [*data, *more], message))
    (tmp_path / "labels.json").write_text("{}")
    wrong.append((evaluate, [tmp_path], "it names no word"))
    for script, arguments, message in wrong:
        assert run(script, *arguments) == 2, message
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error and error.strip().count("\n") == 0, error
    train_the_vae(tmp_path / "vae", scenes / "train/lmdb", base, "report_to=nowhere", code=2)
    assert "mixed_precision, report_to: " in capfd.readouterr().err
