#!/usr/bin/env python
"""Search a learning rate: ./tune.py +experiment=NAME tune.num_samples=10 tune.lr.min=1e-4 tune.lr.max=2e-3

The published script ran Ray and Ax. Here whole trials run one after another in this process: the decades first, then
log-uniform draws. `tune.gpus_per_trial` has no effect: a trial takes `trainer.devices`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.errors import UserError, command
from common.files import json_lines, read_json, write_text
from common.flags import at_home
from projects.ssm.finetune.config import CONFIGS, quietly, settle, start
from projects.ssm.finetune.run import run


def candidates(low: float, high: float, count: int, seed: int) -> list[float]:
    """`count` rates: log-spaced over the range from its high end, one a decade, then log-uniform draws."""
    if not 0 < low < high:
        raise UserError(f"tune.lr: min {low} and max {high} must be positive and in order")
    if count < 1:
        raise UserError(f"tune.num_samples: {count} must be at least 1")
    first = np.geomspace(high, low, min(count, math.ceil(math.log10(high / low)) + 1)).tolist()
    rng = np.random.default_rng(seed)
    return first + np.exp(rng.uniform(math.log(low), math.log(high), count - len(first))).tolist()


def best_ned(folder: Path) -> float:
    """Best 1-NED of a trial's validations, 0 without any."""
    file = folder / "metrics.jsonl"
    return max((row["val_NED"] for _, row in json_lines(file) if "val_NED" in row), default=0.0)


def search(config: DictConfig, out: Path) -> list[dict[str, float]]:
    """Run the trials; finished ones of an interrupted search (`tune.resume_dir`) are not run again."""
    tune = config.tune
    settled = settle(config)
    folder = Path(at_home(tune.resume_dir or out))
    results: list[dict[str, float]] = []
    try:
        low, high, count = float(tune.lr.min), float(tune.lr.max), int(tune.num_samples)
    except (TypeError, ValueError):
        raise UserError("tune: lr.min and lr.max must be numbers, num_samples a whole number") from None
    rates = candidates(low, high, count, settled.seed)
    for number, rate in enumerate(rates):
        place = folder / f"trial-{number}"
        note = place / "result.json"
        if not note.is_file():
            run(replace(settled, model={**settled.model, "lr": rate}, swa=False), place)
            write_text(note, json.dumps({"lr": rate, "val_NED": best_ned(place)}))
        results.append(read_json(note, dict, "remove it, and the trial runs again"))
        print(f"trial {number}: lr {results[-1]['lr']:.3g}  1-NED {results[-1]['val_NED']:.2f}", flush=True)
    best = max(results, key=lambda row: row["val_NED"])
    print(f"best: model.lr={best['lr']:.3g}  (1-NED {best['val_NED']:.2f})")
    write_text(folder / "results.json", json.dumps(results, indent=1))
    return results


@hydra.main(config_path=str(CONFIGS), config_name="tune", version_base="1.2")
@quietly
def task(config: DictConfig) -> None:
    search(config, Path(HydraConfig.get().runtime.output_dir))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compose, run the trials, name the best."""
    start(task, argv)


if __name__ == "__main__":
    sys.exit(main())
