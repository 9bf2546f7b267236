"""`strlab data list`: the public word sets that `strlab data convert` knows, in a table."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict

from common.console import show
from common.data.sets import known


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("list", help="list the public word sets", description=__doc__)
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps([asdict(data_set) for data_set in known().values()], indent=1, ensure_ascii=False))
        return
    show("\n".join(lines()), (r"(?m)^\S+", "cyan"), (r"(?m)^ .*$", "dim"), header=True)
    print("\n`strlab data info NAME` says where a set comes from; `strlab data convert NAME SRC DST` makes its LMDBs.")


def lines() -> list[str]:
    """The table, at most 80 columns wide: name, language and title of each set, and the words of its subsets."""
    found = [f"{'name':<18} {'language':<16} title; words of each subset"]
    for name, data_set in known().items():
        words = data_set.words if any(subset.words for subset in data_set.subsets) else "not stated"
        title = textwrap.wrap(f"{data_set.title}; {words}", 44, break_on_hyphens=False)
        found.append(f"{name:<18} {data_set.language:<16} {title[0]}")
        found += [f"{'':<35} {line}" for line in title[1:]]
    return found
