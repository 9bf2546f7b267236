"""Look over the word LMDBs below a folder and say what is wrong with each: an incomplete copy, a wrong or missing
num-samples, missing keys, pictures that do not decode, labels that are no UTF-8, empty, too long or outside a
charset, and (--duplicates) pictures stored twice. With --repair, write what is sound, renumbered, into a new folder;
nothing is changed in place.

An LMDB without a single label (for pre-training, or of scenes) is sound without labels. One of masks alone may lack
numbers and keeps them.

Exit status: 0 when all is well, 1 when something was found that a repair would mend, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

from common.data.examine import MASKS, REMARKS, UNUSABLE, WORDS, Examination, Wishes, examine, printable
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.sources import open_words
from common.data.words import discover
from common.errors import UserError
from common.files import write_text
from common.text.charset import named_charset


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab doctor`."""
    parser = subparsers.add_parser("doctor", help="check word LMDBs, repair into a new folder", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="every LMDB at or below it is examined")
    parser.add_argument(
        "--charset", metavar="NAME", help="36, 62, 94, siga36, LOWERCASE, … or the characters themselves"
    )
    parser.add_argument("--max-length", type=int, metavar="N", help="tell labels longer than this")
    parser.add_argument("--no-decode", action="store_true", help="do not decode the pictures (much faster)")
    parser.add_argument("--repair", type=Path, metavar="OUT", help="write the sound samples into this new folder")
    parser.add_argument("--duplicates", action="store_true", help="also look for pictures that are stored twice")
    parser.add_argument("--drop-duplicates", action="store_true", help="with --repair: leave repeated pictures out too")
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="samples to name for each finding (5)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything found, all samples named")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    charset = None if args.charset is None else named_charset(args.charset)
    wishes = Wishes(charset, args.max_length, not args.no_decode, args.duplicates or args.drop_duplicates)
    folders = discover(args.folder)
    if args.repair is not None:
        _refuse_place(args.repair, args.folder)
    found = []
    for folder in folders:
        examination = examine(folder, wishes, args.workers, _progress(folder))
        found.append(examination)
        print("\n".join(describe(examination, args.examples)), flush=True)
    faults = sum(examination.faults for examination in found)
    print(f"{len(found)} LMDB folders, {sum(e.highest for e in found):,} samples, {faults:,} faults")
    if args.json is not None:
        write_text(args.json, json.dumps([as_dict(examination) for examination in found], indent=1, ensure_ascii=True))
    if args.repair is not None:
        return repair(found, args.folder, args.repair, args.drop_duplicates)
    return int(faults > 0)


def describe(examination: Examination, examples: int = 5) -> list[str]:
    """The lines about one LMDB; at most `examples` samples are named for each finding."""
    lines = [str(examination.path)]
    if examination.fatal:
        return [*lines, f"  UNREADABLE  {examination.fatal}"]
    counts = ", ".join(f"{count:,} {prefix}" for prefix, count in examination.counts.items()) or "no numbered keys"
    lines.append(f"  {examination.kind}; keys: {counts}; num-samples: {examination.stored}")
    if not examination.numbering.is_published:
        lost = f"{examination.lost_elsewhere:,} samples would be lost by programs that expect image-000000001"
        lines.append(f"  WRONG KEYS  numbered {examination.numbering.describe()}: {lost}")
    if not examination.count_is_right:
        lines.append(f"  WRONG COUNT  num-samples is {examination.stored}, the highest number is {examination.highest}")
    for kind in (*UNUSABLE, *REMARKS):
        rows = examination.findings.get(kind)
        if rows:
            shown = "; ".join(f"{number}{': ' + detail if detail else ''}" for number, detail in rows[:examples])
            more = "; …" if len(rows) > examples else ""
            lines.append(f"  {kind.upper() if kind in UNUSABLE else kind}  {len(rows):,}: {shown}{more}")
    if examination.foreign:
        shown = ", ".join(f"{character!r} x {count}" for character, count in examination.foreign.most_common(20))
        lines.append(f"  characters outside the charset: {shown}")
    if examination.lengths:
        lines.append(_labels_line(examination))
    if examination.sizes:
        small, middle, large = (f"{width}x{height}" for width, height in examination.sizes)
        lines.append(f"  pictures: smallest {small}, median {middle}, largest {large}")
    return lines


def _labels_line(examination: Examination) -> str:
    words = ", ".join(printable(label)[1:-1] for label in examination.examples[:6])
    lengths = examination.lengths
    return (
        f"  labels: {min(lengths)} to {max(lengths)} characters, {len(examination.characters)} different ones; "
        f"such as {words}"
    )


def as_dict(examination: Examination) -> dict:
    """Everything found, as plain data."""
    return {
        "path": str(examination.path),
        "fatal": examination.fatal,
        "kind": examination.kind,
        "num_samples": examination.stored,
        "numbering": examination.numbering.describe(),
        "highest": examination.highest,
        "keys": examination.counts,
        "findings": {kind: [list(row) for row in rows] for kind, rows in examination.findings.items()},
        "outside_charset": dict(examination.foreign),
        "characters": dict(examination.characters),
        "label_lengths": {str(length): count for length, count in sorted(examination.lengths.items())},
        "sizes": [list(size) for size in examination.sizes],
        "faults": examination.faults,
    }


def repair(found: list[Examination], root: Path, out: Path, drop_duplicates: bool = False) -> int:
    """Write the sound samples of every readable LMDB to `out` at the same relative place, renumbered from 1.

    All values under a sample's number (masks, boxes, …) go with it; masks alone keep their numbers. `removed.csv`
    beside the LMDBs lists what was left out and why. Returns 1 when an LMDB could not be repaired at all. Raises
    `UserError` when `out` exists or lies below `root`.
    """
    _refuse_place(out, root)
    removed, lost = [], 0
    try:
        for examination in found:
            place = out / examination.path.relative_to(root)
            if examination.fatal:
                lost += 1
                print(f"{examination.path}: not repaired: {examination.fatal}")
                continue
            dropped = dict(examination.unusable)
            if drop_duplicates:
                dropped |= {number: "duplicate image" for number, _ in examination.findings.get("duplicate image", ())}
            if len(dropped) >= examination.highest:
                lost += 1
                print(f"{examination.path}: not repaired: none of its {examination.highest:,} samples is sound")
                continue
            kept = copy_samples(examination, place, dropped)
            removed += [(str(examination.path), number, why) for number, why in sorted(dropped.items())]
            print(f"{place}: {kept:,} samples written, {len(dropped):,} left out")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "number", "reason"), *removed])
    write_text(out / "removed.csv", text.getvalue())
    reasons = ", ".join(f"{count:,} {why}" for why, count in Counter(why for _, _, why in removed).most_common())
    print(f"{out}: {len(removed):,} samples left out ({reasons or 'none'}), listed in {out / 'removed.csv'}")
    return int(lost > 0)


def copy_samples(examination: Examination, place: Path, dropped: dict[int, str]) -> int:
    """Copy all samples but the dropped ones, with every value under their numbers; returns how many were written."""
    words = open_words(examination.path)
    if examination.kind == MASKS:
        return _copy_masks(words, examination, place)
    labelled = examination.kind == WORDS
    extras = [prefix for prefix in examination.counts if prefix not in ("image", "label")]
    with LmdbWriter(place) as writer:
        for index in range(examination.highest):
            if index + 1 in dropped:
                continue
            values = {prefix: words.value(prefix, index) for prefix in extras}
            present = {prefix: value for prefix, value in values.items() if value is not None}
            writer.add(words.image_bytes(index), words.label(index) if labelled else None, **present)
        return writer.count


def _copy_masks(words: WordLmdb, examination: Examination, place: Path) -> int:
    """Copy masks under their own numbers, for these are the numbers of the pictures; returns how many there are."""
    with LmdbWriter(place) as writer:
        for prefix in examination.counts:
            for index, value in words.items(prefix):
                writer.add_value(prefix, index, value)
        writer.count = max(examination.highest, examination.number or 0)
    return examination.counts["mask"]


def _refuse_place(out: Path, root: Path) -> None:
    if out.exists():
        raise UserError(f"--repair: {out} exists: give a new folder")
    if out.absolute().is_relative_to(root.absolute()):
        raise UserError(f"--repair: {out} lies inside {root}: give a folder outside it")


def _progress(folder: Path):
    """A tqdm-like counter on terminals, silence elsewhere."""
    from tqdm import tqdm

    bar = tqdm(desc=folder.name, unit="img", disable=None, leave=False)

    def step(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return step
