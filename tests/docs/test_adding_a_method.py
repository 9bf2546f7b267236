"""The small method of docs/adding-a-method.md trains, resumes and refuses as the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.train.checkpoint import load
from tests.common.lmdbs import write_words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (ROOT / "docs" / "adding-a-method.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text.partition("## A complete small method")[2], re.DOTALL)
    path = tmp_path_factory.mktemp("toy") / "projects" / "toy" / "train.py"
    path.parent.mkdir(parents=True)
    path.write_text(code, "utf-8")
    write_words(path.parents[2] / "data", ["a", "bc", "def", "ghij"] * 10)
    return path


def run(script: Path, *flags: str) -> subprocess.CompletedProcess:
    out = script.parents[2] / "out"
    words = ["--train_data", str(script.parents[2] / "data"), "--output_dir", str(out), "--device", "cpu", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, check=False
    )


def test_the_example_trains_resumes_and_refuses(script: Path) -> None:
    first = run(script)
    assert first.returncode == 0 and first.stdout.rstrip().endswith("done"), first.stderr
    losses = [float(value) for value in re.findall(r"Averaged stats: .*loss: \S+ \((\S+)\)", first.stdout)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    newest = sorted((script.parents[2] / "out").glob("training_state-*.pth"))[-1]
    assert load(newest)["step"] == 20
    other = run(script, "--lr", "0.5")
    assert other.returncode == 2 and "--lr: 0.01 -> 0.5" in other.stderr
