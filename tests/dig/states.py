"""Training states of short runs as hashes, and the runs themselves: micro models, 4 and 8 steps with a resume inside.

    python -m tests.dig.states            # run all and write states.json for this machine's key

The file was recorded with the loops that `common/train/loop.py` replaced; a change that moves a bit of a state fails.
"""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import torch

from common.train.checkpoint import load
from tests.common.compare import digest
from tests.common.processes import run, torchrun
from tests.dig.runs import finetune, pretrain, write_corpus

FILE = Path(__file__).with_suffix(".json")
AMOUNTS = {1: 4, 2: 2}  # processes -> batch size: four steps make an epoch
RUNS = {
    "pretrain": ("run_mae_pretraining_moco", pretrain, ["--clip_grad", 1.0]),
    "pretrain-both": (
        "run_mae_pretraining_moco", pretrain,
        ["--patchnet_name", "regular", "--drop_path", 0.1, "--normlize_target", 1, "--contrast_warmup_steps", 3],
    ),
    "finetune": ("run_class_finetuning", finetune, ["--clip_grad", 1.0, "--model_ema", "--legacy-frozen-augment"]),
    "finetune-accumulate": (
        "run_class_finetuning", finetune, ["--update_freq", 2, "--smoothing", 0.1, "--model_ema", "--layer_decay", 1],
    ),
}  # fmt: skip
CASES = [(name, processes) for name in RUNS for processes in AMOUNTS]


def key() -> str:
    """What the bits of a state depend on in addition to the code."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, opencv {cv2.__version__}"


def hashes(name: str, processes: int, folder: Path) -> dict[str, dict[str, str]]:
    """Hashes of the states after 4 and 8 steps, of a run that was also left and resumed after 3 and 6."""
    torch.set_num_threads(1)
    script, command, more = RUNS[name]
    corpus, out, found = write_corpus(folder), folder / "out", {}
    batch = AMOUNTS[processes] // (2 if "--update_freq" in more else 1)
    for steps in (3, 4, 6, 8):
        words = command(corpus, out, "--batch_size", batch, "--max_steps", steps, *more)
        if processes == 1:
            assert import_module(f"projects.dig.{script}").main(words) == 0
        else:
            done = run(*torchrun(processes), f"projects/dig/{script}.py", *words)
            assert done.returncode == 0, done.stderr
        if steps in (4, 8):
            found[str(steps)] = of_state(load(out / "training_state.pth"), steps)
    return found


def of_state(content: dict[str, Any], steps: int) -> dict[str, str]:
    """A hash of each part of a state: weights, optimizer, averaged copy, generators."""
    assert content["step"] == steps
    ema = content["parts"].get("ema", {})
    parts = {
        "model": content["model"],
        "optimizer": content["optimizer"]["state"],
        "rates": [{n: group[n] for n in ("lr", "weight_decay")} for group in content["optimizer"]["param_groups"]],
        "ema": {name.removeprefix("module."): value for name, value in ema.get("values", ema).items()},
        "generators": content["rng"],
    }
    return {name: digest(part) for name, part in parts.items()}


def record() -> None:
    """Run every case and keep its hashes under this machine's key."""
    stored = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    mine = stored.setdefault(key(), {})
    for name, processes in CASES:
        with tempfile.TemporaryDirectory() as folder:
            mine[f"{name} x{processes}"] = hashes(name, processes, Path(folder))
        print(name, processes, mine[f"{name} x{processes}"], flush=True)
    FILE.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
