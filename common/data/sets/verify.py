"""`strlab data verify DST`: compare converted LMDBs with what is known of their sets and with what was converted.

For every LMDB at or below DST: the number of words against that of the whole release, and the sha256 over the sorted
(picture hash, label) pairs against the one noted at the conversion and against the set's own, where that is known.
Exit status 0 when all agrees, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from common.data.convert.public import NOTE, pairs_of
from common.data.sets import Subset, digest, find_set, known
from common.data.sources import open_words
from common.data.words import discover
from common.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("verify", help="check converted sets", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DST", help="every LMDB at or below it is compared")
    parser.add_argument("--set", metavar="NAME[/SUBSET]", help="what they are, where no set.json says so")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    wrong = 0
    for folder in discover(args.folder):
        complaints, told = compare(folder, args.set)
        wrong += bool(complaints)
        print(f"{folder}: {told}" + (": " + "; ".join(complaints) if complaints else ": as it should be"))
    return int(wrong > 0)


def compare(folder: Path, named: str | None = None) -> tuple[list[str], str]:
    """(what differs, what the LMDB is) of one LMDB. Raises `UserError` for an unknown set."""
    note = _note(folder)
    name, subset = _named(named, note)
    complaints, count = [], len(open_words(folder))
    pairs = tqdm(pairs_of(folder), total=count, desc=folder.name, unit="img", disable=None, leave=False)
    try:
        found = digest(pairs)
    except (KeyError, UnicodeDecodeError) as error:
        return [f"a sample is missing or broken ({error}); look with `strlab doctor {folder}`"], name or "no known set"
    if note.get("sha256") and note["sha256"] != found:
        complaints.append(f"contents changed since the conversion (sha256 {found[:12]}…, was {note['sha256'][:12]}…)")
    if note.get("words", count) != count:
        complaints.append(f"{count:,} words, {note['words']:,} were converted")
    if subset is not None and subset.words and subset.words != count:
        complaints.append(f"{count:,} words, the whole release has {subset.words:,}")
    if subset is not None and subset.sha256 and subset.sha256 != found:
        complaints.append(f"not the contents of the release (sha256 {found[:12]}…, expected {subset.sha256[:12]}…)")
    return complaints, f"{name or 'no known set'}, {count:,} words, sha256 {found}"


def _note(folder: Path) -> dict:
    try:
        content = json.loads((folder / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _named(named: str | None, note: dict) -> tuple[str, Subset | None]:
    """(what the LMDB is, its subset), None where that is not known."""
    if named is not None:
        name, _, part = named.partition("/")
        data_set = find_set(name)
        if part or len(data_set.subsets) == 1:
            subset = data_set.subset(part) if part else data_set.subsets[0]
            return f"{data_set.name}/{subset.name}", subset
        raise UserError(f"--set: {name} has several subsets: give {name}/{data_set.subsets[0].name} or another")
    data_set = known().get(str(note.get("set")))
    found = [subset for subset in data_set.subsets if subset.name == note.get("subset")] if data_set else []
    return (f"{data_set.name}/{found[0].name}", found[0]) if found else ("", None)
