"""TextSSR from scenes to a word data set: the commands on tiny models, resuming, counted skips, clear refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.convert.anyword import Filters, convert_anyword
from common.data.lmdb import WordLmdb
from common.data.synth.scenes import SceneOptions, render_scenes
from common.errors import UserError
from common.infer import peers
from common.infer.recognizer import Prediction
from common.report.page import Report
from projects.textssr import evaluate, infer, make_base, report, synthesize, train_vae, word_choice
from projects.textssr.checkpoints import load_scheduler, load_vae
from projects.textssr.config import DIFFUSION_KEYS, VAE_KEYS, read_config
from projects.textssr.launch import asked_for
from projects.textssr.model.unet import TextUNet
from projects.textssr.painting import paste_back
from tests.common import processes
from tests.conftest import ROOT
from tests.textssr.textssr_runs import (
    CONFIGS,
    SHORT,
    bad_scenes,
    equal_weights,
    painting,
    run,
    train_step,
    train_the_vae,
    weights,
)  # fmt: skip

VAE = "vae/checkpoint-3/vae"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    return render_scenes(out, SceneOptions(train=5, more=3, test=2, max_length=5), progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    assert run(make_base, out) == 0
    return out


@pytest.fixture(scope="module")
def trained(scenes, base, tmp_path_factory) -> Path:
    """Three updates of the VAE and of each step."""
    out = tmp_path_factory.mktemp("trained")
    data, vae = scenes / "train/lmdb", out / VAE
    train_the_vae(out / "vae", data, base)
    train_step(1, out / "step1", data, base, vae, base / "unet")
    start = out / "step1/checkpoint-3/unet"
    train_step(2, out / "step2", scenes / "more/lmdb", base, vae, start, "use_ema=True")
    return out


def models(base: Path, trained: Path) -> list:
    return painting(base, trained / VAE, trained / "step2/checkpoint-3/unet")


def test_checkpoints_have_the_published_form(trained) -> None:
    for run_name, part in (("vae", "vae"), ("step1", "unet"), ("step2", "unet")):
        folder = trained / run_name / "checkpoint-3"
        names = {path.name for path in folder.iterdir()}
        assert {part, "optimizer.bin", "scheduler.bin"} <= names
        names = {"config.json", "diffusion_pytorch_model.safetensors"}
        additional = {"conditions.json"} if part == "unet" else set()
        assert {path.name for path in (folder / part).iterdir()} == names | additional
    config = json.loads((trained / "step1/checkpoint-3/unet/config.json").read_text())
    assert (config["_class_name"], config["in_channels"]) == ("UNet2DConditionModel", 4)
    assert json.loads((trained / "vae/checkpoint-3/vae/config.json").read_text())["scaling_factor"] > 1.0
    assert {path.name for path in (trained / "step1/final").iterdir()} == {"unet", "vae", "scheduler"}
    averaged = trained / "step2/checkpoint-3/unet_ema"
    assert set(weights(averaged)) == set(weights(trained / "step2/checkpoint-3/unet"))
    assert not equal_weights(averaged, trained / "step2/checkpoint-3/unet")


def test_conditions_travel_with_the_weights(trained, base, scenes, tmp_path, capfd) -> None:
    unet = trained / "step2/checkpoint-3/unet"
    kept = json.loads((unet / "conditions.json").read_text())
    assert (kept["resolution"], kept["clean_glyph"], kept["update"]) == (64, True, 3) and len(
        kept["font"]["sha256"]
    ) == 64
    data = scenes / "test/test.json"
    command = ["--data", data, "--vae", trained / VAE, "--unet", unet, "--scheduler", base / "scheduler", "--steps", 1,
               "--limit", 1, "--device", "cpu"]  # fmt: skip
    assert run(infer, *command, "--output", tmp_path / "painted") == 0
    assert cv2.imread(str(tmp_path / "painted/local/0.png")).shape == (64, 64, 3)
    assert run(infer, *command, "--output", tmp_path / "other", "--resolution", 128) == 2
    assert "--resolution 128" in capfd.readouterr().err and not (tmp_path / "other").exists()
    command[3] = base / "vae"  # untrained, so its latents have another scale
    assert run(infer, *command, "--output", tmp_path / "other") == 2
    assert "scaling factor" in capfd.readouterr().err


def test_training_can_be_watched(trained, scenes, base, tmp_path) -> None:
    """Samples at each checkpoint, and the loss inside and outside the region; neither changes what is learned."""
    data, vae, two = scenes / "train/lmdb", trained / VAE, "sample_sheet=2"
    train_step(1, tmp_path / "step1", data, base, vae, base / "unet", two, "log_every=1")
    train_the_vae(tmp_path / "vae", data, base, two)
    assert equal_weights(tmp_path / "step1/checkpoint-3/unet", trained / "step1/checkpoint-3/unet")
    assert equal_weights(tmp_path / VAE, vae)
    for name in ("step1", "vae"):
        sheets = sorted(path.name for path in (tmp_path / name / "samples").iterdir())
        assert sheets == ["00000002.png", "00000003.png"]
        assert cv2.imread(str(tmp_path / name / "samples" / sheets[0])).std() > 5
    lines = [json.loads(line) for line in (tmp_path / "step1/metrics.jsonl").read_text().splitlines()]
    for line in [line for line in lines if "loss" in line]:
        low, high = sorted((line["loss_inside"], line["loss_outside"]))
        assert low <= line["loss"] <= high
    assert len(lines) >= 3 and not (trained / "step1/samples").exists()
    page = Report("TextSSR")
    report.add_training(page, tmp_path)
    assert [kind for kind, _ in page.blocks] == ["heading", "svg", "text", "image", "text", "image"]
    assert "inside the text region" in page.html()


def test_resuming_is_exact(trained, scenes, base, tmp_path, capfd) -> None:
    data, vae, changes = scenes / "train/lmdb", trained / VAE, ("checkpoints_total_limit=None",)
    limits = ("max_train_steps=2", "max_train_steps=3")
    for limit in limits:
        train_the_vae(tmp_path / "vae", data, base, *changes, limit)
    assert "Resuming from checkpoint checkpoint-2" in capfd.readouterr().out
    assert equal_weights(tmp_path / VAE, vae)
    for limit in limits:
        train_step(1, tmp_path / "step1", data, base, vae, base / "unet", *changes, limit)
    start = trained / "step1/checkpoint-3/unet"
    assert equal_weights(tmp_path / "step1/checkpoint-3/unet", start)
    for limit in limits:
        train_step(2, tmp_path / "step2", scenes / "more/lmdb", base, vae, start, "use_ema=True", *changes, limit)
    for part in ("unet", "unet_ema"):
        assert equal_weights(tmp_path / "step2/checkpoint-3" / part, trained / "step2/checkpoint-3" / part)


def test_kept_latents_train_as_fresh_ones(trained, scenes, base, tmp_path, capfd) -> None:
    one, out = ("train_batch_size=1", "checkpointing_steps=9"), tmp_path / "kept"
    places = scenes / "train/lmdb", base, trained / VAE, base / "unet"
    train_step(1, tmp_path / "fresh", *places, *one)
    train_step(1, out, *places, *one, "cache_latents=True")
    assert equal_weights(out / "checkpoint-3/unet", tmp_path / "fresh/checkpoint-3/unet")
    written = (out / "latents" / "moments.npy").stat().st_mtime_ns
    changes = (*one, "cache_latents=True", "max_train_steps=4", "compile_backend=eager")
    train_step(1, out, *places, *changes)
    assert (out / "checkpoint-4").is_dir() and (out / "latents" / "moments.npy").stat().st_mtime_ns == written
    train_step(1, out, *places, *changes, "compile_backend=none", code=2)
    assert "compile_backend" in capfd.readouterr().err


def test_a_configuration_goes_on_from_its_base(tmp_path) -> None:
    for path in CONFIGS.glob("*.py"):
        read_config(path, VAE_KEYS if "vae" in path.name else DIFFUSION_KEYS)
    tiny = read_config(CONFIGS / "tiny_step2_cfg.py", DIFFUSION_KEYS)
    assert (tiny.resolution, tiny.max_train_steps, tiny.adam_beta2) == (64, 800, 0.999)
    own = tmp_path / "own_cfg.py"
    own.write_text('base = "own_cfg.py"\n')
    with pytest.raises(UserError, match="base"):
        read_config(own, VAE_KEYS)


def kill_after_saving(command: list, out: Path) -> None:
    """Start a run and send SIGKILL to all its processes once the first checkpoint stands."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=processes.environment(), **quiet)
    while process.poll() is None and not (out / "checkpoint-1").is_dir():
        time.sleep(0.02)
    processes.kill(process)
    assert (out / "checkpoint-1").is_dir()


def test_a_killed_run_goes_on_exactly(scenes, base, tmp_path) -> None:
    out = tmp_path / "vae"
    values = [f"lmdb_path={scenes}/train/lmdb", f"pretrained_model_name_or_path={base}", f"output_dir={out}"]
    command = [sys.executable, "projects/textssr/train_vae.py", "--config", str(CONFIGS / "tiny_vae_cfg.py"), "--set"]
    plain = ("train_batch_size=1", "gradient_accumulation_steps=1", "checkpointing_steps=1", "lr_scheduler=constant")
    kill_after_saving([*command, *values, *plain, "max_train_steps=400", "checkpoints_total_limit=None"], out)
    steps = 1 + max(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    longer = (*plain, f"max_train_steps={steps}", "checkpointing_steps=1000")
    for folder in (out, tmp_path / "whole"):
        train_the_vae(folder, scenes / "train/lmdb", base, *longer)
    assert equal_weights(out / f"checkpoint-{steps}/vae", tmp_path / f"whole/checkpoint-{steps}/vae")


def test_the_number_of_processes_is_found_in_the_launcher() -> None:
    script = ["train_vae.py", "--config", "c.py"]
    assert asked_for(["python", "/bin/accelerate", "launch", "--num_processes=2", *script]) == 2
    assert asked_for(["python", "-m", "accelerate.commands.launch", "--cpu", "--num-processes", "3", *script]) == 3
    assert asked_for(["python", "/bin/accelerate", "launch", *script]) == asked_for(["bash", "launch"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", ["vae", "step1", "step2"])
def test_two_processes_are_killed_and_go_on_exactly(script, trained, scenes, base, tmp_path) -> None:
    config = CONFIGS / f"tiny_{script}_cfg.py"
    values = [f"lmdb_path={scenes}/train/lmdb", *SHORT, "checkpointing_steps=1", "checkpoints_total_limit=None"]
    if script == "vae":
        values.append(f"pretrained_model_name_or_path={base}")
    else:
        start = {"step1": base / "unet", "step2": trained / "step1/checkpoint-3/unet"}[script]
        values += [f"scheduler_path={base}/scheduler", f"pretrained_unet={start}"]
        values += [f"pretrained_vae={trained}/vae/checkpoint-3/vae", "use_ema=True"]
    name = "train_vae.py" if script == "vae" else "train_diff.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command = [*launch, f"projects/textssr/{name}", "--config", str(config), "--set", *values]
    kill_after_saving([*command, f"output_dir={tmp_path}/killed"], tmp_path / "killed")
    for folder in ("killed", "whole"):
        done = processes.run(*command, f"output_dir={tmp_path}/{folder}")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Total train batch size (w. parallel, distributed & accumulation) = 8" in done.stderr, done.stderr
        assert ("Resuming from checkpoint" in done.stdout) == (folder == "killed")
    for part in ("vae",) if script == "vae" else ("unet", "unet_ema"):
        assert equal_weights(tmp_path / "killed/checkpoint-3" / part, tmp_path / "whole/checkpoint-3" / part)


def test_infer_writes_pictures(trained, base, scenes, tmp_path) -> None:
    out, data = tmp_path / "out", scenes / "test" / "test.json"
    assert run(infer, "--data", data, "--output", out, *models(base, trained)) == 0
    labels = json.loads((out / "labels.json").read_text())
    content = json.loads(data.read_text())
    assert list(labels.values()) == [word["text"] for item in content["data_list"] for word in item["annotations"]]
    assert list(labels) == [f"{number}.png" for number in range(len(labels))]
    assert cv2.imread(str(out / "local/0.png")).shape == (64, 64, 3)
    assert cv2.imread(str(out / "full/0.png")).shape == (160, 240, 3)
    again = tmp_path / "again"
    assert run(infer, "--data", data, "--output", again, *models(base, trained)) == 0
    assert (again / "local/1.png").read_bytes() == (out / "local/1.png").read_bytes()
    assert run(evaluate, out) == 0
    assert json.loads((out / "evaluation.json").read_text())["words"] == len(labels)
    assert (out / "contact_sheet.png").is_file()


def test_the_published_benchmark_is_evaluated(trained, base, tmp_path, monkeypatch, capfd) -> None:
    """The authors' layout with the published defaults of paths: SeqAcc and NED by PP-OCR, distances by their names."""
    pictures = tmp_path / "benchmark/ic13/images"
    pictures.mkdir(parents=True)
    cv2.imwrite(str(pictures / "img_1.jpg"), np.random.default_rng(0).integers(0, 250, (120, 160, 3), np.uint8))
    boxes = {"OPEN": (20, 10, 120, 50), "daily": (20, 60, 108, 100)}
    words = [
        {"polygon": [[a, b], [c, b], [c, d], [a, d]], "text": text, "valid": True, "language": "Latin"}
        for text, (a, b, c, d) in boxes.items()
    ]
    items = [{"img_name": "img_1.jpg", "caption": "", "annotations": words}]
    content = {"data_root": "./benchmark/ic13/images", "data_list": items}
    (pictures.parent / "test.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert run(infer, *models(base, trained)) == 0
    monkeypatch.setattr(evaluate, "open_reader", lambda *_: Echo(["OPEN", "daily"] * 3))
    monkeypatch.setattr(evaluate, "describe_reader", lambda name: f"PP-OCR ({name})")
    assert run(evaluate, "output/ic13", "--reader", "rapidocr", "--device", "cpu") == 0
    figures = json.loads(Path("output/ic13/evaluation.json").read_text())
    assert figures["reader"] == "PP-OCR (rapidocr)" and figures["words"] == 2
    assert figures["SeqAcc"] == 50 and 50 <= figures["NED"] < 60 and figures["languages"][0]["language"] == "Latin"
    assert figures["FD reader"] > 0 and all(name in figures for name in ("FID", "LPIPS"))
    assert "read by PP-OCR" in capfd.readouterr().out


def test_per_sample_seeds_do_not_depend_on_batches(trained, base, scenes, tmp_path) -> None:
    data, flags = scenes / "test" / "test.json", [*models(base, trained), "--per-sample-seeds", "--limit", 3]
    for size in (3, 1):
        assert run(infer, "--data", data, "--output", tmp_path / str(size), *flags, "--batch-size", size) == 0
    for name in ("0.png", "2.png"):
        first, second = (cv2.imread(str(tmp_path / size / "local" / name)).astype(int) for size in ("3", "1"))
        assert np.abs(first - second).max() <= 1


def test_paste_back_changes_the_polygon_only() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    polygon = [[20, 10], [60, 14], [58, 30], [18, 26]]
    result = paste_back(picture, np.full((64, 64, 3), 7, np.uint8), (15, 0, 65, 50), polygon)
    changed = (result != picture).any(-1)
    inside = cv2.fillPoly(np.zeros((50, 80), np.uint8), [np.array(polygon)], 1)
    assert (result[20, 40] == 7).all() and not changed[inside == 0].any()


class Echo:
    """A reader that is given the labels, and reads every second word right."""

    def __init__(self, labels: list[str]) -> None:
        self.labels, self.count = labels, 0

    def __call__(self, crops) -> list[Prediction]:
        start, self.count = self.count, self.count + len(crops)
        numbers = range(start, self.count)
        return [Prediction(self.labels[n] if n % 2 == 0 else "wrong", 0.5) for n in numbers]


def test_synthesize_resumes_and_does_not_depend_on_processes(trained, base, scenes, tmp_path, capfd) -> None:
    data = scenes / "test" / "test.json"
    flags = [*models(base, trained), "--no-filter", "--per-region", 2, "--part-size", 3]
    assert run(synthesize, data, tmp_path / "a", *flags) == 0
    attempts = [json.loads(line) for line in (tmp_path / "a/manifest.jsonl").read_text().splitlines()]
    made = WordLmdb(tmp_path / "a" / "words")
    assert len(made) == sum(entry["accepted"] for entry in attempts) == len(attempts) > 3
    assert [made.label(index) for index in range(len(made))] == [entry["label"] for entry in attempts]
    picture = cv2.imdecode(np.frombuffer(made.image_bytes(0), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] <= 64 and picture.shape[1] <= 64
    first = made.image_bytes(0)
    made.close()
    for number in (0, 1):
        (tmp_path / f"a/parts/{number:06d}.jsonl").unlink()  # as if it had been killed there
    assert run(synthesize, data, tmp_path / "a", *flags, "--workers", 2) == 0
    again = WordLmdb(tmp_path / "a" / "words")
    assert (len(again), again.image_bytes(0)) == (len(attempts), first)
    assert [json.loads(line) for line in (tmp_path / "a/manifest.jsonl").read_text().splitlines()] == attempts
    again.close()
    assert run(synthesize, data, tmp_path / "b", *flags, "--shard", "2/2") == 0
    assert "parts are not made yet" in capfd.readouterr().out and not (tmp_path / "b/words").exists()
    assert run(synthesize, data, tmp_path / "b", *flags, "--shard", "1/2") == 0
    assert (tmp_path / "b/words/data.mdb").read_bytes() == (tmp_path / "a/words/data.mdb").read_bytes()
    assert run(synthesize, data, tmp_path / "a", *flags, "--per-region", 3) == 2
    assert "begun with other flags" in capfd.readouterr().err


def test_the_filter_keeps_what_is_read(trained, base, scenes, tmp_path, monkeypatch) -> None:
    reader = tmp_path / "reader.pth"
    reader.write_bytes(b"x")
    data = scenes / "test" / "test.json"
    flags = [*models(base, trained), "--reader", reader, "--per-region", 2, "--limit", 3]
    options = synthesize.parse_synthesis([str(word) for word in (data, tmp_path / "out", *flags)], "")
    labels = [job.text for job in synthesize.plan(options, synthesize.open_regions(options).texts(), len)]
    monkeypatch.setattr(synthesize, "readable_characters", lambda *_: None)
    monkeypatch.setattr(synthesize, "open_reader", lambda *_: Echo(labels))
    assert run(synthesize, data, tmp_path / "out", *flags) == 0
    attempts = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [entry["label"] for entry in attempts] == labels and len(labels) > 3
    assert [entry["accepted"] for entry in attempts] == [n % 2 == 0 for n in range(len(labels))]
    assert [entry["prediction"] for entry in attempts[:2]] == [labels[0], "wrong"]
    assert "reason" not in attempts[0] and attempts[1]["reason"] == "not read as the label"
    made = WordLmdb(tmp_path / "out" / "words")
    assert [made.label(index) for index in range(len(made))] == labels[::2]
    for number, entry in enumerate(attempts):  # each picture has its number
        assert entry["number"] == number // 2 + 1
        path = tmp_path / "out/rejected" / f"{entry['number']:09d}.png"
        assert path.is_file() == (2 * entry["number"] <= len(labels))
    made.close()
    sheet = cv2.imread(str(tmp_path / "out/contact_sheet.png"))
    assert sheet.shape[0] > 150 and sheet.std() > 10
    assert run(synthesize, data, tmp_path / "small", *flags, "--no-rejected") == 0
    assert not (tmp_path / "small/rejected").exists()
    assert synthesize.matches("it's", "ITS", "36") and not synthesize.matches("its", "ITS", "exact")


def test_words_of_a_list_fit_or_are_lacking(scenes, tmp_path, capsys) -> None:
    path = tmp_path / "words.txt"
    path.write_text("abcd\nefgh\nijkl\nabcdefghijklm\nx\n")
    words = word_choice.WordList(path, len)
    assert sorted(words.fitting("read", 5, random.Random(0))) == ["abcd", "efgh", "ijkl"]
    assert len(words.fitting("read", 2, random.Random(0))) == 2 and words.fitting("readers", 2, random.Random(0)) == []
    command = [str(scenes / "test/test.json"), str(tmp_path), "--words", str(path), "--no-filter"]
    options = synthesize.parse_synthesis(command, "")
    assert len(synthesize.plan(options, ["read", "efgh", "longer"], len)) == 3 + 2
    assert "7 of 12 words are lacking: for 3 of 3 regions" in capsys.readouterr().out


def test_convert_anyword(scenes, tmp_path) -> None:
    source = scenes / "test" / "test.json"
    counts = convert_anyword(source, tmp_path / "all", say=lambda _: None)
    content = json.loads(source.read_text())
    assert counts["words"] == sum(len(item["annotations"]) for item in content["data_list"])
    with pytest.raises(UserError, match=r"none of .* no word can be used: words: polygon too small"):
        convert_anyword(source, tmp_path / "none", Filters(min_side=500), say=lambda _: None)
    assert not (tmp_path / "none").exists()
    assert Filters().reason({"polygon": [[1, 1], [2], [3, 3]], "text": "ragged"}) == "no polygon"


@pytest.mark.parametrize("workers", [0, 1])
def test_training_leaves_bad_words_out(workers, base, tmp_path, caplog) -> None:
    data, out = bad_scenes(tmp_path / "scenes"), tmp_path / "out"
    values = [f"lmdb_path={data}", f"pretrained_model_name_or_path={base}", f"output_dir={out}", "train_batch_size=16"]
    values += ["max_train_steps=1", f"dataloader_num_workers={workers}"]
    with caplog.at_level("INFO"):
        assert run(train_vae, "--config", CONFIGS / "tiny_vae_cfg.py", "--set", *values) == 0
    left_out = next(message for message in caplog.messages if "Samples skipped" in message)
    assert all(reason in left_out for reason in ("outside", "polygon is not", "lacks", "not an image")), left_out
    assert "polygon is not a list of at least three [x, y] (6)" in left_out
    listed = (out / "bad_samples.csv").read_text().splitlines()
    assert len(listed) == 12 and listed[1].startswith(f"{data}/image-1,2,the polygon is outside"), listed


def test_bad_words_are_counted_and_left_out(trained, base, tmp_path, capfd) -> None:
    data, out = bad_scenes(tmp_path / "scenes"), tmp_path / "out"
    assert run(infer, "--data", data, "--output", out, *models(base, trained)) == 0
    assert list(json.loads((out / "labels.json").read_text()).values()) == ["fine", "x" * 40]
    assert "skipped" in capfd.readouterr().out


def test_a_stable_diffusion_folder_of_reduced_width_loads(tmp_path) -> None:
    """The layout of SD 2.1 (v-prediction, four levels), with the parts that are not needed and its own scheduler."""
    folder = tmp_path / "stable-diffusion-v2-1"
    assert run(make_base, folder, "--size", "narrow") == 0
    assert run(make_base, folder, "--size", "narrow", "--force") == 0
    (folder / "text_encoder").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    card = {"_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction", "steps_offset": 1,
            "set_alpha_to_one": False, "skip_prk_steps": True, "trained_betas": None}  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(card))
    unet, fresh = TextUNet.from_folder(folder / "unet")
    assert "conv_in.weight" in fresh and all(name.startswith(("ttf_net.", "conv_in.weight")) for name in fresh)
    assert unet.conv_in.in_channels == 13 and unet.config.cross_attention_dim == 1024
    assert len(load_vae(folder / "vae", "").config.block_out_channels) == 4
    assert load_scheduler(folder / "scheduler").config.prediction_type == "v_prediction"
    for part, opener in (("unet", TextUNet.from_folder), ("vae", lambda path: load_vae(path, "--vae"))):
        broken = folder / part / "diffusion_pytorch_model.safetensors"
        broken.write_bytes(broken.read_bytes()[:5000])
        with pytest.raises(UserError, match=part):
            opener(folder / part)
        broken.unlink()
        with pytest.raises(UserError, match=part):
            opener(folder / part)


def test_the_verdict_follows_the_figures() -> None:
    def of(real: float, vae: float, painted: float) -> str:
        lengths = [{"length": 3, "words": 9, "word36": painted}]
        figures = {"words": 9, "word36": painted, "word36 real": real, "word36 VAE": vae}
        return report.verdict(figures | {"lengths": lengths})

    assert "nothing follows" in of(0, 0, 0)
    assert "cannot paint" in of(90, 80, 1) and "rough" in of(90, 80, 1)
    assert "VAE alone makes much" in of(90, 40, 30) and "loses a part" in of(90, 40, 30)
    assert "about as well" in of(90, 80, 80) and "read right: 3 characters" in of(90, 80, 80)
    assert "not read" in report.verdict({"word36": 1})


def test_a_figure_that_was_not_measured_is_a_dash_and_a_reason_below(tmp_path) -> None:
    reason = "not measured: the package lpips is not installed"
    for name in ("paint_own", "paint_word"):
        (tmp_path / name).mkdir()
        figures = {"words": 9, "SeqAcc": 50.0, "LPIPS": reason}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(figures))
    page = Report("TextSSR")
    report.add_verdict(page, tmp_path)
    text = page.markdown({})
    assert text.count(f"LPIPS {reason}.") == text.count(reason) == 1 and text.count("| 50.00 |") == 2


def test_wrong_use_is_one_line(trained, base, scenes, tmp_path, capfd, monkeypatch) -> None:
    find = peers.importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if "rapidocr" in name else find(name))
    config = CONFIGS / "tiny_vae_cfg.py"
    wrong = [
        (train_vae, ["--config", tmp_path / "none.py"], "no such file"),
        (train_vae, [], "--config"),
        (train_vae, ["--config", config, "--set", "lerning_rate=1"], "did you mean learning_rate"),
        (train_vae, ["--config", config, "--set", "seed=abc"], "not of type int"),
        (train_vae, ["--config", config, "--set", f"pretrained_model_name_or_path={tmp_path}"], "no config.json"),
        (infer, ["--data", scenes / "test/test.json", "--unet", tmp_path], "UNet folder"),
        (infer, ["--data", scenes / "test/test.json", "--unet", base / "unet"], "give a trained one"),
        (infer, ["--data", scenes / "test/test.json", "--text", "\u4e2d"], "no glyph for"),
        (infer, ["--data", tmp_path / "no.json"], "no such file"),
        (synthesize, [scenes / "test/test.json", tmp_path / "s", "--reader", "none.pth"], "none.pth does not exist"),
        (evaluate, [tmp_path], "no labels.json"),
        (evaluate, [tmp_path, "--reader", "nowhere"], "nowhere does not exist"),
        (evaluate, [tmp_path, "--reader", "rapidocr"], "rapidocr: not installed"),
        (make_base, [base], "it holds a model"),
    ]
    for script, arguments, message in wrong:
        assert run(script, *arguments) == 2, message
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error and error.strip().count("\n") == 0, error


def test_lost_colours_are_told(tmp_path: Path) -> None:
    assert report.colours(tmp_path) == ""
    for name, grey in (("truth", 0), ("vae", 180), ("region", 200)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.full((4, 4, 3), (grey, grey, 200), np.uint8))
    told = report.colours(tmp_path)
    assert told.startswith("Mean saturation: 1.00 real, 0.10 after the VAE, 0.00 painted") and "lost" in told
