"""Model folders, checkpoints and configurations of every form: loaded, skipped or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from projects.textssr import checkpoints
from projects.textssr.checkpoints import load_scheduler, load_vae
from projects.textssr.config import VAE_KEYS, read_config
from projects.textssr.model.build import SCHEDULER, build_unet, build_vae
from projects.textssr.model.diffusion import ancestral_step, target_of
from projects.textssr.model.unet import TextUNet
from tests.textssr.textssr_runs import CONFIGS

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    build_unet("tiny").save_pretrained(folder / "unet")
    build_vae("tiny").save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "m"))


def halve(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / WEIGHTS.replace(".s", ".fp16.s"))
    (folder / WEIGHTS).unlink()


def split(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    names = list(state)
    parts = {"diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
             "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, chosen in parts.items():
        save_file({name: state[name].contiguous() for name in chosen}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, chosen in parts.items() for name in chosen}
    index = {"metadata": {"total_size": sum(t.numel() * 4 for t in state.values())}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(("form", "near"), [(halve, 2e-3), (split, 0.0)], ids=["fp16", "shards"])
def test_half_precision_and_shards(form, near: float, copy: Path, models: Path) -> None:
    for part in ("unet", "vae"):
        form(copy / part)
    unet, fresh = TextUNet.from_folder(copy / "unet")
    vae = load_vae(copy / "vae", "--vae")
    assert not fresh
    for found, part in ((unet, "unet"), (vae, "vae")):
        for name, tensor in load_file(models / part / WEIGHTS).items():
            assert found.state_dict()[name].dtype == torch.float32
            torch.testing.assert_close(found.state_dict()[name], tensor, atol=near, rtol=near)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"block_out_channels": "x"}', '{"in_channels": []}', "\ufeff{}"]
)
def test_broken_json_is_one_line(text: str, copy: Path) -> None:
    (copy / "scheduler").mkdir()
    for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        (copy / file).write_text(text, "utf-8")
    for opener in (lambda: TextUNet.from_folder(copy / "unet"), lambda: load_vae(copy / "vae", "--vae")):
        with pytest.raises(UserError) as refused:
            opener()
        assert str(copy) in str(refused.value) and "\n" not in str(refused.value)
    if not text.startswith('{"'):
        with pytest.raises(UserError, match="scheduler_path") as refused:
            load_scheduler(copy / "scheduler")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "no"}}']
)
def test_a_broken_index_of_shards_is_named(index: str, copy: Path) -> None:
    split(copy / "unet")
    (copy / "unet" / f"{WEIGHTS}.index.json").write_text(index)
    with pytest.raises(UserError, match=r"index of shards|no such checkpoint file"):
        TextUNet.from_folder(copy / "unet")


def scheduler_of(folder: Path, kind: str):
    folder.mkdir()
    card = {**SCHEDULER, "_class_name": "DDPMScheduler", "prediction_type": kind}
    (folder / "scheduler_config.json").write_text(json.dumps(card))
    return load_scheduler(folder)


def test_every_prediction_type_paints_what_diffusers_paints(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 4, 4, 4, generator=generator)
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = scheduler_of(tmp_path / kind, kind)
        scheduler.set_timesteps(20)
        step = scheduler.timesteps[5]
        target = target_of(scheduler, latents, noise, step[None])
        noisy = scheduler.add_noise(latents, noise, step[None])
        ours = ancestral_step(scheduler, target, step, noisy, lambda name, like: torch.zeros_like(like))
        # diffusers adds its own noise; two draws of opposite sign have its mean
        theirs = scheduler.step(target, step, noisy, generator=torch.Generator().manual_seed(1)).prev_sample
        added = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours, theirs - scheduler._get_variance(int(step)) ** 0.5 * added)
    with pytest.raises(UserError, match="prediction_type: 'flow' is not one of"):
        scheduler_of(tmp_path / "flow", "flow")


# ---------------------------------------------------------------------- checkpoints of a run


def put(out: Path, number: int, models: Path, *files: str) -> Path:
    """A checkpoint folder with the weights and further files."""
    folder = out / f"checkpoint-{number}"
    folder.mkdir(parents=True)
    if "vae" in files:
        shutil.copytree(models / "vae", folder / "vae")
    for name in set(files) - {"vae"}:
        torch.save({"state": {}, "param_groups": []}, folder / name)
    return folder


STATE = ("vae", "optimizer.bin", "scheduler.bin", checkpoints.STATE)


def test_latest_skips_what_is_not_whole(models: Path, tmp_path: Path, capsys) -> None:
    whole = put(tmp_path, 1, models, *STATE)
    put(tmp_path, 2, models, *STATE[1:])
    put(tmp_path, 3, models, "vae", "optimizer.bin", checkpoints.STATE)
    cut = put(tmp_path, 4, models, *STATE) / "vae" / WEIGHTS
    cut.write_bytes(cut.read_bytes()[:1000])
    assert checkpoints.find(tmp_path, "latest", "vae").path == whole
    out = capsys.readouterr().out
    assert out.count("skipped: ") == 3 and "checkpoint-2: incomplete: it has no folder vae" in out
    shutil.rmtree(whole)
    with pytest.raises(UserError, match="nothing was overwritten"):
        checkpoints.find(tmp_path, "latest", "vae")


def test_a_name_that_does_not_exist_is_an_error(models: Path, tmp_path: Path, capsys) -> None:
    put(tmp_path, 1, models, *STATE)
    with pytest.raises(UserError, match="checkpoint-7 does not exist; there are: checkpoint-1"):
        checkpoints.find(tmp_path, "checkpoint-7", "vae")
    assert checkpoints.find(tmp_path / "new", "latest", "vae") is None
    assert "Starting a new training run" in capsys.readouterr().out
    assert checkpoints.find(tmp_path, None, "vae") is None


def test_published_weights_have_no_optimizer(models: Path, tmp_path: Path) -> None:
    """The layout of the published model: vae_ft/checkpoint-150000/vae and nothing else."""
    put(tmp_path, 150000, models, "vae")
    saved = checkpoints.find(tmp_path, "latest", "vae")
    assert saved.weights and saved.optimizer is saved.schedule is saved.state is None


# ---------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('base = "a.py"', "a.py is built on this file itself"),
        ('base = "b.py"', "base: .*py is built on this file itself"),
        ('base = ""', "name one other file"),
        ("base = 3", "name one other file"),
        ("seed = \0", "not a configuration file"),
        ("seed = " + "(" * 3000, "not a configuration file"),
        ("seed = {[]: 1}", "write a plain value"),
        ("learning_rate = 1e999", "is not a finite number"),
        ("seed = seed", "write a plain value"),
    ],
)  # fmt: skip
def test_configurations(text: str, told: str, tmp_path: Path) -> None:
    plain = (CONFIGS / "train_vae_cfg.py").read_text()
    (tmp_path / "a.py").write_text(f"{plain}\n{text}\n")
    (tmp_path / "b.py").write_text('base = "a.py"\n')
    with pytest.raises(UserError, match=told) as refused:
        read_config(tmp_path / "a.py", VAE_KEYS)
    assert "\n" not in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbf" + (CONFIGS / "train_vae_cfg.py").read_bytes())
    assert read_config(tmp_path / "a.py", VAE_KEYS).seed
