"""What `strlab doctor` says about a word set, and the repaired copy that it writes; see `common.report.doctor`."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from common.data.examine import MASKS, REMARKS, UNUSABLE, WORDS, Examination, printable
from common.data.lmdb import LmdbWriter
from common.data.sources import WordSource, open_words
from common.errors import UserError
from common.files import write_text


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
    """Everything that was found in a set, as plain data for JSON."""
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


def repair(
    found: list[Examination],
    root: Path,
    out: Path,
    drop_duplicates: bool = False,
    exclude: Mapping[Path, Mapping[int, str]] | None = None,
    labels: Mapping[Path, Mapping[int, str]] | None = None,
) -> int:
    """Write the sound samples of every readable LMDB to `out` at the same relative place, renumbered from 1.

    All values under a sample's number (masks, boxes, …) go with it; masks alone keep their numbers. `removed.csv`
    next to the LMDBs lists what was excluded and why. exclude: real path of a set -> number -> why it is excluded;
    labels: real path -> number -> corrected label. Returns 1 when an LMDB could not be repaired at all. Raises
    `UserError` when `out` exists or lies below `root`.
    """
    refuse_place(out, root)
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
            dropped |= (exclude or {}).get(examination.path.resolve(), {})
            if len(dropped) >= examination.highest:
                lost += 1
                print(f"{examination.path}: not repaired: none of its {examination.highest:,} samples is sound")
                continue
            corrected = (labels or {}).get(examination.path.resolve(), {})
            kept = copy_samples(examination, place, dropped, corrected)
            removed += [(str(examination.path), number, why) for number, why in sorted(dropped.items())]
            print(f"{place}: {kept:,} samples written, {len(dropped):,} not copied")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "number", "reason"), *removed])
    write_text(out / "removed.csv", text.getvalue())
    reasons = ", ".join(f"{count:,} {why}" for why, count in Counter(why for _, _, why in removed).most_common())
    print(f"{out}: {len(removed):,} samples not copied ({reasons or 'none'}), listed in {out / 'removed.csv'}")
    return int(lost > 0)


def copy_samples(
    examination: Examination, place: Path, dropped: Mapping[int, str], corrected: Mapping[int, str] | None = None
) -> int:
    """Copy all samples but the dropped ones, with every value under their numbers; returns how many were written.

    corrected: number -> the label to write instead.
    """
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
            label = (corrected or {}).get(index + 1) or (words.label(index) if labelled else None)
            writer.add(words.image_bytes(index), label, **present)
        return writer.count


def _copy_masks(words: WordSource, examination: Examination, place: Path) -> int:
    """Copy masks under their own numbers, for these are the numbers of the pictures; returns how many there are."""
    with LmdbWriter(place) as writer:
        for prefix in examination.counts:
            for index, value in words.items(prefix):
                writer.add_value(prefix, index, value)
        writer.count = max(examination.highest, examination.number or 0)
    return examination.counts["mask"]


def refuse_place(out: Path, root: Path) -> None:
    if out.exists():
        raise UserError(f"--repair: {out} exists: give a new folder")
    if out.absolute().is_relative_to(root.absolute()):
        raise UserError(f"--repair: {out} lies inside {root}: give a folder outside it")
