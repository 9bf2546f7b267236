"""Words that plain technical English does not need stay out of pages, help texts, docstrings, comments and messages."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from common import cli
from tests.conftest import ROOT
from tests.docs.test_help_width import parsers
from tests.house.tree import PACKAGES

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


# In code, `mended` and the like may also be names of variables; prose has these besides what pages must not have.
IN_CODE = re.compile(REPLACED.pattern + r"|\b(?:is|are|was|were|be) told\b|\bby its card\b|\bis ours\b|, ours,")
# Reading data once is a pass over it.
PASS = re.compile(r"\bpass(?:es)? over (?:memory|the data|`|their|W)")


def prose(path: Path) -> list[tuple[int, str]]:
    """Lines of comments and of strings with at least three words."""
    found = []
    with io.StringIO(path.read_text("utf-8")) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                lines = token.string.splitlines()
                found += [(token.start[0] + i, line) for i, line in enumerate(lines) if len(line.split()) > 2]
    return found


def test_docstrings_comments_and_messages() -> None:
    files = [p for name in (*PACKAGES, "tests", "docs") for p in sorted((ROOT / name).rglob("*.py"))]
    found = []
    for path in files:
        if path == Path(__file__) or "goldens" in path.parts:
            continue
        for number, line in prose(path):
            line = re.sub(r"\{[^{}]*\}", "", PASS.sub("", line))  # not the variables of f-strings
            if match := IN_CODE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}: {line.strip()[:100]}")
    assert not found, "see the table in the design's section on language:\n" + "\n".join(found)
