"""A report as one self-contained HTML page, and the same as Markdown with its pictures in a folder next to it.

>>> report = Report("SIGA", "cpu scale")
>>> report.heading("Accuracy").table(["set", "words"], [["SVT", 647]]).text("All figures are from one run.")
Report('SIGA', 4 blocks)
"""

from __future__ import annotations

import base64
import csv
import functools
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup, escape
from PIL import Image

from common.files import write_bytes, write_text
from common.infer.pictures import png
from common.report.charts import Curve, line_chart


@dataclass(frozen=True)
class Cell:
    """One picture of a grid.

    Attributes:
        images: uint8 arrays [h, w, 3] or [h, w], one below the other.
        title: the line in bold below them.
        lines: further lines.
        good: True draws the title green, False red, None black.
    """

    images: Sequence[np.ndarray]
    title: str = ""
    lines: Sequence[str] = ()
    good: bool | None = None


@dataclass
class Report:
    """Blocks in order; every method that adds one returns the report, so calls can be chained."""

    title: str
    subtitle: str = ""
    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {len(self.blocks) + 1} blocks)"

    def heading(self, text: str, level: int = 2) -> Report:
        """A heading of level 2 (listed in the contents) or 3."""
        return self._add("heading", (text, level))

    def text(self, text: str) -> Report:
        """Paragraphs separated by empty lines; `code` in backquotes and **bold** are known."""
        return self._add("text", text)

    def code(self, text: str) -> Report:
        """Commands or logs, kept as they are."""
        return self._add("code", text)

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", strong: Sequence[int] = ()
    ) -> Report:
        """A table; numbers are set to the right, floats with two decimals; `strong` are indices of rows set in bold."""
        return self._add("table", (list(header), [list(row) for row in rows], caption, set(strong)))

    def curves(
        self, charts: Sequence[tuple[str, Sequence[Curve]]], x_label: str = "step", log_y: bool = False
    ) -> Report:
        """Line charts side by side: (title, curves) of each."""
        return self._add("svg", [(title, line_chart(title, some, x_label, log_y=log_y)) for title, some in charts])

    def grid(self, cells: Sequence[Cell], cell_width: int = 240) -> Report:
        """Pictures in columns of at least `cell_width` CSS pixels."""
        return self._add("grid", (list(cells), cell_width))

    def image(self, image: np.ndarray, caption: str = "") -> Report:
        """One large picture, uint8 [h, w, 3]."""
        return self._add("image", (image, caption))

    def extend(self, other: Report) -> Report:
        """All blocks of another report."""
        self.blocks.extend(other.blocks)
        return self

    def _add(self, kind: str, content: Any) -> Report:
        self.blocks.append((kind, content))
        return self

    def html(self) -> str:
        """The page; nothing in it is loaded from elsewhere, and every text in it is escaped."""
        return page_template().render(report=self)

    def markdown(self, pictures: dict[str, bytes], folder: str = "report_files") -> str:
        """The text as Markdown; the bytes of its pictures are put into `pictures` under their file names."""
        writer = _Markdown(pictures, folder)
        body = "\n\n".join(getattr(writer, kind)(content) for kind, content in self.blocks)
        return f"# {self.title}\n\n{self.subtitle}\n\n{body}\n"

    def write(self, folder: Path, name: str = "report") -> tuple[Path, Path]:
        """Write `<name>.html`, `<name>.md`, and `<name>_files/` with the latter's pictures and every table as CSV and
        LaTeX; return the paths of the two."""
        pictures: dict[str, bytes] = {}
        text = self.markdown(pictures, f"{name}_files")
        tables = [content for kind, content in self.blocks if kind == "table"]
        for index, (header, rows, _, _) in enumerate(tables, 1):
            pictures[f"table-{index:02d}.csv"] = csv_bytes([header, *rows])
            pictures[f"table-{index:02d}.tex"] = latex(header, rows).encode()
        for file, data in pictures.items():
            write_bytes(folder / f"{name}_files" / file, data)
        return write_text(folder / f"{name}.html", self.html()), write_text(folder / f"{name}.md", text)


def csv_bytes(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as CSV with full precision; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue().encode()


def latex(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table for a paper, with booktabs; numbers as the page shows them."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"}

    def line(values: Sequence[Any]) -> str:
        cells = ("--" if value is None else number(value).strip("`") for value in values)
        return " & ".join("".join(signs.get(c, c) for c in cell) for cell in cells) + r" \\"

    columns = "".join("r" if numeric([list(row) for row in rows], i) else "l" for i in range(len(header)))
    body = "\n".join(map(line, rows))
    head = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule"
    return f"{head}\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def number(value: Any) -> str:
    """A table entry as text: floats with two decimals, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def inline(text: str) -> Markup:
    """Escape, then `code` and **bold**."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text))


def anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def data_url(image: np.ndarray) -> str:
    """A picture uint8 [h, w, 3] as a `data:` URL: PNG where it has few colours, as masks have, else WebP, much
    smaller for photographs."""
    if len(np.unique(image.reshape(-1, image.shape[-1])[:4096], axis=0)) <= 64:
        return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def numeric(rows: list[list[Any]], column: int) -> bool:
    """True for a table's column that holds numbers only."""
    return bool(rows) and all(isinstance(row[column], (int, float, type(None))) for row in rows)


@functools.cache
def page_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inline": inline, "anchor": anchor, "data_url": data_url, "number": number}
    environment.tests["numeric"] = numeric
    return environment.get_template("page.html")


class _Markdown:
    """The blocks as Markdown; collects pictures."""

    def __init__(self, pictures: dict[str, bytes], folder: str) -> None:
        self.pictures, self.folder = pictures, folder

    def _picture(self, data: bytes, suffix: str, alt: str) -> str:
        name = f"{len(self.pictures) + 1:03d}.{suffix}"
        self.pictures[name] = data
        return f"![{self._cell(alt)}]({self.folder}/{name})"

    @staticmethod
    def _cell(text: Any) -> str:
        return number(text).replace("|", "\\|").replace("\n", " ")

    def heading(self, content: tuple[str, int]) -> str:
        """`##` or `###`."""
        return "#" * content[1] + " " + content[0]

    def text(self, text: str) -> str:
        """As it is."""
        return text

    def code(self, text: str) -> str:
        """A fence."""
        return f"```\n{text}\n```"

    def table(self, content: tuple) -> str:
        """A pipe table, the caption below it; rows to be stressed in bold."""
        header, rows, caption, strong = content
        lines = ["| " + " | ".join(self._cell(name) for name in header) + " |", "|" + " --- |" * len(header)]
        for index, row in enumerate(rows):
            cells = [f"**{self._cell(value)}**" if index in strong else self._cell(value) for value in row]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + (f"\n\n{caption}" if caption else "")

    def svg(self, charts: list[tuple[str, str]]) -> str:
        """Pictures in a line."""
        return " ".join(self._picture(svg.encode(), "svg", title) for title, svg in charts)

    def grid(self, content: tuple[list[Cell], int]) -> str:
        """A table with one row for each cell."""
        lines = ["| picture | |", "| --- | --- |"]
        for cell in content[0]:
            pictures = "<br>".join(self._picture(png(image), "png", cell.title) for image in cell.images)
            words = "<br>".join(self._cell(line) for line in (f"**{cell.title}**", *cell.lines))
            lines.append(f"| {pictures} | {words} |")
        return "\n".join(lines)

    def image(self, content: tuple[np.ndarray, str]) -> str:
        return self._picture(png(content[0]), "png", content[1]) + (f"\n\n{content[1]}" if content[1] else "")
