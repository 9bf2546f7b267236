"""TextSSR's commands in this process, on tiny models and few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from projects.textssr import train_diff, train_vae
from tests.conftest import ROOT

CONFIGS = ROOT / "projects" / "textssr" / "configs"
SHORT = ["train_batch_size=2", "gradient_accumulation_steps=2", "max_train_steps=3", "checkpointing_steps=2",
         "sample_sheet=0"]  # fmt: skip
GOOD = [[10, 20], [70, 20], [70, 40], [10, 40]]


def run(script, *arguments) -> int:
    """A script's main in this process, with accelerate's global state as a fresh process has it."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    torch.set_num_threads(1)
    return script.main([str(argument) for argument in arguments])


def train_the_vae(out: Path, data: Path, base: Path, *changes: str, code: int = 0) -> None:
    """Train the tiny VAE on scenes; the command must end with `code`."""
    values = [f"lmdb_path={data}", f"pretrained_model_name_or_path={base}", f"output_dir={out}"]
    config = CONFIGS / "tiny_vae_cfg.py"
    assert run(train_vae, "--config", config, "--set", *values, *SHORT, *changes) == code, changes


def train_step(
    step: int, out: Path, data: Path, base: Path, vae: Path, unet: Path, *changes: str, code: int = 0
) -> None:
    """Train the tiny UNet of a step on scenes; the command must end with `code`."""
    values = [f"lmdb_path={data}", f"scheduler_path={base}/scheduler", f"output_dir={out}"]
    values += [f"pretrained_vae={vae}", f"pretrained_unet={unet}"]
    config = CONFIGS / f"tiny_step{step}_cfg.py"
    assert run(train_diff, "--config", config, "--set", *values, *SHORT, *changes) == code, changes


def painting(base: Path, vae: Path, unet: Path) -> list:
    """Flags that paint on the CPU in moments."""
    return ["--vae", vae, "--unet", unet, "--scheduler", base / "scheduler", "--steps", 2, "--resolution", 64,
            "--clean-glyph", "--batch-size", 4, "--device", "cpu"]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def equal_weights(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def picture() -> np.ndarray:
    """A scene of noise, 90 x 120."""
    return np.random.default_rng(0).integers(0, 254, (90, 120, 3), np.uint8)


def write_scenes(folder: Path, entries: dict[str, tuple[bytes | None, list | None]]) -> Path:
    """A scene LMDB of {id: (picture or None for the usual one, annotations or None for no key)}."""
    usual = cv2.imencode(".png", picture())[1].tobytes()
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for name, (image, annotations) in entries.items():
            transaction.put(f"image-{name}".encode(), image or usual)
            if annotations is not None:
                transaction.put(f"annotations-{name}".encode(), json.dumps(annotations).encode())
    environment.close()
    return folder


BAD_WORDS = [
    {"polygon": [[500, 500], [600, 500], [600, 600]], "text": "out"},
    {"polygon": [[1, 1]], "text": "point"},
    {"polygon": [[1, 1], [2], [3, 3]], "text": "ragged"},
    {"polygon": "1 1 2 2 3 3", "text": "string"},
    {"polygon": [["1", "1"], ["9", "1"], ["9", "9"]], "text": "strings"},
    {"polygon": [[1, 1], [1e300, 1], [9, 9]], "text": "huge"},
    {"polygon": {"x": 1}, "text": "object"},
    {"polygon": None, "text": "none"},
    {"text": "none"},
    "not an object",
]
"""Annotations that neither the VAE nor the UNet can be trained with."""
BAD_TEXTS = [
    {"polygon": GOOD, "text": 5},
    {"polygon": GOOD, "text": ""},
    {"polygon": GOOD, "text": "\ud800"},
]


def bad_scenes(folder: Path) -> Path:
    """Two good words among what cannot be used."""
    return write_scenes(
        folder,
        {
            "1": (None, [{"polygon": GOOD, "text": "fine"}, *BAD_WORDS]),
            "2": (None, BAD_TEXTS),
            "3": (b"no picture", [{"polygon": GOOD, "text": "lost"}]),
            "4": (None, [{"polygon": GOOD, "text": "x" * 40}]),
            "5": (None, None),
        },
    )
