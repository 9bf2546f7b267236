"""`strlab data convert merge` and `unseen`: LMDBs from LMDBs, with all values of a sample (masks, boxes, metadata)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common.data.convert.samples import Source, add_running_arguments, write_samples
from common.data.decode import BadImage, picture_size
from common.data.lmdb import WordLmdb
from common.data.parts import find_shard
from common.data.sources import open_words
from common.data.words import discover
from common.text.normalise import remove_whitespace


def stored(folders: list[Path], extras: bool = True) -> Iterator[Source]:
    """The words of LMDBs, with whatever else is stored under their numbers."""
    for folder in folders:
        for path in discover(folder):
            words = open_words(path)
            others = [prefix for prefix in words.prefixes() if prefix not in ("image", "label")] if extras else []
            for number in range(len(words)):
                values = {name: value for name in others if (value := words.value(name, number)) is not None}
                yield Source(
                    f"{path} {number + 1}", label_of(words, number), partial(picture_of, words, number), values
                )


def picture_of(words: WordLmdb, number: int) -> bytes:
    """The picture's bytes. Raises OSError where there is none."""
    try:
        return words.image_bytes(number)
    except KeyError as error:
        raise OSError(error.args[0]) from None


def label_of(words: WordLmdb, number: int) -> str:
    """The label of a sample, empty where there is none or it is not UTF-8; `write_samples` lists such samples."""
    try:
        return words.label(number)
    except (KeyError, UnicodeDecodeError):
        return ""


def large(source: Source, least: int) -> bool:
    """True where both sides of the picture have at least `least` pixels, or it cannot be read: `write_samples` lists
    such samples."""
    try:
        return min(picture_size(source.read())) >= least
    except (OSError, BadImage):
        return True


def unseen(folders: list[Path], training: list[Path]) -> Iterator[Source]:
    """Words whose label, without case and blanks, is never one of `training`."""
    known = {remove_whitespace(source.label).lower() for source in stored(training, extras=False)}
    return (source for source in stored(folders) if remove_whitespace(source.label).lower() not in known)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("merge", help="LMDBs in one, without small pictures")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SRC", help="LMDBs at or below these")
    parser.add_argument("out", type=Path, metavar="DST", help="the LMDB folder to make; must not exist")
    parser.add_argument("--min_image_dim", type=int, default=8, help="shorter side in pixels (8)")
    add_running_arguments(parser)
    parser.set_defaults(run=_merge)
    parser = subparsers.add_parser("unseen", help="words whose label never occurs in training")
    parser.add_argument("source", type=Path, metavar="SRC", help="LMDBs at or below this")
    parser.add_argument("out", type=Path, metavar="DST", help="the LMDB folder to make; must not exist")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="LMDBs of training")
    add_running_arguments(parser)
    parser.set_defaults(run=_unseen)


def _merge(args: argparse.Namespace) -> None:
    kept = (source for source in stored(args.sources) if large(source, args.min_image_dim))
    _write(args, kept, {"merge": [str(path.absolute()) for path in args.sources], "least": args.min_image_dim})


def _unseen(args: argparse.Namespace) -> None:
    plan = {"unseen": str(args.source.absolute()), "training": [str(path.absolute()) for path in args.training]}
    _write(args, unseen([args.source], args.training), plan)


def _write(args: argparse.Namespace, sources: Iterator[Source], plan: dict) -> None:
    write_samples(args.out, sources, workers=args.workers, shard=find_shard(args.shard), plan=plan)
