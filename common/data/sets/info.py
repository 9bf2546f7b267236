"""`strlab data info NAME`: where a public word set comes from, what its release looks like, and what is odd about
it.
"""

from __future__ import annotations

import argparse

from common.data.sets import WordSet, find_set


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("info", help="what is known of a public word set", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="as `strlab data list` prints it")
    parser.set_defaults(run=lambda args: print("\n".join(describe(find_set(args.name)))))


def describe(data_set: WordSet) -> list[str]:
    """The lines about a set."""
    how = {
        "lmdb": f"strlab data convert {data_set.name} SRC DST   (the release is an LMDB: it is checked and linked)",
        "anyword": "strlab data convert anyword FILE.json DST   (scenes with word polygons)",
    }
    lines = [
        f"{data_set.title}  ({data_set.name}; {data_set.language})",
        f"  paper    {data_set.paper}",
        *(f"  address  {address}" for address in data_set.url),
        f"  licence  {data_set.licence}   (read the terms of the release itself)",
        f"  release  {data_set.layout}",
        f"  convert  {how.get(data_set.form, f'strlab data convert {data_set.name} SRC DST')}",
    ]
    for subset in data_set.subsets:
        words = f"{subset.words:,} words" if subset.words else "number of words not stated"
        rule = f", {subset.filter}" if subset.filter else ""
        rule += f", at least {subset.least} characters" if subset.least > 1 else ""
        lines.append(f"  subset   {subset.name}: {words}{rule} -> DST/{subset.folder}".rstrip("/"))
    return lines + [f"  note     {odd}" for odd in data_set.odd]
