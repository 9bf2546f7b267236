"""Make a word LMDB from images and a list with lines `path<TAB>label`: the published tool's command line.

    python projects/mgpstr/create_lmdb_dataset.py --inputPath images/ --gtFile gt.txt --outputPath data/training/mine
    python projects/mgpstr/create_lmdb_dataset.py images/ gt.txt data/training/mine

Files that are missing or no image are skipped and listed in `error_image_log.txt` of the new folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.data.convert.gt import create_lmdb
from common.errors import UserError, command
from common.flags import Parser


def yes_or_no(text: str) -> bool:
    """`True`, `False` and their kin, as the published tool's library reads them."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r}: give True or False")
    return text.lower() in ("true", "1", "yes")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="create_lmdb_dataset.py", description=__doc__.splitlines()[0])
    about = {
        "inputPath": "folder in which the paths of the list begin",
        "gtFile": "list of the pictures: path, tab, label in each line",
        "outputPath": "folder of the LMDB",
    }
    names = tuple(about)
    for name in names:
        parser.add_argument(f"--{name}", type=Path, help=about[name])
    parser.add_argument("places", type=Path, nargs="*", metavar="PATH", help=f"{', '.join(names)} without their flags")
    parser.add_argument("--checkValid", type=yes_or_no, default=True, help="decode every picture (default: True)")
    args = parser.parse_args(argv)
    given = iter(args.places)
    places = [getattr(args, name) or next(given, None) for name in names]
    if None in places or next(given, None) is not None:
        raise UserError(f"--{names[places.index(None)] if None in places else names[-1]}: give {', '.join(names)}")
    create_lmdb(*places, check_valid=args.checkValid)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
