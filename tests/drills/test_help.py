"""Drill 12: every script that users launch explains itself: `--help` ends with status 0 and says what each flag is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (*(ROOT / "projects").rglob("*.py"), ROOT / "common" / "cli.py")
    if '__name__ == "__main__"' in path.read_text("utf-8")
)


def test_the_published_scripts_are_there() -> None:
    assert {"projects.siga.train", "projects.dig.run_class_finetuning", "projects.textssr.train_vae"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name.rpartition('.')[2]}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(importlib.import_module(name).main(["--help"]))
    text = capsys.readouterr().out
    assert not ended.value.code and re.search(r"usage:|== Configuration", text), text
    flags = re.findall(r"^  (?:-\w, )?--[\w-]+", text, re.M)
    assert len(text.splitlines()) > len(flags), text
    assert not list(tmp_path.iterdir())
