"""`strlab models`: the registered models, their input and the published weight files with licences."""

from __future__ import annotations

import argparse
import json

from common import registry
from common.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab models`."""
    parser = subparsers.add_parser("models", help="list the registered models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="only names that contain this")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    rows = [row for row in registry.rows() if args.pattern.lower() in row.name.lower()]
    if not rows:
        raise UserError(f"models: no name contains {args.pattern!r}; `strlab models` lists all")
    if args.json:
        print(json.dumps([describe(row) for row in rows], ensure_ascii=False, indent=1))
        return 0
    for row in rows:
        height, width = row.image_size
        reads = f", {len(row.charset)} characters" if row.charset else ""
        print(f"{row.name:<44} {row.kind:<12} {height}x{width}{reads}")
        for weights in row.weights:
            where = f"; {weights.where}" if weights.where else ""
            print(f"    weights {weights.name}: {weights.licence}{where}")
    return 0


def describe(row: registry.ModelRow) -> dict[str, object]:
    """One row as plain data."""
    return {
        "name": row.name,
        "kind": row.kind,
        "image_size": list(row.image_size),
        "mean": list(row.mean),
        "std": list(row.std),
        "charset": row.charset,
        "options": dict(row.options),
        "paper": row.paper,
        "status": row.status,
        "weights": [vars(weights) for weights in row.weights],
    }
