"""Words that plain technical English does not need stay out of what users read: pages and help texts."""

from __future__ import annotations

import re

import pytest

from common import cli
from tests.conftest import ROOT
from tests.docs.test_help_width import parsers

REPLACED = re.compile(
    r"\b(goes on|going on|go on|went on|stands? beside|[Bb]eside|[Bb]esides|left out|pass(?:ed|es)? over|mend(?:s|ed)?|"
    r"cure[sd]?|[Oo]urs besides|of ours|is told|are told|is no card)\b"
)
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "projects").glob("*/README.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "originals" not in page.parts),
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages(page: object) -> None:
    found = [(number, match[0]) for number, line in enumerate(page.read_text("utf-8").splitlines(), 1)
             for match in REPLACED.finditer(line)]  # fmt: skip
    assert not found, f"see the table in the design's section on language: {found}"


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_texts(name: str) -> None:
    for command, parser in parsers(cli.build_parser(name)):
        text = " ".join(parser.format_help().split())
        found = [text[max(0, match.start() - 40) : match.end() + 20] for match in REPLACED.finditer(text)]
        assert not found, f"{command}: {found}"
