"""Every command's help fits 80 columns, and `strlab` alone says where to start."""

from __future__ import annotations

import argparse

import pytest

from common import cli
from common.flags import Parser
from projects.textssr import infer
from projects.textssr.flags import parse_infer


def parsers(parser: argparse.ArgumentParser, name: str = "strlab") -> list[tuple[str, argparse.ArgumentParser]]:
    found = [(name, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for key, inner in action.choices.items():
                found += parsers(inner, f"{name} {key}")
    return found


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal does not make it wider
    for command, parser in parsers(cli.build_parser(name)):
        wide = [line for line in parser.format_help().splitlines() if len(line) > 80]
        assert not wide, f"{command}: {wide}"


def test_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert "strlab read crop.png       the text in a picture" in text and "strlab serve" in text


def test_long_choices_are_explained() -> None:
    parser = Parser("x")
    parser.add_argument("--kind", choices=["a" * 12, "b" * 12, "c" * 12], help="which")
    text = parser.format_help()
    assert "--kind NAME" in text and "one of aaaaaaaaaaaa, bbbbbbbbbbbb," in text


def test_help_of_scripts_keeps_paragraphs_and_shows_what_is_a_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_infer(["--help"], infer.__doc__)
    text = capsys.readouterr().out
    assert "\n\n    python projects/textssr/infer.py --data" in text and "denoising steps (default: 20)" in text
    assert "default: None" not in text and "default: False" not in text
    assert not [line for line in text.splitlines() if len(line) > 80]


def test_the_list_of_commands_is_aligned() -> None:
    """argparse does not count the indentation of commands, and breaks the line after the longest name."""
    listed = cli.build_parser("").format_help().partition("  COMMAND\n")[2].splitlines()
    names = {name.split()[0] for name in cli.COMMANDS}
    assert len(listed) == len(names) and all(len(line.split()) > 1 and line.split()[0] in names for line in listed)
    assert len({line.index(line.split(maxsplit=1)[1]) for line in listed}) == 1
