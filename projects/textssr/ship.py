#!/usr/bin/env python
"""Write the folder of the painter that ships: the models of a training in fp16, their conditions and a metadata file.

python projects/textssr/ship.py UNET OUT --vae VAE --scheduler SCHEDULER --facts facts.json

UNET is the folder of a training's checkpoint, with its conditions.json. FACTS is a JSON file of what only a person
knows: `data`, `terms`, `licence`, `images_seen`, `hours`, `readable` (a sentence with measured shares of read words),
`measured` (the figures behind it), and `sampling` (steps, sampler, guidance: the defaults of painting). Parameters,
resolution and the sha256 of the weight files are added.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save

from common.errors import UserError, command
from common.files import read_json, write_bytes, write_text
from common.flags import Parser
from common.infer.shipped import SMALL, sha256
from projects.textssr import conditions
from projects.textssr.model.unet import read_weights
from projects.textssr.shipped import CARD

NEEDED = ("data", "terms", "licence", "images_seen", "hours", "readable", "measured")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("unet", type=Path, help="folder of a trained UNet with its conditions.json")
    parser.add_argument("out", type=Path, help="folder to write; an earlier one is replaced")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the VAE of its training")
    parser.add_argument("--scheduler", type=Path, required=True, help="folder of the scheduler of its training")
    parser.add_argument("--facts", type=Path, required=True, help="JSON file of what the metadata file states")
    options = parser.parse_args(argv)
    facts, known = read_json(options.facts, dict), conditions.read(options.unet)
    if missing := [name for name in NEEDED if name not in facts]:
        raise UserError(f"{options.facts}: fields are missing: {', '.join(missing)}")
    if not known:
        raise UserError(f"{options.unet}: no {conditions.NAME}: give the UNet of a training")
    shutil.rmtree(options.out, ignore_errors=True)
    parameters = write_half(options.unet, options.out / "unet") + write_half(options.vae, options.out / "vae")
    shutil.copytree(options.scheduler, options.out / "scheduler")
    conditions.write(options.out / "unet", known | {"sampling": facts.pop("sampling", {})})
    hashes = {f"{name}/{WEIGHTS}": sha256(options.out / name / WEIGHTS) for name in ("unet", "vae")}
    card = {**facts, "parameters": parameters, "resolution": known["resolution"], "sha256": hashes}
    write_text(options.out / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {parameters / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB")


def write_half(folder: Path, out: Path) -> int:
    """Copy a model folder with its matrices in fp16 and small tensors as they are; returns the number of values."""
    state = read_weights(folder)
    out.mkdir(parents=True)
    # diffusers notes the folder that a model was opened from, which is a path of the training's machine.
    config = {name: value for name, value in read_json(folder / "config.json", dict).items() if name != "_name_or_path"}
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    halves = {name: value.half() if value.numel() >= SMALL else value for name, value in state.items()}
    if not all(bool(torch.isfinite(value.float()).all()) for value in halves.values()):
        raise UserError(f"{folder}: weights that fp16 cannot hold")
    write_bytes(out / WEIGHTS, save(halves, metadata={"format": "pt"}))
    return sum(value.numel() for value in state.values())


if __name__ == "__main__":
    sys.exit(main())
