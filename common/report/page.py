"""A report as one self-contained HTML page, and the same as Markdown with its pictures in a folder beside it.

>>> report = Report("SIGA", "cpu scale")
>>> report.heading("Accuracy").table(["set", "words"], [["SVT", 647]]).text("All figures are from one run.")
Report('SIGA', 4 blocks)
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_bytes, write_text
from common.infer.pictures import png
from common.report.charts import Curve, line_chart

STYLE = """
:root{--ink:#1f2328;--soft:#59636e;--line:#d8dee4;--pale:#f6f8fa;--good:#1a7f4b;--bad:#b3261e}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:27px;margin:0 0 2px}
h2{font-size:20px;margin:38px 0 10px;padding-bottom:5px;border-bottom:1px solid var(--line)}
h3{font-size:16px;margin:24px 0 8px}p{margin:8px 0;max-width:80ch}.sub{color:var(--soft);margin:0 0 20px}
nav{font-size:14px;margin:0 0 8px}nav a{margin-right:14px;color:#2563a8;text-decoration:none}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:10px 0;font-size:14px}
th,td{padding:5px 11px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{background:var(--pale);font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
tr.strong td{font-weight:600;border-top:2px solid var(--line)}
p.cap{color:var(--soft);font-size:13px;margin-top:2px;max-width:100ch}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--pale);border-radius:4px}
code{padding:1px 4px}pre{padding:10px 12px;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:16px}
.row svg{border:1px solid var(--line);border-radius:6px;max-width:100%;height:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(var(--cell),1fr));gap:14px;margin:12px 0}
figure{margin:0;border:1px solid var(--line);border-radius:6px;padding:8px;overflow:hidden;background:#fff}
figure img{display:block;width:100%;height:auto;border-radius:3px;margin-bottom:5px;image-rendering:auto}
figcaption{font-size:13px;line-height:1.4;overflow-wrap:anywhere}figcaption .soft{color:var(--soft)}
.good{color:var(--good)}.bad{color:var(--bad)}.wide img{width:auto;max-width:100%}
@media print{main{max-width:none}figure,svg{break-inside:avoid}}
"""


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
        contents = [content[0] for kind, content in self.blocks if kind == "heading" and content[1] == 2]
        nav = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in contents)
        body = "\n".join(_HTML[kind](content) for kind, content in self.blocks)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>\n'
            f"<body><main><h1>{escape(self.title)}</h1>"
            f'<p class="sub">{_inline(self.subtitle)}</p><nav>{nav}</nav>\n{body}\n</main></body></html>\n'
        )

    def markdown(self, pictures: dict[str, bytes], folder: str = "report_files") -> str:
        """The text as Markdown; the bytes of its pictures are put into `pictures` under their file names."""
        writer = _Markdown(pictures, folder)
        body = "\n\n".join(getattr(writer, kind)(content) for kind, content in self.blocks)
        return f"# {self.title}\n\n{self.subtitle}\n\n{body}\n"

    def write(self, folder: Path, name: str = "report") -> tuple[Path, Path]:
        """Write `<name>.html`, `<name>.md` and `<name>_files/` for the latter; returns the paths of the two."""
        pictures: dict[str, bytes] = {}
        text = self.markdown(pictures, f"{name}_files")
        for file, data in pictures.items():
            write_bytes(folder / f"{name}_files" / file, data)
        return write_text(folder / f"{name}.html", self.html()), write_text(folder / f"{name}.md", text)


def number(value: Any) -> str:
    """A table entry as text: floats with two decimals, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _inline(text: str) -> str:
    """Escape, then `code` and **bold**."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _img(image: np.ndarray, alt: str = "") -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png(image)).decode()}">'


def _html_heading(content: tuple[str, int]) -> str:
    text, level = content
    return f'<h{level} id="{_anchor(text)}">{escape(text)}</h{level}>'


def _html_text(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _html_table(content: tuple) -> str:
    header, rows, caption, strong = content
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(header))
    ]
    marks = [' class="n"' if flag else "" for flag in numeric]
    head = "".join(f"<th{mark}>{_inline(str(name))}</th>" for name, mark in zip(header, marks))
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td{mark}>{_inline(number(value))}</td>" for value, mark in zip(row, marks))
        lines.append(f"<tr{' class=strong' if index in strong else ''}>{cells}</tr>")
    foot = f'<p class="cap">{_inline(caption)}</p>' if caption else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{foot}'
    )


def _html_grid(content: tuple[list[Cell], int]) -> str:
    cells, width = content
    figures = []
    for cell in cells:
        mark = "" if cell.good is None else f' class="{"good" if cell.good else "bad"}"'
        lines = "".join(f'<br><span class="soft">{_inline(line)}</span>' for line in cell.lines)
        pictures = "".join(_img(image, cell.title) for image in cell.images)
        figures.append(
            f"<figure>{pictures}<figcaption><strong{mark}>{escape(cell.title)}</strong>{lines}</figcaption></figure>"
        )
    return f'<div class="grid" style="--cell:{width}px">{"".join(figures)}</div>'


def _html_image(content: tuple[np.ndarray, str]) -> str:
    image, caption = content
    return f'<figure class="wide">{_img(image, caption)}<figcaption>{_inline(caption)}</figcaption></figure>'


_HTML = {
    "heading": _html_heading,
    "text": _html_text,
    "code": lambda text: f"<pre>{escape(text)}</pre>",
    "table": _html_table,
    "svg": lambda charts: '<div class="row">' + "".join(svg for _, svg in charts) + "</div>",
    "grid": _html_grid,
    "image": _html_image,
}


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
        """One picture and its caption."""
        return self._picture(png(content[0]), "png", content[1]) + (f"\n\n{content[1]}" if content[1] else "")
