"""`strlab data convert acds`: ACDS-STR's box labels -> text labels and JSON boxes.

The published form stores a pickled dict under `label-%09d`: the *text* of two points `[[x1, y1], [x2, y2]]` ->
character, in order, and last `word` -> the word. Pickles can run code; here nothing of them is run: a small reader
accepts the few opcodes of a dict of strings and refuses everything else, and the points are parsed as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import pickletools
from collections.abc import Iterator
from pathlib import Path

from common.data.bad import BadSample
from common.data.decode import BadImage, picture_size
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.words import discover
from common.errors import UserError
from projects.mgpstr.box_masks import Box, check_boxes

STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PASSED = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}

MARK = object()


class Refused(ValueError):
    """A pickle that is no plain table of strings."""


def last_mark(stack: list[object]) -> int:
    """Place of the last mark. Raises ValueError where there is none."""
    return len(stack) - 1 - stack[::-1].index(MARK)


def popped(stack: list[object], start: int) -> list[object]:
    """Take everything from `start` on off the stack; returns it without marks."""
    items = [item for item in stack[start:] if item is not MARK]
    del stack[start:]
    return items


def string_table(data: bytes) -> dict[str, str]:
    """Read a pickled dict of strings to strings without unpickling it. Raises `Refused` for anything else."""
    stack: list[object] = []
    memo: list[object] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in STRINGS:
                stack.append(argument)
            elif opcode.name == "EMPTY_DICT":
                stack.append({})
            elif opcode.name == "MARK":
                stack.append(MARK)
            elif opcode.name == "DICT":
                pairs = popped(stack, last_mark(stack))
                stack.append(dict(zip(pairs[0::2], pairs[1::2], strict=True)))
            elif opcode.name in ("SETITEM", "SETITEMS"):
                pairs = popped(stack, len(stack) - 2 if opcode.name == "SETITEM" else last_mark(stack))
                stack[-1].update(zip(pairs[0::2], pairs[1::2], strict=True))
            elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo.append(stack[-1])
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument)])
            elif opcode.name == "STOP":
                return checked_table(stack)
            elif opcode.name not in PASSED:
                raise Refused(f"it holds {opcode.name}, which is no part of a table of strings")
    except (IndexError, ValueError, AttributeError, TypeError) as error:
        raise error if isinstance(error, Refused) else Refused(f"not a whole pickle ({error})") from None
    raise Refused("not a whole pickle")


def checked_table(stack: list[object]) -> dict[str, str]:
    """The one dict of strings that a pickle ends with. Raises `Refused`."""
    table = stack[0] if len(stack) == 1 else None
    if not isinstance(table, dict) or not all(isinstance(part, str) for pair in table.items() for part in pair):
        raise Refused("it is no dict of strings")
    return table


def boxes_of(table: dict[str, str]) -> tuple[str, list[Box]]:
    """(word, boxes) of a published table. Raises `Refused` for a missing word or points that are not two pairs."""
    if "word" not in table:
        raise Refused("it has no entry 'word'")
    boxes: list[Box] = []
    for text, character in table.items():
        if text == "word":
            continue
        try:
            (x1, y1), (x2, y2) = json.loads(text)  # of four corners the first two are a side, not a box
            numbers = tuple(float(value) for value in (x1, y1, x2, y2))
        except (ValueError, TypeError):
            raise Refused(
                f"{text[:40]!r} is no pair of points [[x1, y1], [x2, y2]]; give the top left and bottom right corners"
            ) from None
        if not all(map(math.isfinite, numbers)):
            raise Refused(f"{text[:40]!r}: coordinates must be finite")
        boxes.append((*numbers, character))
    return table["word"], boxes


def whole(value: float) -> float | int:
    """7.0 as 7, for shorter JSON."""
    return int(value) if value == int(value) else value


def converted(words: WordLmdb, tolerance: float) -> Iterator[tuple[bytes, str, bytes] | BadSample]:
    """(image, word, JSON boxes) of every sample, or why it was skipped."""
    for index in range(len(words)):
        try:
            image, label = words.image_bytes(index), words.value("label", index)
            word, boxes = boxes_of(string_table(label or b""))
            width, height = picture_size(image)
            wrong = check_boxes(boxes, width, height, tolerance)
            if wrong:
                raise Refused(wrong)
            word.encode("utf-8")
            told = json.dumps([[*map(whole, box[:4]), box[4]] for box in boxes], ensure_ascii=False).encode()
        except (Refused, BadImage, OSError, KeyError, ValueError, RecursionError) as error:
            yield BadSample(str(words.path), index + 1, str(error))
            continue
        yield image, word, told


def convert_acds(source: Path, target: Path, tolerance: float = 0.1) -> tuple[int, list[BadSample]]:
    """Convert one LMDB into a new one; returns the samples written and those skipped.

    Raises `UserError` where no sample is a table of boxes.
    """
    bad: list[BadSample] = []
    with LmdbWriter(target) as writer:
        for sample in converted(WordLmdb(source), tolerance):
            if isinstance(sample, BadSample):
                bad.append(sample)
            else:
                image, word, boxes = sample
                writer.add(image, word, boxes=boxes)
        written = writer.count
        if not written:
            reason = bad[0].reason if bad else "it is empty"
            raise UserError(
                f"{source}: no sample has ACDS's box table (sample 1: {reason}); give the folder of such a set"
            )
    return written, bad


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab data convert acds`."""
    parser = subparsers.add_parser("acds", help="ACDS-STR's pickled box labels to JSON", description=__doc__)
    parser.add_argument("source", type=Path, help="an LMDB folder, or a folder of them")
    parser.add_argument("target", type=Path, help="new folder; sub-folders are kept")
    parser.add_argument("--tolerance", type=float, default=0.1, help="how far a box may leave the picture, as a share")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`strlab data convert acds`."""
    for source in discover(args.source):
        target = args.target / source.relative_to(args.source)
        written, bad = convert_acds(source, target, args.tolerance)
        print(f"{target}: {written} samples, {len(bad)} skipped")
        for sample in bad[:5]:
            print(f"  sample {sample.number}: {sample.reason}")
    return 0
