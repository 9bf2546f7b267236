"""`strlab models`: the readers that ship, the registered models, and the published weight files with their terms."""

from __future__ import annotations

import argparse
import json
import textwrap

from common import registry
from common.console import NOTES, Rule, show
from common.errors import UserError
from common.infer import shipped
from common.infer.shipped import Shipped

HEAD: Rule = (r"(?s).*", "bold")
NAME: Rule = (r"(?m)^\S+", "cyan")
TERMS: Rule = (r"research\s+(?:purposes|only)|academic\s+research|CC-BY-NC\s\S+|patent\s+notice|not\s+stated", "yellow")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("models", help="list the readers that ship and all models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="only names that contain this")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    readers = [one for one in shipped.all_shipped() if args.pattern.lower() in f"{one.name} {one.model}".lower()]
    rows = [row for row in registry.rows() if args.pattern.lower() in row.name.lower()]
    if not rows and not readers:
        raise UserError(f"models: no name contains {args.pattern!r}; `strlab models` lists all")
    if args.json:
        found = [one.describe() for one in readers] + [describe(row) for row in rows]
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return 0
    if readers:
        show("Readers that ship (--weights NAME; the first is used when none is named)", HEAD)
        show("\n".join(line for one in readers for line in shipped_lines(one)), NAME, NOTES, TERMS)
        show("\nModels (train them, or open published weights: --checkpoint FILE --model NAME)", HEAD)
    elif not args.pattern:
        print("No trained reader ships with this installation.\n")
    for row in rows:
        show("\n".join(model_lines(row)), NAME, NOTES, TERMS)
    return 0


def model_lines(row: registry.ModelRow) -> list[str]:
    """Name, kind, size and characters of a model, and its published weights with their terms."""
    height, width = row.image_size
    reads = f", {len(row.charset)} characters" if row.charset else ""
    names = [f"{row.name:<40}"] if len(row.name) <= 40 else [row.name, " " * 40]
    lines = [*names[:-1], f"{names[-1]} {row.kind:<11} {height}x{width}{reads}"]
    for weights in row.weights:
        where = f"; {weights.where}" if weights.where else ""
        lines += _wrapped(f"weights {weights.name}: {weights.licence}{where}").splitlines()
    return lines


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)


def shipped_lines(one: Shipped) -> list[str]:
    """Some lines about a shipped reader: size, accuracy, licence, hash."""
    facts = one.describe()
    return [
        f"{one.name} ({one.model}, {one.size / 2**20:.1f} MiB, {facts.get('parameters', 0) / 1e6:.2f} M parameters)",
        *(_wrapped(f"accuracy: {row}") for row in one.accuracies()),
        _wrapped(f"trained on {facts.get('data', 'data not stated')}"),
        _wrapped(f"licence {facts.get('licence', 'Apache-2.0')}; {facts.get('terms', 'no further terms')}"),
        f"    sha256 {facts['sha256']}",
    ]


def describe(row: registry.ModelRow) -> dict[str, object]:
    """One registry entry as plain data."""
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
