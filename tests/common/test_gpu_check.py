"""`strlab gpu-check` runs as a whole without a GPU, in its small form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from common.bench import gpu_check
from common.cli import main
from common.infer.recognizer import open_recognizer
from common.reader import train


def test_the_small_form_runs_every_part(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "WORDS", replace(train.WORDS, vocabulary=2000))  # read sooner
    assert main(["gpu-check", "--small", "--out", str(tmp_path), "--minutes", "60"]) == 0
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["training"]["images"] == 16 and found["training"]["after"]["rendered"]["words"] > 8
    assert open_recognizer(tmp_path / "reader.pth", device="cpu").name == "strlab/compact"
    assert found["small"] and not found["skipped"]
    assert {"bf16 step", "compile", "exact resume", "one process over NCCL", "loader"} <= set(found["checks"])
    assert found["throughput"]["train: ViT-Ti/4"]["images_per_second"] > 0
    assert found["throughput"]["read: strlab/compact"]["bf16"] > 0


def test_a_part_that_fails_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys) -> None:
    def broken(device, small):
        return {"first": lambda: 1 / 0, "second": lambda: {"fine": 1}}

    monkeypatch.setattr(gpu_check, "checks", broken)
    monkeypatch.setattr(gpu_check, "throughputs", lambda device, small: {})
    assert main(["gpu-check", "--small", "--out", str(tmp_path), "--train-share", "0"]) == 1
    found = json.loads((tmp_path / "gpu-check.json").read_text())["checks"]
    assert "ZeroDivisionError" in found["first"]["error"] and found["second"] == {"fine": 1}
    assert "failed: first" in capsys.readouterr().out


def test_a_resume_that_differs_is_an_error(monkeypatch) -> None:
    seeds = iter(range(100))
    monkeypatch.setattr(gpu_check, "_images", lambda device, batch, seed=0: torch.randn(
        batch, 3, 32, 128, generator=torch.Generator().manual_seed(next(seeds))))  # fmt: skip
    with pytest.raises(RuntimeError, match="differ after resuming"):
        gpu_check.exact_resume(torch.device("cpu"))
