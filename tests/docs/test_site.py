"""The documentation site builds without a warning; every paper's page names data, weights, terms and authors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

AUTHORS = {
    "siga": ["Guan, Tongkun", "Shen, Wei"], "mgpstr": ["Wang, Peng", "Yao, Cong", "Xue, Fanfu", "Cheung, Sen-Ching"],
    "dig": ["Yang, Mingkun", "Tian, Qi and Bai, Xiang"], "ssm": ["Gao, Zuan", "Xu, Jianjun and Xie, Hongtao"],
    "textssr": ["Ye, Xingsong", "Chen, Zhineng"],
}  # fmt: skip
TERMS = {
    "siga": ["academic research only"], "mgpstr": ["research purposes"], "dig": ["MIT", "patents", "CC-BY-NC 4.0"],
    "ssm": ["Apache License 2.0", "states no licence"], "textssr": ["GPL-3.0", "Open RAIL++-M"],
}  # fmt: skip
LEAST_LINKS = {"siga": 9, "mgpstr": 9, "dig": 22, "ssm": 5, "textssr": 15}  # as many as the authors' own pages carry


@pytest.mark.parametrize("name", AUTHORS)
def test_a_papers_page(name: str) -> None:
    text = (ROOT / "docs" / "papers" / f"{name}.md").read_text("utf-8")
    for part in ["## Data and weights", "## Terms", "## Cite", f"../originals/{name}.md", *AUTHORS[name], *TERMS[name]]:
        assert part in text, part
    links = set(re.findall(r"\]\((https?://[^)\s]+)\)", text))
    assert len(links) >= LEAST_LINKS[name], len(links)
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    for author in AUTHORS[name]:
        family, given = author.split(" and ")[-1].split(", ")
        assert f"family-names: {family}, given-names: {given}" in citation


def test_terms_are_shown_by_the_command() -> None:
    import strlab

    terms = {one["name"]: " ".join(w["licence"] for w in one["weights"]) for one in strlab.models() if "weights" in one}
    assert "research purposes" in terms["mgpstr/mgp_str_tiny_patch4_3_32_128"]
    assert (
        "patent" in terms["dig/simmim_vit_small_patch4_32x128"]
        and "BY-NC" in terms["dig/simmim_vit_small_patch4_32x128"]
    )
    assert "Apache-2.0" in terms["ssm/TransOCR"] and "not stated" in terms["ssm/TransOCR"]


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("index.html")}
    for page in ("index.html", "papers/ssm/index.html", "originals/dig/index.html", "reference/python/index.html"):
        assert page in pages
    assert "sim_pretrain.py" in pages["tutorials/four-machines/index.html"]
    assert "name_or_file" in pages["reference/python/index.html"] and "Deviations" in pages["papers/siga/index.html"]
    outside = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"https?://|<link[^>]+rel=\"stylesheet\"[^>]+href=\"https?://"
    )
    assert not [name for name, text in pages.items() if outside.search(text)]


def test_the_first_picture_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """What the README says that its first command prints."""
    from common import cli

    picture = "docs/images/coffee.png"
    (said,) = re.findall(
        rf"strlab read {picture} +# prints the file, \"(\w+)\" and (\S+),", (ROOT / "README.md").read_text()
    )
    assert cli.main(["read", str(ROOT / picture), "--engine", "torch"]) == 0
    text, confidence = capsys.readouterr().out.rstrip("\n").split("\t")[1:]
    assert text == said[0] == "coffee" and abs(float(confidence) - float(said[1])) < 0.01


def test_the_notebook_runs(tmp_path: Path) -> None:
    """The code cells of the tutorial notebook, one after the other, in a fresh process."""
    import json

    cells = json.loads((ROOT / "docs" / "tutorials" / "read_and_measure.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4 and not any(cell.get("outputs") for cell in cells)
    lines = [line for cell in code for line in cell.splitlines()]
    shell = [line for line in lines if line.startswith("!")]
    assert all(line.startswith("!strlab ") for line in shell)
    script = "import subprocess\n" + "\n".join(
        f"subprocess.run({line[1:]!r}, shell=True, check=True)" if line.startswith("!") else line for line in lines
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]


def test_the_figures_are_those_of_the_command() -> None:
    """`python docs/figures.py` would write the very files that are there."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    figures = module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert set(figures.FIGURES) == set(AUTHORS)
    for name, figure in figures.FIGURES.items():
        assert (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8") == figures.svg(figure), name


def test_the_words_of_the_readme() -> None:
    """`python docs/words.py` always draws the same words, with a line for each reader; wrong readings are red."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("words", ROOT / "docs" / "words.py")
    words = module_from_spec(spec)
    spec.loader.exec_module(words)
    crops = words.crops()
    assert len(crops) == 12 and all((first[1] == again[1]).all() for first, again in zip(crops, words.crops()))
    right = [text for text, _ in crops]
    one, two = words.sheet(crops, [("a", right)]), words.sheet(crops, [("a", right), ("b", ["?"] * 12)])
    assert two.shape[0] - one.shape[0] == 3 * words.LINE and two.shape[1] == one.shape[1]
    red = lambda image: int(((image[..., 0] > 150) & (image[..., 1] < 60) & (image[..., 2] < 60)).sum())  # noqa: E731
    assert red(two) > red(one)
