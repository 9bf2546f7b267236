"""SIGTERM to two processes in the middle of an epoch."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from common.train.checkpoint import load
from tests.siga.corpus import ROOT, command, environment, write_corpus


def test_two_ranks_save_once_and_leave_with_status_0(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    words = command(corpus, tmp_path, "TRBA_small", "--num_iter", 5000, "--val_interval", 5000, "--batch_size", 2)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(ROOT / "projects/siga/train.py"),
            *words,
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("[   2/5000]"):
            break
    # torchrun passes the signal on to its workers, and is itself said to have been stopped.
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.wait(600)
    assert rest.count("asked to stop: state saved after step") == 1
    states = list((tmp_path / "saved_models" / "run").glob("training_state-*.pth"))
    assert len(states) == 1 and load(states[0])["step"] >= 2 and len(load(states[0])["rng"]) == 2
