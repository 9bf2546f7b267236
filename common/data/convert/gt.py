"""A folder of pictures and a list of labels -> a word LMDB, as the published `create_lmdb_dataset.py` scripts do it.

Every line of the list is `path<TAB>label` (MGP-STR, SIGA); `--separator` reads other forms: `whitespace`, `path label`
split once (SSM; the label may hold spaces), `comma` for ICDAR's `word_1.png, "Hello"` and for CSV files with or without
a header (EasyOCR), `jsonl` for JSON objects, and `auto`, which finds out. Pictures are stored as they are. What cannot
be used is skipped, counted and listed in `error_image_log.txt`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from common.data.convert.records import Unusable, picture_below
from common.data.lists import SEPARATORS, TAB, WHITESPACE, Listing, read_listing, rows_of
from common.data.lmdb import LmdbWriter
from common.errors import UserError
from common.files import write_text

LOG_NAME = "error_image_log.txt"
AUTO = "auto"
__all__ = ["LOG_NAME", "TAB", "WHITESPACE", "Converted", "add_parser", "create_lmdb"]


@dataclass
class Converted:
    """How many samples were written, and (line number, path, reason) of every line that was skipped."""

    written: int = 0
    skipped: list[tuple[int, str, str]] = field(default_factory=list)


def create_lmdb(
    images: str | Path,
    gt_file: str | Path,
    out: str | Path,
    *,
    separator: str = TAB,
    check_valid: bool = True,
    encoding: str | None = None,
    say: Callable[[str], None] = print,
) -> Converted:
    """Write the LMDB folder `out` (which must not exist) from the list `gt_file` of pictures below `images`.

    check_valid: decode every picture first and skip those that fail. A line without the separator, a missing file,
    an empty label and a path that leads out of `images` are skipped too. `encoding`: see `lists.read_text`. `say` gets
    `Written i / N` every 1,000 samples and the summary. Raises `UserError` for a missing folder or list, an unwritable
    place, or when no line could be used.
    """
    images, gt_file, out = Path(images), Path(gt_file), Path(out)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder: give the folder that the paths in the list start from")
    separator = None if separator == AUTO else separator
    listing = read_listing(gt_file, separator, lambda path: (images / path).is_file(), encoding)
    result = Converted()
    with LmdbWriter(out) as writer:
        for row in tqdm(listing.rows, desc=gt_file.name, unit="img", disable=None, leave=False):
            try:
                data = b"" if row.wrong else picture_below(images, row.path, check_valid)
            except Unusable as error:
                row = row._replace(wrong=str(error))
            if row.wrong:
                result.skipped.append((row.number, row.path, row.wrong))
                continue
            writer.add(data, row.label)
            if writer.count % 1000 == 0:
                say(f"Written {writer.count} / {len(listing.rows)}")
        result.written = writer.count
        if not writer.count:
            raise UserError(f"{gt_file}: no usable line ({_why_none(listing, result, images)}")
    if listing.trimmed:
        say(f"{listing.trimmed} labels had blanks around them, which were cut")
    if result.skipped:
        rows = "".join(f"line {number}\t{path}\t{reason}\n" for number, path, reason in result.skipped)
        write_text(out / LOG_NAME, rows)
        say(f"{len(result.skipped)} of {len(listing.rows)} lines skipped, listed in {out / LOG_NAME}")
    say(f"Created dataset with {result.written} samples")
    return result


def _why_none(listing: Listing, result: Converted, images: Path) -> str:
    """The first line that was skipped and what to do: another separator where one reads the list."""
    number, path, reason = result.skipped[0] if result.skipped else (1, "", "it holds a header only")
    told = f"line {number}: {path}: {reason})"
    found = read_listing(listing.file, None, lambda name: (images / name).is_file(), listing.encoding)
    if found.separator != listing.separator and any((images / row.path).is_file() for row in rows_of(found)):
        return f"{told}: --separator {found.separator} reads it"
    return f"{told}: check the picture folder {images} and the separator"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab data convert gt`."""
    parser = subparsers.add_parser("gt", help="a folder of pictures and a list of labels", description=__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="the paths in the list start from here")
    parser.add_argument("list", type=Path, metavar="GT.TXT", help="lines of path and label")
    parser.add_argument("out", type=Path, metavar="OUT", help="the LMDB folder to make; must not exist")
    parser.add_argument("--separator", choices=(*SEPARATORS, AUTO), default=TAB, help="form of the lines (tab)")
    parser.add_argument("--encoding", metavar="NAME", help="of the list, such as gbk (UTF-8, or UTF-16 with its mark)")
    parser.add_argument("--no-check", action="store_true", help="store the files without decoding them")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    how = {"separator": args.separator, "check_valid": not args.no_check, "encoding": args.encoding}
    create_lmdb(args.images, args.list, args.out, **how)
