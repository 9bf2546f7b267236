"""A folder of pictures and a list of labels -> a word LMDB, as the published `create_lmdb_dataset.py` scripts do it.

Every line of the list is `path<TAB>label` (MGP-STR, SIGA); `--separator` reads other forms: `whitespace`, `path label`
split once (SSM; the label may hold spaces), `comma` for ICDAR's `word_1.png, "Hello"` and for CSV files with or without
a header (EasyOCR), `jsonl` for JSON objects, and `auto`, which finds out. Pictures are stored as they are. What cannot
be used is skipped, counted and listed with file and line in `error_image_log.txt`. A killed conversion resumes when the
same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from common.data.convert.samples import LOG_NAME, Converted, Source, add_running_arguments, write_samples
from common.data.lists import SEPARATORS, TAB, WHITESPACE, Listing, read_listing, rows_of
from common.data.parts import WHOLE_JOB, Shard, find_shard
from common.errors import UserError
from common.files import read_regular

AUTO = "auto"
PART_SIZE = 1000  # lines: the unit of resuming, and how often the published tool reports
__all__ = ["LOG_NAME", "TAB", "WHITESPACE", "Converted", "add_parser", "create_lmdb"]


def create_lmdb(
    images: str | Path,
    gt_file: str | Path,
    out: str | Path,
    *,
    separator: str = TAB,
    check_valid: bool = True,
    encoding: str | None = None,
    say: Callable[[str], None] = print,
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
) -> Converted:
    """Write the LMDB folder `out` (which must not exist) from the list `gt_file` of pictures below `images`.

    check_valid: decode every picture first and skip those that fail. A line without the separator, a missing file,
    an empty label and a path that leads out of `images` are skipped too. `encoding`: see `lists.read_text`. `say` gets
    `Written i / N` every 1,000 lines and the summary. workers, shard, resuming: see `write_samples`. Raises `UserError`
    for a missing folder or list, an unwritable place, or when no line could be used.
    """
    images, gt_file, out = Path(images), Path(gt_file), Path(out)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder: give the folder that the paths in the list start from")
    separator = None if separator == AUTO else separator
    listing = read_listing(gt_file, separator, lambda path: (images / path).is_file(), encoding)
    if not any((images / row.path).is_file() for row in rows_of(listing)):
        raise UserError(f"{gt_file}: no usable line ({_why_none(listing, images)}")

    def sources() -> Iterator[Source]:
        for row in listing.rows:
            where = f"{gt_file}:{row.number}:"
            if row.wrong:
                yield Source.bad(f"{where} {row.path}", row.wrong)
            else:
                yield Source.file(images, row.path, row.label, where, check=check_valid)

    looked_at = 0

    def progress(records: int) -> None:
        nonlocal looked_at
        looked_at += records
        if records == PART_SIZE:
            say(f"Written {looked_at} / {len(listing.rows)}")

    plan = {
        "pictures": str(images.absolute()),
        "list": hashlib.sha256(read_regular(gt_file)).hexdigest(),
        "separator": listing.separator,
        "check": check_valid,
    }
    done = write_samples(
        out, sources(), say, workers=workers, shard=shard, plan=plan, total=len(listing.rows), part_size=PART_SIZE,
        progress=progress,
    )  # fmt: skip
    if listing.trimmed and done.written:
        say(f"{listing.trimmed} labels had blanks around them, which were cut")
    return done


def _why_none(listing: Listing, images: Path) -> str:
    """The first line, why it is not usable, and what to do: another separator where one reads the list."""
    if not listing.rows:
        told = "line 1: it holds a header only)"
    else:
        row = listing.rows[0]
        told = f"line {row.number}: {row.path}: {row.wrong or 'no such picture'})"
    found = read_listing(listing.file, None, lambda name: (images / name).is_file(), listing.encoding)
    if found.separator != listing.separator and any((images / row.path).is_file() for row in rows_of(found)):
        return f"{told}: --separator {found.separator} reads it"
    return f"{told}: check the picture folder {images} and the separator"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("gt", help="a folder of pictures and a list of labels", description=__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="the paths in the list start from here")
    parser.add_argument("list", type=Path, metavar="GT.TXT", help="lines of path and label")
    parser.add_argument("out", type=Path, metavar="OUT", help="the LMDB folder to make; must not exist")
    parser.add_argument("--separator", choices=(*SEPARATORS, AUTO), default=TAB, help="form of the lines (tab)")
    parser.add_argument("--encoding", metavar="NAME", help="of the list, such as gbk (UTF-8, or UTF-16 with its mark)")
    parser.add_argument("--no-check", action="store_true", help="store the files without decoding them")
    add_running_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    how = {"separator": args.separator, "check_valid": not args.no_check, "encoding": args.encoding}
    create_lmdb(args.images, args.list, args.out, **how, workers=args.workers, shard=find_shard(args.shard))
