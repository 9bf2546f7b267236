"""`strlab data convert NAME SRC DST` for public data sets; `merge` and `unseen` make LMDBs from LMDBs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from common.data.convert import crops, scenes
from common.data.convert.samples import Source, write_samples
from common.data.decode import BadImage, picture_size
from common.data.lmdb import WordLmdb
from common.data.words import discover
from common.errors import UserError
from common.text.normalise import remove_whitespace

KINDS: dict[str, Callable[[Path], Iterator[Source]]] = {
    "textocr": scenes.textocr, "openvino": scenes.openvino, "coco": scenes.coco, "art": crops.art, "lsvt": scenes.lsvt,
    "mlt19": crops.mlt19, "rctw17": scenes.rctw17, "rects": scenes.rects, "uber": scenes.uber,
    "union14m": crops.union14m, "iam": crops.iam, "cvl": crops.cvl, "wordart": crops.wordart,
}  # fmt: skip


def convert(kind: str, source: Path, out: Path) -> None:
    """Write the LMDB `out` from an unpacked data set. Raises `UserError` for annotations of another form."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the unpacked data set's")
    try:
        write_samples(out, KINDS[kind](source))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: annotations are not of {kind}'s form ({scenes.malformed(error)})") from None


def stored(folders: list[Path]) -> Iterator[Source]:
    """The words of LMDBs."""
    for folder in folders:
        for path in discover(folder):
            words = WordLmdb(path)
            for number in range(len(words)):
                yield Source(f"{path} {number + 1}", label_of(words, number), partial(words.image_bytes, number))


def label_of(words: WordLmdb, number: int) -> str:
    """The label of a sample, empty where there is none or it is no UTF-8; `write_samples` lists such samples."""
    try:
        return words.label(number)
    except (KeyError, UnicodeDecodeError):
        return ""


def large(source: Source, least: int) -> bool:
    """True where both sides of the picture have at least `least` pixels, or it cannot be read: `write_samples` lists
    such samples."""
    try:
        return min(picture_size(source.read())) >= least
    except (OSError, KeyError, BadImage):
        return True


def unseen(folders: list[Path], training: list[Path]) -> Iterator[Source]:
    """Words whose label, without case and blanks, is never one of `training`."""
    known = {remove_whitespace(source.label).lower() for source in stored(training)}
    return (source for source in stored(folders) if remove_whitespace(source.label).lower() not in known)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the public data sets, `merge` and `unseen`."""
    for name, reader in KINDS.items():
        told = (reader.__doc__ or name).splitlines()[0]
        parser = subparsers.add_parser(name, help=told, description=reader.__doc__)
        parser.add_argument("source", type=Path, metavar="SRC", help="folder of the unpacked data set")
        parser.add_argument("out", type=Path, metavar="DST", help="the LMDB folder to make; must not exist")
        parser.set_defaults(run=lambda args, kind=name: convert(kind, args.source, args.out))
    parser = subparsers.add_parser("merge", help="LMDBs in one, without small pictures")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SRC", help="LMDBs at or below these")
    parser.add_argument("out", type=Path, metavar="DST", help="the LMDB folder to make; must not exist")
    parser.add_argument("--min_image_dim", type=int, default=8, help="shorter side in pixels (8)")
    parser.set_defaults(run=_merge)
    parser = subparsers.add_parser("unseen", help="words whose label never occurs in training")
    parser.add_argument("source", type=Path, metavar="SRC", help="LMDBs at or below this")
    parser.add_argument("out", type=Path, metavar="DST", help="the LMDB folder to make; must not exist")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="LMDBs of training")
    parser.set_defaults(run=lambda args: _write(args.out, unseen([args.source], args.training)))


def _merge(args: argparse.Namespace) -> None:
    _write(args.out, (source for source in stored(args.sources) if large(source, args.min_image_dim)))


def _write(out: Path, sources: Iterator[Source]) -> None:
    write_samples(out, sources)
