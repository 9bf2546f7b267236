"""Lists of pictures and labels, in the forms in which people have them.

A line is `path<TAB>label` (MGP-STR, SIGA), `path label` split once (SSM), `path, "label"` (ICDAR), a row of a CSV file
with or without a header (EasyOCR, spreadsheets), or a JSON object. A byte-order mark, Windows line ends and blanks
around path and label are no part of either; how many labels lost blanks is counted.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import read_regular

TAB, WHITESPACE, COMMA, JSONL = "tab", "whitespace", "comma", "jsonl"
SEPARATORS = (TAB, COMMA, JSONL, WHITESPACE)
PATH_NAMES = ("file_name", "filename", "file", "image", "img", "path", "image_path", "img_path", "img_name", "name")
LABEL_NAMES = (
    "text",
    "label",
    "labels",
    "word",
    "words",
    "transcription",
    "transcript",
    "gt",
    "ground_truth",
    "caption",
)
SAMPLE_LINES = 20  # lines that are tried to find the separator of a list
_QUOTED = re.compile(r'^"(.*)"$', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')


class Row(NamedTuple):
    """One line: its number (from 1), path and label; `wrong` says why it cannot be used, "" if it can."""

    number: int
    path: str
    label: str
    wrong: str = ""


@dataclass
class Listing:
    """A list as read: rows in order, its separator, whether a header was skipped, how many labels lost blanks.

    `encoding` is that of the file.
    """

    file: Path
    separator: str
    rows: list[Row] = field(default_factory=list)
    header: bool = False
    trimmed: int = 0
    encoding: str = "utf-8"


def read_listing(
    file: str | Path,
    separator: str | None = None,
    exists: Callable[[str], bool] | None = None,
    encoding: str | None = None,
) -> Listing:
    """Read a list. `separator` None finds it: by the file's name, and by which one gives paths that `exists` knows.

    Raises `UserError` for a file that cannot be read, is no text in its encoding (see `read_text`), or has no line.
    """
    file = Path(file)
    text, encoding = read_text(file, encoding)
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{file}: the list is empty")
    separator = separator or find_separator(file, [line for _, line in lines], exists or (lambda path: False))
    listing = Listing(file, separator, encoding=encoding)
    header = _header(lines[0][1], separator, exists)
    listing.header = header is not None
    lines = lines[listing.header :]
    parse = _parser(separator, [line for _, line in lines], header)
    for number, line in lines:
        try:
            path, label = parse(line)
        except ValueError as error:
            listing.rows.append(Row(number, line[:80], "", str(error)))
            continue
        trimmed = label.strip(" \t\r\u3000")
        listing.trimmed += trimmed != label and separator != COMMA
        path = path.strip()
        wrong = "empty label" if not trimmed else "empty path" if not path else ""
        listing.rows.append(Row(number, path, trimmed, wrong))
    return listing


def read_text(file: Path, encoding: str | None = None, fallback: str | None = None) -> tuple[str, str]:
    """(text, encoding) of a file. Without an encoding: UTF-8 with or without a byte-order mark, UTF-16 with one.

    fallback: the encoding of what is not UTF-8. Raises `UserError` naming a file that cannot be read or decoded.
    """
    try:
        data = read_regular(file)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{file}: cannot be read ({reason}): give a text file of paths and labels") from None
    if encoding is None:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding), encoding
    except LookupError:
        raise UserError(f"{file}: no encoding {encoding!r}: give a name such as utf-8, gbk or cp1252") from None
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback, "replace"), fallback
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: line {line}: not {encoding.upper()}: convert it, or name its encoding") from None


def find_separator(file: Path, lines: list[str], exists: Callable[[str], bool]) -> str:
    """The separator under which most of the first lines name pictures that exist; else the likeliest by its form."""
    if lines[0].lstrip().startswith("{"):
        return JSONL
    sample = lines[:SAMPLE_LINES]
    candidates = [TAB] if "\t" in sample[-1] else [COMMA, WHITESPACE]

    def hits(separator: str) -> int:
        found, parse = 0, _parser(separator, sample)
        for line in sample:
            try:
                found += exists(parse(line)[0].strip())
            except ValueError:
                continue
        return found

    best = max(candidates, key=hits)
    if hits(best):
        return best
    return COMMA if best != TAB and (file.suffix.lower() == ".csv" or "," in sample[-1]) else best


def _tab(line: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise ValueError("no line with exactly one tab")
    return parts[0], parts[1]


def _whitespace(line: str) -> tuple[str, str]:
    parts = line.split(maxsplit=1)
    if len(parts) != 2:
        raise ValueError("no line with a path and a label")
    return parts[0], parts[1]


def _json(line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    path = next((row[name] for name in PATH_NAMES if isinstance(row.get(name), str)), None)
    label = next((row[name] for name in LABEL_NAMES if isinstance(row.get(name), (str, int, float))), None)
    if path is None or label is None:
        raise ValueError(f"no path ({', '.join(PATH_NAMES[:3])} …) or no label ({', '.join(LABEL_NAMES[:3])} …)")
    return path, str(label)


def _comma_rule(lines: list[str]) -> Callable[[str], tuple[str, str]]:
    """How the lines of one comma-separated list are split: at the first comma, labels in quotes where all are
    (ICDAR).
    """
    rests = [line.strip().partition(",")[2].strip() for line in lines]
    all_quoted = sum(bool(_QUOTED.match(rest)) for rest in rests) >= 0.8 * len(lines)  # but for odd lines

    def split(line: str) -> tuple[str, str]:
        if line.startswith('"'):  # the path in quotes: a CSV file in which everything may be
            cells = next(csv.reader([line]))
            path, label = cells[0], ",".join(cells[1:])
            return path, label
        path, comma, label = line.strip().partition(",")
        if not comma:
            raise ValueError("no line with a comma")
        label = label.strip()
        quoted = _QUOTED.match(label)
        if quoted and all_quoted:
            return path, _ESCAPED.sub(r"\1", quoted.group(1))
        if quoted and ("," in quoted.group(1) or '""' in quoted.group(1)):  # quotes that CSV needs
            return path, next(csv.reader([label]))[0]
        return path, label

    return split


def _header(line: str, separator: str, exists: Callable[[str], bool] | None) -> tuple[int, int, int] | None:
    """(column of the path, column of the label, columns) where the first line names columns, else None."""
    if separator not in (TAB, COMMA):
        return None
    cells = [cell.strip().lower() for cell in _cells(line, separator)]
    path = next((cells.index(name) for name in PATH_NAMES if name in cells), None)
    label = next((cells.index(name) for name in LABEL_NAMES if name in cells), None)
    if path is None or label is None or path == label or (exists is not None and exists(cells[path])):
        return None
    return path, label, len(cells)


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter="\t" if separator == TAB else ",", skipinitialspace=True))


def _parser(
    separator: str, lines: list[str], header: tuple[int, int, int] | None = None
) -> Callable[[str], tuple[str, str]]:
    """Line -> (path, label); raises ValueError that says what is wrong with the line."""
    if header is not None and header != (0, 1, 2):
        path, label, columns = header

        def pick(line: str) -> tuple[str, str]:
            cells = _cells(line, separator)
            if len(cells) != columns:
                raise ValueError(f"{len(cells)} cells, where the header has {columns}")
            return cells[path], cells[label]

        return pick
    return {TAB: _tab, WHITESPACE: _whitespace, JSONL: _json, COMMA: _comma_rule(lines)}[separator]


def rows_of(listing: Listing) -> Iterator[Row]:
    return (row for row in listing.rows if not row.wrong)
