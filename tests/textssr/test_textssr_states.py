"""The states of short runs are bit for bit those that the former training loop gave, resumed inside an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.synth.scenes import SceneOptions, render_scenes
from common.train.checkpoint import load
from projects.textssr import make_base
from projects.textssr.model import unet
from tests.common.digests import check
from tests.textssr.textssr_runs import run, train_step, train_the_vae, weights

STORED = Path(__file__).with_name("states.json")
LIMITS = ("max_train_steps=4", "max_train_steps=8")
SHORT = ("checkpointing_steps=3", "checkpoints_total_limit=None", "lr_scheduler=linear", "lr_warmup_steps=2")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Scenes, and the tiny base."""
    folder = tmp_path_factory.mktemp("states")
    scenes = render_scenes(folder / "scenes", SceneOptions(train=5, more=3, test=2, max_length=5), progress=False)
    assert run(make_base, folder / "base") == 0
    return scenes / "train/lmdb", folder / "base"


def parts(folder: Path, model: str) -> dict:
    """What a checkpoint folder holds, less what a run's paths change."""
    state = load(folder / "strlab_state.pth")
    kept = {name: state[name] for name in ("update", "ema", "usable", "rejected")}
    return {
        "model": weights(folder / model),
        "optimizer": load(folder / "optimizer.bin"),
        "schedule": load(folder / "scheduler.bin"),
        "state": kept,
    }


@pytest.mark.parametrize("kind", ["vae", "step1"])
def test_states_are_those_of_the_former_loop(kind: str, places, tmp_path, monkeypatch) -> None:
    """With all planes convolved and the glyph as published, as they were at the tiny size then."""
    data, base = places
    monkeypatch.setattr(unet, "CONTEXT", 128)
    for limit in LIMITS:
        if kind == "vae":
            train_the_vae(tmp_path / "run", data, base, *SHORT, limit)
        else:
            more = (*SHORT, limit, "use_ema=True", "max_grad_norm=0.5", "tight_glyph=False")
            train_step(1, tmp_path / "run", data, base, base / "vae", base / "unet", *more)
    for step in (4, 8):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        check(STORED, f"{kind} {step}", parts(folder, "vae" if kind == "vae" else "unet"))
