#!/usr/bin/env python
"""Time one image through a recogniser: ./bench.py model=parseq charset=94_full [+device=cpu] [+range=true]"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from common.errors import command
from projects.ssm.finetune.config import CONFIGS, quietly, settle, start
from projects.ssm.finetune.files import to_device
from projects.ssm.model.build import build_recogniser

SECONDS = 1.0  # of each timing, at least


@torch.inference_mode()
def run(config: DictConfig) -> None:
    """`range=true`: times for 1, 5, … 25 characters; else one time and a table of the parts."""
    device, lengths = to_device(str(config.get("device", "cuda"))), range(1, 26)
    in_range = bool(config.get("range", False))
    options = settle(config).model
    torch.use_deterministic_algorithms(True)
    model = build_recogniser(options["class"], options["charset_train"], options).eval().to(device)
    image = torch.rand(1, 3, *options["img_size"], device=device)
    for length in [1, *lengths[4::5]] if in_range else [None]:
        timer = Timer("model(image, length)", globals={"model": model, "image": image, "length": length})
        print(length or "", timer.blocked_autorange(min_run_time=SECONDS))
    if not in_range:
        print(parts_table(model, image))


def parts_table(model: nn.Module, image: Tensor) -> str:
    """Parameters of a model and of its parts; of the whole also FLOPs and activations for one pass over `image`
    `[1, 3, H, W]`.

    They are counted as in the published table: matrix products, attention and convolutions, a multiply-add as one FLOP;
    activations are the numbers that these operations put out.
    """
    flops, outputs = operations(model, image), operations(model, image, dict.fromkeys(flop_registry, elements))
    lines = [f"{'part':<12} {'parameters':>12} {'FLOPs':>15} {'activations':>12}"]
    for name, part in model.named_children():
        lines.append(f"{name:<12} {sum(p.numel() for p in part.parameters()):>12,}")
    size = sum(parameter.numel() for parameter in model.parameters())
    return "\n".join([*lines, f"{'all':<12} {size:>12,} {flops // 2:>15,} {outputs:>12,}"])


def operations(model: nn.Module, image: Tensor, counted: dict | None = None) -> int:
    """The sum over a pass' operations of their FLOPs (two a multiply-add), or of what `counted` says of them."""
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        model(image)
    return counter.get_total_flops()


def elements(*shapes: object, out_shape: Sequence = (), **options: object) -> int:
    """Numbers that an operation puts out, of several outputs the first."""
    return math.prod(out_shape[0] if out_shape and not isinstance(out_shape[0], int) else out_shape)


@hydra.main(config_path=str(CONFIGS), config_name="bench", version_base="1.2")
@quietly
def task(config: DictConfig) -> None:
    run(config)


@command
def main(argv: Sequence[str] | None = None) -> None:
    start(task, argv)


if __name__ == "__main__":
    sys.exit(main())
