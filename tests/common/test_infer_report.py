"""Charts, reports as HTML and Markdown, pictures, confusions."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from common.infer.pictures import as_picture, attention_sheet, attention_strip, heat, tile
from common.metrics.confusions import confusions, edits
from common.report.charts import Curve, line_chart
from common.report.finished import PublishedRow
from common.report.metrics import charts_of, curves_of, find_metrics
from common.report.page import Cell, Report
from common.report.standard import add_curves, published_figure
from common.reproduce import recipe


@pytest.mark.parametrize("y", [[], [1.0], [1.0, 1.0], [float("nan"), 2.0, float("inf"), 3.0], [-1.0, 5.0]])
@pytest.mark.parametrize("log_y", [False, True])
def test_a_chart_is_well_formed_whatever_the_values(y: list[float], log_y: bool) -> None:
    svg = line_chart("loss <b> & more", [Curve("a<b", range(len(y)), y), Curve("none", [], [])], "step", "loss", log_y)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "nan" not in svg.lower().replace("(nan)", "") and "inf" not in svg


def test_long_curves_become_small_pictures() -> None:
    many = range(100_000)
    assert len(line_chart("long", [Curve("c", many, np.sin(np.arange(100_000)))])) < 40_000


def test_a_chart_shows_names_values_and_formula_signs_as_they_are() -> None:
    curves = [Curve("$a_b$", [0, 1000], [1.0, 3.0]), Curve("_hidden", [5], [2.0])]
    svg = line_chart("cost in $ & <more>", curves, "step", "loss")
    texts = [" ".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    assert {"cost in $ & <more>", "$a_b$", "hidden", "step", "loss"} <= set(texts), texts
    assert svg == line_chart("cost in $ & <more>", curves, "step", "loss")


class Checker(html.parser.HTMLParser):
    """Collects tags and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.tags, self.scripts = [], set(), 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.loaded += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))]


def sample_report() -> Report:
    picture = np.zeros((8, 16, 3), np.uint8)
    report = (
        Report("A <report>", "with `code`").heading("First").text("one **two**\n\n<script>x</script>").code("a < b")
    )
    report.table(["set", "n"], [["x|y", 3], ["<z>", None]], "caption", strong=[1]).image(picture, "a picture")
    report.curves([("loss", [Curve("loss", [0, 1], [2, 1])])])
    return report.grid([Cell([picture], "word<", ["truth `w`"], True), Cell([], "none", (), None)])


def test_html_is_self_contained_and_escaped(tmp_path: Path) -> None:
    page, text = sample_report().write(tmp_path)
    checker = Checker()
    checker.feed(page.read_text("utf-8"))
    assert checker.loaded == [] and checker.scripts == 1  # the page's own; the one of the text is escaped
    assert {"details", "summary", "table", "svg", "figure", "img", "code"} <= checker.tags
    markdown = text.read_text("utf-8")
    assert "x\\|y" in markdown and "**" in markdown
    assert (tmp_path / "report_files" / "table-01.csv").read_text() == "set,n\nx|y,3\n<z>,\n"
    tex = (tmp_path / "report_files" / "table-01.tex").read_text()
    assert "\\begin{tabular}{lr}" in tex and "x|y & 3 \\\\" in tex and "\\bottomrule" in tex
    for name in ("001.png", "002.svg", "003.png"):
        assert f"report_files/{name}" in markdown and (tmp_path / "report_files" / name).is_file()


def test_paper_figures_are_found_by_folder_names_of_any_spelling() -> None:
    row = PublishedRow("theirs", {"IIIT5k_3000": 97.7, "SVT": 96.1, "svt_647": 96.1})
    names = ("IIIT5K_3000", "benchmark/SVT", "svt_647", "SVTP")
    assert [published_figure(row, name) for name in names] == [97.7, 96.1, 96.1, None]
    documented = {
        "dig": ("IIIT5K_3000", "svt_647", "IC13_857", "ic15_1811", "svt_p_645", "cute80_288"),
        "mgpstr": ("IIIT5k_3000", "SVT", "IC13_857", "IC15_1811", "SVTP", "CUTE80"),
        "siga": ("benchmark/IIIT5k_3000", "benchmark/SVT", "benchmark/IC13_857", "benchmark/CUTE80"),
    }
    for project, sets in documented.items():
        for published in recipe.load(project).published_rows:
            assert None not in [published_figure(published, name) for name in sets], (project, published.name)


def test_speed_and_waiting_are_told(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1.0, "images_per_second": 10.0 * i, "data_wait": 5.0 * i} for i in (1, 2, 3)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Report("a", "b")
    add_curves(report, tmp_path)
    text = report.write(tmp_path)[1].read_text("utf-8")
    assert "Median throughput: 20.0 images a second; waiting for data: 10 % of the time." in text


def test_pictures_have_the_sizes_they_should() -> None:
    crop, maps = np.full((32, 128, 3), 90, np.uint8), np.random.default_rng(0).random((5, 4, 16))
    assert heat(crop, maps[0]).shape == (32, 128, 3) and heat(crop, np.ones((2, 2))).dtype == np.uint8
    assert attention_strip(crop, maps, columns=2).shape == (3 * 35 - 3, 2 * 131 - 3, 3)
    assert attention_strip(crop, maps[:, 0]).shape[2] == 3
    narrow, wide = attention_sheet(crop, maps, "ab"), attention_sheet(crop, maps, ["a", "##whole"])
    assert narrow.shape[0] == (96 + 4) * 4 - 4 and 384 < narrow.shape[1] < wide.shape[1]
    assert as_picture(maps[0]).shape == (4, 16, 3) and as_picture(np.arange(6).reshape(2, 3)).shape == (2, 3, 3)
    assert tile([], 3).shape == (1, 1, 3)


def test_metrics_become_charts(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": i, "loss": 2.0 / (i + 1), "accuracy": i, "lr": 0.1, "name": "x", "ok": True})
        for i in range(5)
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "los')
    rows = find_metrics(tmp_path)["run"]
    charts = charts_of(curves_of(rows))
    assert [title for title, _ in charts] == ["loss", "accuracy", "learning rate"] and len(rows) == 5
    assert charts_of(curves_of([])) == []


def test_confusions() -> None:
    assert (
        edits("house", "hause") == [("o", "a")]
        and edits("cat", "cart") == [("", "r")]
        and edits("", "a") == [("", "a")]
    )
    assert confusions([("ab", "ab"), ("o0", "oo"), ("x0", "xo")]).most_common(1) == [(("0", "o"), 2)]


def test_pictures_of_a_page_are_small() -> None:
    """Crops are WebP, close to the pixels and a fraction of a PNG; masks stay exact."""
    import base64
    import io

    from PIL import Image

    from common.infer.pictures import png
    from common.report.page import data_url

    grid = np.linspace(0, 6, 300)
    waves = np.stack([np.sin(grid[:, None] + k + grid[None]) for k in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    crop = (127 + 90 * waves + noise).clip(0, 255).astype(np.uint8)
    url = data_url(crop)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    assert url.startswith("data:image/webp") and len(url) < len(png(crop)) / 4
    assert np.abs(shown.astype(int) - crop).mean() < 8
    mask = np.zeros((32, 128, 3), np.uint8)
    mask[8:20, 10:90] = 255
    url = data_url(mask)
    assert url.startswith("data:image/png")
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) == mask).all()


def test_commands_are_shown_as_typed() -> None:
    from common.report.standard import typed

    assert typed(("/opt/env/bin/python3.11", "train.py", "--note", "a b")) == "python train.py --note 'a b'"
    assert typed(("/opt/env/bin/strlab", "eval")) == "strlab eval" and typed(("bash", "x.sh")) == "bash x.sh"
    assert typed(()) == ""


def test_bars_of_intervals_are_within_the_axes_and_apart() -> None:
    curves = [Curve(name, [1, 10], [50.0, 50.0], [(5.0, 95.0)] * 2) for name in ("a", "b")]
    svg = line_chart("shares", curves, "words", "%", log_x=True)
    bars = [list(map(float, bar)) for bar in re.findall(r'd="M (\S+) (\S+) \nL \1 (\S+) \n"', svg)]
    top, height = map(float, re.findall(r'<rect x="\S+" y="(\S+)" width="\S+" height="(\S+)"/>', svg)[0])
    long = [(x, *sorted(ends)) for x, *ends in bars if abs(ends[0] - ends[1]) > height / 2]
    assert len({x for x, *_ in long}) == 5  # the bars, and the axis itself
    assert all(top - 0.01 <= high < low <= top + height + 0.01 for _, high, low in long)
