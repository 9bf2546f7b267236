#!/usr/bin/env python
"""Time one image through a recogniser: ./bench.py model=parseq charset=94_full [+device=cpu] [+range=true]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hydra
import torch
from omegaconf import DictConfig
from torch.utils.benchmark import Timer

from common.errors import command
from projects.ssm.finetune.checkpoint import to_device
from projects.ssm.finetune.config import CONFIGS, quietly, settle, start
from projects.ssm.models.build import build_recogniser

SECONDS = 1.0  # of each timing, at least


@torch.inference_mode()
def run(config: DictConfig) -> None:
    """`range=true`: times for 1, 5, … 25 characters; else one time and the number of parameters of each part."""
    device, lengths = to_device(str(config.get("device", "cuda"))), range(1, 26)
    in_range = bool(config.get("range", False))
    options = settle(config)["model"]
    torch.use_deterministic_algorithms(True)
    model = build_recogniser(options["class"], options["charset_train"], options).eval().to(device)
    image = torch.rand(1, 3, *options["img_size"], device=device)
    for length in [1, *lengths[4::5]] if in_range else [None]:
        timer = Timer("model(image, length)", globals={"model": model, "image": image, "length": length})
        print(length or "", timer.blocked_autorange(min_run_time=SECONDS))
    if not in_range:
        for name, part in model.named_children():
            print(f"{name:<12} {sum(p.numel() for p in part.parameters()):>12,} parameters")
        print(f"{'all':<12} {sum(p.numel() for p in model.parameters()):>12,} parameters")


@hydra.main(config_path=str(CONFIGS), config_name="bench", version_base="1.2")
@quietly
def task(config: DictConfig) -> None:
    """What Hydra starts."""
    run(config)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compose, build, time."""
    start(task, argv)


if __name__ == "__main__":
    sys.exit(main())
