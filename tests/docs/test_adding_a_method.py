"""The small method of docs/adding-a-method.md trains, resumes and refuses as the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.train.checkpoint import load
from tests.common.lmdbs import write_words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (ROOT / "docs" / "adding-a-method.md").read_text("utf-8")
    codes = re.findall(r"```python\n(.*?)```", text.partition("## A complete small method")[2], re.DOTALL)
    path = tmp_path_factory.mktemp("toy") / "projects" / "toy" / "train.py"
    path.parent.mkdir(parents=True)
    for name, code in zip(("train.py", "registry.py", "reader.py"), codes, strict=True):
        path.with_name(name).write_text(code, "utf-8")
    path.with_name("__init__.py").write_text("", "utf-8")
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


def test_its_reader_is_taken_by_the_shared_commands(script: Path) -> None:
    """As after the second installation: the entry point is in a package's metadata, and `projects.toy` is found."""
    root = script.parents[2]
    assert run(script).returncode == 0
    about = root / "toy-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[strlab.projects]\ntoy = projects.toy.registry\n")
    Image.fromarray(np.zeros((32, 100, 3), np.uint8)).save(root / "crop.png")
    start = f"import projects; projects.__path__.append({str(root / 'projects')!r})\n"
    words = ["read", "--checkpoint", str(root / "out" / "last.pth"), str(root / "crop.png"), "--device", "cpu"]
    code = f"{start}from common import cli; raise SystemExit(cli.main({words!r}))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"crop\.png\t\d+\t[01]\.\d{4}\n$", done.stdout), done.stdout
