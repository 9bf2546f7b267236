"""Colour on a terminal, the same text without it elsewhere; tables that fit 80 columns."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from common import cli, console
from common.data.sets import listing
from common.infer import models_command
from common.report.compare_page import as_text
from tests.common import toy
from tests.common.lmdbs import write_words

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def attach(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as standard output. Not a fixture: pytest sets its own output when the test begins."""
    made = Terminal()
    monkeypatch.setattr("sys.stdout", made)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return made


COMMANDS = [["models", "mgpstr"], ["data", "list"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_terminal_gets_the_same_text_with_colours(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    assert cli.main(arguments) == 0
    coloured = terminal.getvalue()
    terminal.seek(terminal.truncate(0))
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(arguments) == 0
    plain = terminal.getvalue()
    assert "\x1b[" in coloured and "\x1b" not in plain
    assert [line.rstrip() for line in ESCAPE.sub("", coloured).splitlines()] == [
        line.rstrip() for line in plain.splitlines()
    ]


def test_eval_and_doctor_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    toy.install(monkeypatch)
    toy_file = toy.save_toy(tmp_path / "toy.pth")
    write_words(tmp_path / "words", ["a", "b", "c"])
    assert cli.main(["doctor", str(tmp_path)]) == 0
    assert re.search(r"\x1b\[[0-9;]*m1 word sets, 3 samples, 0 faults", terminal.getvalue())
    terminal.seek(terminal.truncate(0))
    assert cli.main(["eval", "--data", str(tmp_path), "--checkpoint", str(toy_file), "--model", "toy/Brightness"]) == 0
    text = ESCAPE.sub("", terminal.getvalue())
    assert text.count("calibration error") == 1 and "\x1b[" in terminal.getvalue()


def test_the_live_table_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    shown = {"text": "three of four"}
    with console.live(lambda: console.styled(shown["text"])):
        pass
    assert "three of four" in terminal.getvalue() and "\x1b[2K" in terminal.getvalue()


def test_nothing_is_drawn_elsewhere(capsys: pytest.CaptureFixture) -> None:
    with console.live(lambda: "never"):
        console.show("a table\n  row", (r"row", "bold"), header=True)
    assert capsys.readouterr().out == "a table\n  row\n"


def test_tables_fit_80_columns() -> None:
    from common import registry

    lines = [*listing.lines(), *(line for row in registry.rows() for line in models_command.model_lines(row))]
    wide = as_text(["reader", *(f"set{i} (n=1000)" for i in range(6))], [["compact", *["88.8 (80.1 to 90.2)"] * 6]])
    assert wide.count("compact") == 2
    assert not [line for line in [*lines, *wide.splitlines()] if len(line) > 80]
