"""`strlab data list`: the public word sets that `strlab data convert` knows, in a table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from common.data.sets import known


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab data list`."""
    parser = subparsers.add_parser("list", help="list the public word sets", description=__doc__)
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps([asdict(data_set) for data_set in known().values()], indent=1, ensure_ascii=False))
        return
    print(f"{'name':<20} {'words (subsets)':<34} {'language':<16} title")
    for name, data_set in known().items():
        words = data_set.words if any(subset.words for subset in data_set.subsets) else "not stated"
        print(f"{name:<20} {words:<34} {data_set.language:<16} {data_set.title}")
    print("\n`strlab data info NAME` says where a set comes from; `strlab data convert NAME SRC DST` makes its LMDBs.")
