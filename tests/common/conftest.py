"""Fixtures of several files of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.models.compact import CompactReader
from common.reproduce import curve


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The trainings of `strlab curve` and `strlab sources` write random weights; their commands are kept."""
    commands: list[list[str]] = []

    def train(command: list[str], cwd: Path, log: Path) -> float:
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        torch.save(CompactReader(95).state_dict(), out / "best.pth")
        (out / "best.pth.json").write_text('{"model": "strlab/compact", "options": {}}')
        return 0.0

    monkeypatch.setattr(curve, "run_command", train)
    return commands
