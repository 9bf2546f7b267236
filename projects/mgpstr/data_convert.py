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
from functools import partial
from pathlib import Path

from common.data.bad import BadSample
from common.data.convert.samples import LOG_NAME, add_running_arguments
from common.data.decode import BadImage, picture_size
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import SKIPPED, WHOLE_JOB, Joined, Shard, chunks, find_shard, run_job
from common.data.words import discover
from common.files import write_text
from projects.mgpstr.box_masks import Box, check_boxes

STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PASSED = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}

MARK = object()


class Refused(ValueError):
    """A pickle that is no plain table of strings."""


PART_SIZE = 2000  # samples: the unit of resuming
BAD = (Refused, BadImage, OSError, KeyError, ValueError, RecursionError)  # what a sample may raise


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


def converted(words: WordLmdb, index: int, tolerance: float) -> tuple[bytes, str, bytes]:
    """(image, word, JSON boxes) of a sample. Raises one of `BAD` for what is no table of boxes of its picture."""
    image, label = words.image_bytes(index), words.value("label", index)
    word, boxes = boxes_of(string_table(label or b""))
    width, height = picture_size(image)
    wrong = check_boxes(boxes, width, height, tolerance)
    if wrong:
        raise Refused(wrong)
    word.encode("utf-8")
    return image, word, json.dumps([[*map(whole, box[:4]), box[4]] for box in boxes], ensure_ascii=False).encode()


def write_part(source: Path, tolerance: float, folder: Path, work: tuple[int, list[int]]) -> int:
    """Convert the samples of one part, by their indices."""
    words, bad = WordLmdb(source), 0
    with LmdbWriter(folder, map_size=16 << 20) as writer:
        for index in work[1]:
            try:
                image, word, boxes = converted(words, index, tolerance)
            except BAD as error:
                writer.note(SKIPPED, bad, json.dumps([index + 1, str(source), str(error)]).encode())
                bad += 1
            else:
                writer.add(image, word, boxes=boxes)
    words.close()
    return len(work[1])


def convert_acds(
    source: Path, target: Path, tolerance: float = 0.1, *, workers: int = 1, shard: Shard = WHOLE_JOB
) -> tuple[int, list[BadSample]] | None:
    """Convert one LMDB into a new one; returns the samples written and those skipped.

    workers, shard: see `common.data.parts`; None where other shards have work left. The skipped samples are listed in
    `error_image_log.txt`. Raises `UserError` where no sample is a table of boxes.
    """

    def finish(folder: Path, joined: Joined) -> None:
        if joined.skipped:
            write_text(folder / LOG_NAME, "".join(f"{path} {number}\t{why}\n" for number, path, why in joined.skipped))

    count = len(WordLmdb(source))
    joined = run_job(
        target,
        chunks(range(count), PART_SIZE),
        partial(write_part, source, tolerance),
        plan={"acds": str(source.absolute()), "tolerance": tolerance},
        workers=workers,
        shard=shard,
        total=count,
        finish=finish,
        extras=("boxes",),
        advice=": no ACDS box table; give the folder of such a set",
    )
    if joined is None:
        return None
    return joined.samples, [BadSample(path, number, why) for number, path, why in joined.skipped]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("acds", help="ACDS-STR's pickled box labels to JSON", description=__doc__)
    parser.add_argument("source", type=Path, help="an LMDB folder, or a folder of them")
    parser.add_argument("target", type=Path, help="new folder; sub-folders are kept")
    parser.add_argument("--tolerance", type=float, default=0.1, help="how far a box may leave the picture, as a share")
    add_running_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    shard = find_shard(args.shard)
    for source in discover(args.source):
        target = args.target / source.relative_to(args.source)
        done = convert_acds(source, target, args.tolerance, workers=args.workers, shard=shard)
        if done is not None:
            written, bad = done
            print(f"{target}: {written} samples, {len(bad)} skipped")
            for sample in bad[:5]:
                print(f"  sample {sample.number}: {sample.reason}")
    return 0
