"""`strlab bench`: time the data path and the models against plain references.

Each row is timed between two measurements of its unit: u = PIL decode + bicubic resize to 32x128 + float tensor of one
100x34 JPEG crop on one thread; v = one image of a fp32 forward + backward of timm's ViT-S (patch 4, 32x128, 97 classes,
batch 8) on the row's threads. Medians; the spread is between the quartiles. Training rows also report the peak resident
memory of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from common.bench.memory import peak_of
from common.bench.rows import Bench, Result, all_rows
from common.errors import UserError

HEAD = ("row", "ours", "unit", "published", "target", "ms/image", "spread", "drift", "threads", "")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="time the data path and the models", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="rows whose name contains this; | separates several"
    )
    parser.add_argument("--list", action="store_true", help="only name the rows")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of the table")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a row misses its target")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    wanted = [part.strip().lower() for part in args.only.split("|")]
    rows = [row for row in all_rows() if any(part in row.name.lower() for part in wanted)]
    if not rows:
        raise UserError(f"--only: {args.only!r}: no row's name contains it; --list names them")
    # Rows of one unit stand together, so that one measurement of the unit serves two rows.
    rows.sort(key=lambda row: (row.unit, row.threads))
    if args.list:
        print("\n".join(row.name for row in rows))
        return 0
    show: Callable[[Result, float | None], None] = _print_json if args.json else _print_line
    if not args.json:
        print(_line(HEAD), flush=True)
    bench, failed = Bench(), 0
    for row in rows:
        try:
            result = bench.measure(row)
        except Exception as error:
            # One broken row must not hide the others; it counts as failed.
            print(f"{row.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        show(result, peak_of(row) if row.memory else None)
        failed += result.passed is False
    print(f"{len(rows)} rows, {failed} missed", file=sys.stderr)
    return 1 if failed and args.strict else 0


def as_dict(result: Result, peak: float | None = None) -> dict[str, object]:
    """One result as plain data; `peak` in GiB."""
    row = result.row
    return {
        "name": row.name,
        "value": round(result.value, 4),
        "unit": row.unit,
        "published": row.published,
        "target": row.target,
        "ms_per_image": round(result.milliseconds, 4),
        "spread": round(result.spread, 3),
        "unit_drift": round(result.unit_drift, 3),
        "threads": row.threads,
        "peak_gib": None if peak is None else round(peak, 2),
        "passed": result.passed,
    }


def _print_json(result: Result, peak: float | None) -> None:
    print(json.dumps(as_dict(result, peak)), flush=True)


def _print_line(result: Result, peak: float | None) -> None:
    row = result.row
    sign = ">=" if row.unit in ("items/s", "x") else "<="
    target = f"{sign}{row.target:g}" if row.target is not None else ("< publ." if row.published is not None else "-")
    published = f"{row.published:g}" if row.published is not None else "-"
    verdict = {True: "pass", False: "MISSED", None: ""}[result.passed]
    cells = (
        row.name, f"{result.value:.3g}", row.unit, published, target, f"{result.milliseconds:.3g}",
        f"{result.spread:.0%}", f"{result.unit_drift:.0%}", str(row.threads), verdict,
    )  # fmt: skip
    notes = filter(None, (row.note, "" if peak is None else f"peak {peak:.2f} GiB"))
    print(f"{_line(cells)}  {'; '.join(notes)}".rstrip(), flush=True)


def _line(cells: tuple[str, ...]) -> str:
    widths = (52, 8, 8, 10, 9, 10, 7, 6, 8, 7)
    return " ".join(
        cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(zip(cells, widths))
    )
