"""Training states of short runs as hashes, and the runs: micro models, 4 and 8 steps, the second half resumed.

    python -m tests.mgpstr.states         # run all and write states.json for this machine's key

The file was recorded with the loop that `common/train/loop.py` replaced: a change that moves one bit of a state fails.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from common.train.checkpoint import load
from projects.mgpstr import train_final_dist
from tests.common.digests import digest, key
from tests.common.processes import run, torchrun
from tests.mgpstr.corpus import ACDS, CHARACTERS, MICRO, command, write_corpus

FILE = Path(__file__).with_suffix(".json")
ADAM = ("--adam", "--beta2=0.98", "--lr=0.001", "--subword_weight=0.1", "--lr_warmup=2", "--lr_period=5")
# every run clips (--grad_clip 5) and has a rate that changes from step to step
RUNS = {
    "char-str": (CHARACTERS, ("--isrand_aug", "--scheduler", "--lr_period=10")),
    "mgp-str": (MICRO, ("--isrand_aug", "--scheduler", "--PAD", *ADAM)),
    "acds": (ACDS, ("--isrand_aug", "--scheduler", "--lr_period=10", "--is_mask_supervision", "--freeze")),
}
CASES = [("char-str", 1), ("mgp-str", 1), ("acds", 1), ("char-str", 2)]


def train(name: str, processes: int, folder: Path, *more: str) -> Path:
    """Run the script on one thread for each process; returns the folder of its states."""
    model, words = RUNS[name]
    corpus = folder / "data" if (folder / "data").exists() else write_corpus(folder / "data")
    sizes = (f"--batch_size={4 // processes}", "--valInterval=4", "--save_interval=4", "--keep_states=0")
    arguments = command(corpus, folder, *words, *sizes, *more, model=model)
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert train_final_dist.main(arguments) == 0
        finally:
            torch.set_num_threads(threads)
        return folder / "run-Seed1111"
    done = run(*torchrun(processes), "projects/mgpstr/train_final_dist.py", *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "run-Seed1111"


def hashes(name: str, processes: int, folder: Path) -> dict[str, dict[str, str]]:
    """Hashes of the states after 4 steps, and after 4 more of a second process that resumed there."""
    found = {}
    for steps in (4, 8):
        states = train(name, processes, folder, f"--num_iter={steps}", "--resume=auto")
        content = load(states / f"training_state-{steps:09d}.pth")
        assert content["step"] == steps
        parts = {"model": content["model"], "optimizer": content["optimizer"], "generators": content["rng"]}
        found[str(steps)] = {part: digest(value) for part, value in (parts | content["parts"]).items()}
    return found


def record() -> None:
    """Run every case and keep its hashes under this machine's key."""
    stored = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    for name, processes in CASES:
        with tempfile.TemporaryDirectory() as folder:
            stored.setdefault(key(), {})[f"{name} x{processes}"] = hashes(name, processes, Path(folder))
        FILE.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
