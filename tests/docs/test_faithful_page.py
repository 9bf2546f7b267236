"""The page on faithfulness names tests that exist; READMEs list results, deviations and where code and paper differ."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def section(project: str, title: str) -> str:
    text = (ROOT / "projects" / project / "README.md").read_text("utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_named_tests_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faithful.md").read_text("utf-8"))
    assert len(named) > 50
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")]
    assert not missing


def test_start_weights_open_the_deviations() -> None:
    for project, weights in (("mgpstr", "DeiT's or MAE's file"), ("siga", "T starts from DeiT-base")):
        first = section(project, "Deviations").strip().split("\n\n")[0]
        assert weights in first and "WARNING" in first


def test_where_code_and_paper_of_siga_differ() -> None:
    text = section("siga", "Deviations")
    for words in ("squared attention values and divides by the length", "a second softmax",
                  "weighs the glyph classes", "0.3 for R, 0.1 for S and 0.15 for T"):  # fmt: skip
        assert words in text


def test_what_the_processes_of_textssr_draw_is_stated() -> None:
    text = " ".join(section("textssr", "Deviations").split())
    assert "all of them share noise, posterior draws and timesteps in every step" in text
    assert "these draws are a function of seed, step and process" in text


def figures(line: str) -> list[str]:
    """The cells of a table's row that are numbers or left open."""
    return [cell for cell in map(str.strip, line.strip("|").split("|")) if re.fullmatch(r"-|\d+\.\d+", cell)]


def test_results_of_mgpstr_and_acds() -> None:
    """Heads of each size and their averages; base and large on the Union14M rows; ACDS-STR on STD and RD."""
    rows = [line for line in section("mgpstr", "Published accuracy").splitlines() if line.startswith("|")]
    subwords = [row for row in rows if re.search(r"\| (BPE|WordPiece) \|", row)]
    assert len(subwords) == 6 and all(len(figures(row)) == 7 for row in subwords)
    union = [row for row in rows if len(figures(row)) == 9]
    assert len(union) == 4 and all("-" not in figures(row) for row in union)
    acds = {tuple(cell.strip() for cell in row.split("|")[1:3]): figures(row) for row in rows if "ACDS-STR" in row}
    assert set(acds) == {(f"ACDS-STR {size}", data) for size in ("Small", "Base") for data in ("STD", "STD+RD")}
    assert all(len(numbers) == 8 and "-" not in numbers for numbers in acds.values())
