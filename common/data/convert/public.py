"""`strlab data convert NAME SRC DST` for the public sets: their unpacked releases become LMDBs, as released.

Pictures and labels are stored as they are; what a benchmark folds (case, punctuation) is left to the protocols. A set
of several parts makes one LMDB each below DST, at the places that the papers' tables use (`training/…`,
`evaluation/…`), so that many sets can share one DST. A killed conversion resumes with the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import __version__
from common.data.convert.forms import ANYWORD, LMDB, SINGLE, words_of
from common.data.convert.linked import link
from common.data.convert.records import MALFORMED, malformed
from common.data.convert.release import packed
from common.data.convert.samples import add_running_arguments, write_samples
from common.data.convert.scene_files import art as art_scenes
from common.data.convert.scene_files import cut_words, write_scene_file
from common.data.parts import WHOLE_JOB, Joined, Shard, find_shard
from common.data.sets import WHOLE, Subset, WordSet, digest, find_set, known
from common.data.sources import open_words
from common.errors import UserError
from common.files import read_json, write_text

KINDS = SINGLE
NOTE = "set.json"
DIGESTED = 200_000  # words up to which a conversion notes the digest of what it made; `verify` makes that of any set


class Result(NamedTuple):
    """How the conversion of a subset ended: its LMDB, words, skipped records, or why there is none."""

    subset: Subset
    folder: Path
    words: int = 0
    skipped: int = 0
    absent: str = ""


def convert(kind: str, source: Path, out: Path, **how: object) -> list[Result]:
    """Write the LMDBs of an unpacked release; see `convert_set`. Raises `UserError` for annotations of another form."""
    return convert_set(find_set(kind), source, out, **how)


def convert_set(
    data_set: WordSet,
    source: Path,
    out: Path,
    *,
    subsets: list[str] | None = None,
    only: Path | None = None,
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
) -> list[Result]:
    """Convert the subsets of a release that are in `source`, all or the named ones.

    A subset whose files are not there is reported, unless none is there: then its error is raised. A subset that was
    converted already is kept.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the unpacked data set's")
    if data_set.form == LMDB:
        made = link(source, out)
        return [Result(Subset(path.name, str(path)), path, count) for path, count in made]
    if data_set.form == ANYWORD:
        raise UserError(
            f"{data_set.name}: holds scenes: convert each JSON file with `strlab data convert anyword FILE OUT`"
        )
    chosen = [data_set.subset(name) for name in subsets] if subsets else list(data_set.subsets)
    if not subsets and only is None:
        chosen = [subset for subset in chosen if subset.filter != "listed"]
    results, errors = [], []
    for subset in chosen:
        folder = out / subset.folder if subset.folder else out
        try:
            results.append(_convert_subset(data_set, subset, source, folder, only, workers, shard))
        except UserError as error:
            if len(chosen) == 1 and not folder.exists():
                raise UserError(f"{error}{packed(source)}") from None
            if len(chosen) == 1 or (folder.exists() and not _converted(data_set, subset, folder)):
                raise
            errors.append(error)
            results.append(Result(subset, folder, absent=str(error)))
    if len(errors) == len(chosen):
        raise UserError(f"{errors[0]}{packed(source)}")
    return results


def _converted(data_set: WordSet, subset: Subset, folder: Path) -> dict | None:
    """The note of an earlier conversion of the same subset in this folder."""
    try:
        note = read_json(folder / NOTE, dict)
    except UserError:
        return None
    return note if (note.get("set"), note.get("subset")) == (data_set.name, subset.name) else None


def _convert_subset(
    data_set: WordSet, subset: Subset, source: Path, folder: Path, only: Path | None, workers: int, shard: Shard
) -> Result:
    note = _converted(data_set, subset, folder)
    if note is not None:
        print(f"{folder}: converted already")
        return Result(subset, folder, note["words"], note["skipped"])
    try:
        sources = words_of(data_set, subset, source, only)
        plan = {"set": data_set.name, "subset": subset.name, "source": str(source.absolute()), "only": str(only or "")}
        how = {"workers": workers, "shard": shard, "plan": plan, "total": subset.words or None}
        done = write_samples(folder, sources, note=partial(_note, data_set.name, subset.name), **how)
    except MALFORMED as error:
        told = f"annotations are not of {data_set.name}'s form ({malformed(error)})"
        raise UserError(f"{source}: {told}") from None
    if not done.written:
        return Result(subset, folder, absent="other shards have parts of it left")
    return Result(subset, folder, done.written, len(done.skipped))


def _note(name: str, subset: str, folder: Path, joined: Joined) -> None:
    """Write what the folder holds next to its data.mdb."""
    about = {"set": name, "subset": subset, "words": joined.samples, "skipped": len(joined.skipped)}
    if joined.samples <= DIGESTED:
        about["sha256"] = digest(pairs_of(folder))
    write_text(folder / NOTE, json.dumps({**about, "strlab": __version__}, indent=1))


def pairs_of(folder: Path) -> Iterator[tuple[bytes, str]]:
    """(picture, label) of every sample of an LMDB."""
    words = open_words(folder)
    return ((words.image_bytes(number), words.label(number)) for number in range(len(words)))


def table(results: list[Result]) -> list[str]:
    """The lines that compare what was made with the whole release."""
    lines = []
    for one in results:
        whole = f" of {one.subset.words:,}" if one.subset.words else ""
        if one.absent:
            lines.append(f"  {one.subset.name:<16} not made: {one.absent}")
        else:
            skipped = f", {one.skipped:,} skipped" if one.skipped else ""
            lines.append(f"  {one.subset.name:<16} {one.words:>9,}{whole} words{skipped}  {one.folder}")
    return lines


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    for name, data_set in known().items():
        if data_set.form == ANYWORD and name == ANYWORD:
            continue  # the kind of that name converts JSON files
        description = f"{data_set.title}. Release: {data_set.layout}. {' '.join(data_set.odd)}"
        parser = subparsers.add_parser(name, help=data_set.title, description=description.replace("%", "%%"))
        parser.add_argument("source", type=Path, metavar="SRC", help="folder of the unpacked data set")
        several = len(data_set.subsets) > 1
        where = "data root, which gets the LMDB folders" if several else "the LMDB folder to make; must not exist"
        parser.add_argument("out", type=Path, metavar="DST", help=where)
        names = [subset.name for subset in data_set.subsets]
        if names != [WHOLE]:
            parser.add_argument("--subset", nargs="+", choices=names, help="only these (default: all that are there)")
        if any(subset.filter == "listed" for subset in data_set.subsets):
            parser.add_argument("--only", type=Path, metavar="LIST", help="names of the words to keep, one a line")
        parser.add_argument(
            "--scenes", action="store_true", help="write a scene file DST.json of the whole pictures and their words"
        )
        add_running_arguments(parser)
        parser.set_defaults(run=partial(_run, data_set))


def convert_scenes(data_set: WordSet, source: Path, out: Path, subsets: list[str] | None = None) -> None:
    """Write a scene file of the whole pictures of a release. Raises `UserError` where it holds cut-out words alone."""
    if data_set.form in (LMDB, ANYWORD):
        told = "holds no whole pictures" if data_set.form == LMDB else "is of the scene file's form already"
        raise UserError(f"--scenes: {data_set.name} {told}")
    chosen = [data_set.subset(name) for name in subsets] if subsets else list(data_set.subsets)[:1]
    skipped: list[tuple[str, str]] = []
    if data_set.form == "art":  # its word task has other pictures
        words = art_scenes(source, skipped)
    else:
        words = (word for subset in chosen for word in cut_words(words_of(data_set, subset, source), skipped))
    try:
        write_scene_file(out, words, skipped)
    except MALFORMED as error:
        told = f"annotations are not of {data_set.name}'s form ({malformed(error)})"
        raise UserError(f"{source}: {told}") from None


def _run(data_set: WordSet, args: argparse.Namespace) -> None:
    if args.scenes:
        convert_scenes(data_set, args.source, args.out, getattr(args, "subset", None))
        return
    how = {"subsets": getattr(args, "subset", None), "only": getattr(args, "only", None)}
    results = convert_set(data_set, args.source, args.out, workers=args.workers, shard=find_shard(args.shard), **how)
    print("\n".join([f"{data_set.title}:", *table(results)]))
    unlisted = [subset for subset in data_set.subsets if subset.filter == "listed"]
    if how["only"] is None and how["subsets"] is None:
        for subset in unlisted:
            print(
                f"  {subset.name:<16} needs a list of its {subset.words:,} words, which no release holds: --only LIST"
            )
