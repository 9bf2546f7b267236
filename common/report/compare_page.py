"""The files of `strlab compare`: a page with an error browser, and the table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2

from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import WordLmdb
from common.data.sources import open_words
from common.files import write_text
from common.infer import environment
from common.infer.evaluate import NAMES, csv_text
from common.infer.pictures import png
from common.report.compared import UNKNOWN, Entry, paired
from common.report.page import Report

SHOWN = 400  # pictures in the error browser: a page of a few megabytes
HEIGHT = 48


class Page(NamedTuple):
    """Where the page is, and the table as text for the console."""

    html: Path
    text: str


def write_files(out: Path, entries: Sequence[Entry], sets: dict[str, Path], any_data: bool) -> Page:
    """Write `index.html`, `compare.md`, `compare.csv` and `compare.tex` into `out`."""
    header, rows = accuracy_table(entries, list(sets))
    facts_header, facts = facts_table(entries)
    report = Report("Readers compared", f"{len(entries)} readers, {len(entries[0].words):,} words of {len(sets)} sets")
    if any_data:
        report.text(
            "**These readers were not all trained on the same data.** Differences are not those of the methods."
        )
    report.heading("Accuracy").table(
        header,
        rows,
        "Word accuracy in % under 36 characters (letters and digits, case ignored), with its 95 % Wilson "
        "interval. Sets are named as their folders are.",
    )
    for protocol in NAMES[1:]:
        report.heading(f"Protocol: {protocol}", 3).table(*accuracy_table(entries, list(sets), protocol))
    if seeds := seeds_table(entries):
        report.heading("Seeds").table(*seeds, "Mean and range over the readers with one label, all sets together.")
    if len(entries) > 1:
        report.heading("Paired test").table(*pairs_table(entries), f"Against {entries[0].name}, on the same words.")
    report.heading("Size, speed, data").table(
        facts_header,
        facts,
        "Speed: images a second on one core of this machine, without decoding. Operations: two for each multiply-add.",
    )
    report.heading("Made with").table(["what", "value"], [[k, v] for k, v in environment.describe().items()])
    browser = error_browser(entries, sets)
    html = report.html().replace("</main>", browser + "</main>")
    write_text(out / "compare.csv", csv_text(header, [tuple(row) for row in rows]))
    write_text(out / "compare.tex", latex(header, rows))
    write_text(out / "compare.md", report.markdown({}))
    return Page(write_text(out / "index.html", html), as_text(header, rows))


def accuracy_table(
    entries: Sequence[Entry], sets: Sequence[str], protocol: str = "36"
) -> tuple[list[str], list[list[str]]]:
    """A row for each reader, a column for each set, then all words; "accuracy (low to high)"."""
    sizes = {name: entries[0].accuracy(protocol, name) for name in sets}
    header = ["reader", *(f"{name} (n={sizes[name][3] if sizes[name] else 0})" for name in sets), "all words"]
    rows = []
    for entry in entries:
        figures = [entry.accuracy(protocol, name) for name in (*sets, None)]
        rows.append([entry.name, *("–" if f is None else f"{f[0]:.1f} ({f[1]:.1f} to {f[2]:.1f})" for f in figures)])
    return header, rows


def seeds_table(entries: Sequence[Entry]) -> tuple[list[str], list[list]] | None:
    """Mean and range of the readers that share a label; None where no label stands for several."""
    groups: dict[str, list[float]] = {}
    for entry in entries:
        if figure := entry.accuracy("36"):
            groups.setdefault(entry.label, []).append(figure[0])
    rows = [[k, len(v), sum(v) / len(v), min(v), max(v)] for k, v in groups.items() if len(v) > 1]
    return (["reader", "seeds", "mean", "lowest", "highest"], rows) if rows else None


def pairs_table(entries: Sequence[Entry]) -> tuple[list[str], list[list]]:
    """McNemar's test of every other reader against the first."""
    first, rows = entries[0], []
    for other in entries[1:]:
        only_first, only_other, p = paired(first, other)
        rows.append([other.name, only_first, only_other, "< 0.0001" if p < 1e-4 else f"{p:.4f}"])
    return ["reader", f"only {first.name} is right", "only this one is right", "p (McNemar, exact)"], rows


def facts_table(entries: Sequence[Entry]) -> tuple[list[str], list[list]]:
    """Parameters, operations, speed, training data, hashes."""
    header = ["reader", "model", "parameters, M", "GFLOPs", "img/s, batch 1", "img/s, batch 32", "trained on",
              "images seen", "commit", "sha256"]  # fmt: skip
    rows = [
        [e.name, e.model, e.parameters / 1e6 or None, e.flops / 1e9 or None, e.speed.get(1), e.speed.get(32), e.data,
         e.images_seen if e.images_seen is not None else UNKNOWN, e.commit[:12], e.sha256[:16]]
        for e in entries
    ]  # fmt: skip
    return header, rows


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in columns for a terminal of 80 columns: further columns follow below, after the first one again."""
    lines = [list(map(str, header)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(header)):
        if len(blocks[-1]) > 1 and sum(widths[i] + 2 for i in blocks[-1]) + widths[column] > 80:
            blocks.append([0])
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join("  ".join(line[i].ljust(widths[i]) for i in block).rstrip() for line in lines) for block in blocks
    )


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a paper, with booktabs; intervals become subscripts of the figure."""

    def cell(text: str) -> str:
        for mark, by in (("\\", r"\textbackslash{}"), ("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("#", r"\#")):
            text = text.replace(mark, by)
        return text.replace("–", "--")

    body = [" & ".join(map(cell, row)) + r" \\" for row in rows]
    return "\n".join(
        [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(map(cell, header)) + r" \\",
         r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def error_browser(entries: Sequence[Entry], sets: dict[str, Path]) -> str:
    """Words that some reader gets wrong, as pictures with what each reader wrote, and filters. Words on which the
    readers disagree come first."""
    by_word: dict[tuple[str, int], list] = {}
    for entry in entries:
        for word in entry.words:
            by_word.setdefault((word.set, word.index), []).append(word)
    wrong = {key: some for key, some in by_word.items() if not all(w.correct.get("36", True) for w in some)}
    mixed = sorted(wrong, key=lambda key: (len({w.correct.get("36") for w in wrong[key]}) == 1, key))
    lmdbs = {name: open_words(path) for name, path in sets.items()} if mixed else {}
    items = []
    for name, index in mixed[:SHOWN]:
        some = wrong[name, index]
        picture = _thumbnail(lmdbs[name], index)
        reads = [[w.text, int(w.correct.get("36", True)), round(w.confidence, 3)] for w in some]
        items.append({"s": name, "i": index + 1, "l": some[0].label, "r": reads, "p": picture})
    for words in lmdbs.values():
        words.close()
    labels = [entry.name for entry in entries]
    data = json.dumps({"readers": labels, "items": items}, ensure_ascii=False).replace("</", "<\\/")
    options = "".join(f'<option value="{i}">{escape(label)} is wrong</option>' for i, label in enumerate(labels))
    chosen = "".join(f"<option>{escape(name)}</option>" for name in sets)
    left = f" The first {SHOWN} of {len(mixed)} are shown." if len(mixed) > SHOWN else ""
    return (
        f'<h2 id="errors">Errors</h2><p>Words that at least one reader gets wrong under 36 characters, those on which '
        f"the readers disagree first.{left}</p>"
        '<form class="filters" onsubmit="return false"><label>Set <select id="f-set"><option value="">all</option>'
        f'{chosen}</select></label> <label>Reader <select id="f-reader"><option value="">any</option>{options}'
        '<option value="d">readers disagree</option></select></label> <label>Text <input id="f-text" type="search">'
        '</label> <output id="f-count"></output></form><div class="grid" id="errors-list" style="--cell:200px"></div>'
        f'<script type="application/json" id="errors-data">{data}</script><script>{SCRIPT}</script>'
    )


def _thumbnail(words: WordLmdb, index: int) -> str:
    try:
        image = decode_rgb(words.image_bytes(index))
    except (BadImage, KeyError):
        return ""
    width = max(8, min(320, round(image.shape[1] * HEIGHT / image.shape[0])))
    small = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    return base64.b64encode(png(small)).decode()


SCRIPT = """
const D=JSON.parse(document.getElementById('errors-data').textContent);
const el=(t,c,x)=>{const e=document.createElement(t);if(c)e.className=c;if(x!==undefined)e.textContent=x;return e};
function show(){const s=document.getElementById('f-set').value,r=document.getElementById('f-reader').value,
q=document.getElementById('f-text').value.toLowerCase(),L=document.getElementById('errors-list');L.replaceChildren();
let n=0;for(const w of D.items){if(s&&w.s!==s)continue;const ok=w.r.map(x=>x[1]);
if(r==='d'?new Set(ok).size<2:r!==''&&ok[+r])continue;
if(q&&!(w.l+' '+w.r.map(x=>x[0]).join(' ')).toLowerCase().includes(q))continue;n++;
const f=el('figure');if(w.p){const i=el('img');i.src='data:image/png;base64,'+w.p;i.alt=w.l;i.loading='lazy';
i.style.width='auto';i.style.maxWidth='100%';f.append(i)}
const c=el('figcaption');c.append(el('strong','',w.l),el('span','soft','  '+w.s+' '+w.i));
w.r.forEach((x,k)=>{c.append(el('br'),el('span',x[1]?'good':'bad',(x[0]||'(nothing)')+' '),
el('span','soft',D.readers[k]+', '+x[2].toFixed(2)))});f.append(c);L.append(f)}
document.getElementById('f-count').textContent=n+' words'}
for(const i of['f-set','f-reader','f-text'])document.getElementById(i).addEventListener('input',show);show();
"""
