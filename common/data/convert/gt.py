"""A folder of pictures and a list of labels -> a word LMDB, as the published `create_lmdb_dataset.py` scripts do it.

Every line of the list is `path<TAB>label` (MGP-STR, SIGA) or, with whitespace as separator, `path label` split once
(SSM; the label may hold spaces). Pictures are stored as they are. What cannot be used is skipped, counted and listed
in `error_image_log.txt`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import LmdbWriter
from common.errors import UserError
from common.files import write_text

LOG_NAME = "error_image_log.txt"
TAB, WHITESPACE = "tab", "whitespace"


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
    say: Callable[[str], None] = print,
) -> Converted:
    """Write the LMDB folder `out` (which must not exist) from the list `gt_file` of pictures below `images`.

    check_valid: decode every picture first and skip those that fail. A line without the separator, a missing file,
    an empty label and a path that leads out of `images` are skipped too. `say` gets `Written i / N` every 1,000
    samples and the summary. Raises `UserError` for a missing folder or list, an unwritable place, or when no line
    could be used.
    """
    images, gt_file, out = Path(images), Path(gt_file), Path(out)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder: give the folder that the paths in the list start from")
    lines = list(_lines(gt_file))
    result = Converted()
    with LmdbWriter(out) as writer:
        for number, line in lines:
            try:
                path, label = _split(line, separator)
                data = _picture(images, path, check_valid)
            except _Skip as skip:
                result.skipped.append((number, skip.path, skip.reason))
                continue
            writer.add(data, label)
            if writer.count % 1000 == 0:
                say(f"Written {writer.count} / {len(lines)}")
        result.written = writer.count
        if not writer.count:
            first = result.skipped[0] if result.skipped else (0, "", "it is empty")
            raise UserError(
                f"{gt_file}: no usable line (line {first[0]}: {first[1]}: {first[2]}): check paths and separator"
            )
    if result.skipped:
        rows = "".join(f"line {number}\t{path}\t{reason}\n" for number, path, reason in result.skipped)
        write_text(out / LOG_NAME, rows)
        say(f"{len(result.skipped)} of {len(lines)} lines skipped, listed in {out / LOG_NAME}")
    say(f"Created dataset with {result.written} samples")
    return result


class _Skip(Exception):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason


def _lines(gt_file: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, text) of the lines that are not blank; a byte order mark and Windows line ends are taken
    off.
    """
    try:
        text = gt_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{gt_file}: cannot read the list ({error.strerror}): give a text file of paths and labels"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{gt_file}: not UTF-8 at byte {error.start}: convert the list to UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _split(line: str, separator: str) -> tuple[str, str]:
    parts = line.split("\t") if separator == TAB else line.split(maxsplit=1)
    if len(parts) != 2:
        wanted = "exactly one tab" if separator == TAB else "a path and a label"
        raise _Skip(line[:80], f"no line with {wanted}")
    path, label = parts
    if not label:
        raise _Skip(path, "empty label")
    return path, label


def _picture(images: Path, path: str, check_valid: bool) -> bytes:
    file = images / path
    try:
        if not file.resolve().is_relative_to(images.resolve()):
            raise _Skip(path, "leads out of the picture folder")
        data = file.read_bytes()
        if check_valid:
            decode_rgb(data)
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise _Skip(path, f"not a readable picture: {error}") from None
        raise _Skip(path, f"no readable file ({getattr(error, 'strerror', None) or error})") from None
    return data


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab data convert gt`."""
    parser = subparsers.add_parser("gt", help="a folder of pictures and a list of labels", description=__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="the paths in the list start from here")
    parser.add_argument("list", type=Path, metavar="GT.TXT", help="lines of path and label")
    parser.add_argument("out", type=Path, metavar="OUT", help="the LMDB folder to make; must not exist")
    parser.add_argument("--separator", choices=(TAB, WHITESPACE), default=TAB, help="between path and label (tab)")
    parser.add_argument("--no-check", action="store_true", help="store the files without decoding them")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    create_lmdb(args.images, args.list, args.out, separator=args.separator, check_valid=not args.no_check)
