"""Any source of (picture, label) pairs -> a word LMDB: what the converters of single data sets share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.data.convert.records import Unusable, picture_below
from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import LmdbWriter
from common.data.parts import SKIPPED, WHOLE_JOB, Joined, Shard, add_shard_argument, chunks, run_job
from common.files import write_text

PART_SIZE = 2000  # samples: the unit of resuming
LOG_NAME = "error_image_log.txt"


@dataclass
class Converted:
    """How many samples were written, and (number, file and line, reason) of every record that was skipped."""

    written: int = 0
    skipped: list[tuple[int, str, str]] = field(default_factory=list)


class Source(NamedTuple):
    """One pair to convert: a name for messages (file and line), the label, and a picklable function that gives the
    picture's file bytes.

    extras: what else to store with it (see `LmdbWriter.add`). wrong: why the record cannot be used, "" if it can.
    picture: the file name of the picture, where it is one. check: decode it before it is stored. place: (root, picture
    below it, polygon [[x, y], …]) of a word that is cut out of a whole picture.
    """

    name: str
    label: str
    read: Callable[[], bytes]
    extras: Mapping[str, bytes] | None = None
    wrong: str = ""
    picture: str = ""
    check: bool = True
    place: tuple[Path, str, list[list[float]]] | None = None

    @classmethod
    def file(
        cls,
        root: Path,
        picture: str,
        label: str,
        where: str = "",
        extras: Mapping[str, bytes] | None = None,
        check: bool = True,
    ) -> Source:
        """A picture that is the file `picture` below `root`; `where`: the file and line that names it."""
        read = partial(picture_below, root, str(picture), False)
        return cls(f"{where} {picture}".strip(), label, read, extras, picture=Path(str(picture)).name, check=check)

    @classmethod
    def bad(cls, where: str, reason: str) -> Source:
        """A record that cannot be used."""
        return cls(where, "", bytes, wrong=reason)


def write_samples(
    out: str | Path,
    sources: Iterable[Source],
    say: Callable[[str], None] = print,
    *,
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
    plan: Mapping[str, object] | None = None,
    total: int | None = None,
    note: Callable[[Path, Joined], None] | None = None,
    part_size: int = PART_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Converted:
    """Write the LMDB folder `out`, which must not exist.

    Pairs with an empty label, a missing picture or one that cannot be decoded are skipped and listed in
    `error_image_log.txt`. The pairs are converted in parts (see `common.data.parts`): a killed conversion resumes when
    it is called again with the same `plan`, by several processes and shards. `sources` must give the same pairs in the
    same order each time. total: how many pairs are expected, for the progress bar. note(folder, joined) may add files.
    progress(records) is called after each part. `say` gets the summary. Raises `UserError` for an unwritable place, or
    where nothing could be used.
    """
    joined = run_job(
        Path(out),
        chunks(sources, part_size),
        write_part,
        plan={**(plan or {}), "part_size": part_size},
        workers=workers,
        shard=shard,
        total=total,
        progress=progress,
        finish=partial(_finish, note),
        say=say,
    )
    if joined is None:
        return Converted()
    if joined.skipped:
        known, first = f"{joined.samples + len(joined.skipped)} samples", joined.skipped[0][2]
        say(f"{len(joined.skipped)} of {known} skipped, listed in {Path(out) / LOG_NAME}; the first: {first}")
    say(f"Created dataset with {joined.samples} samples")
    return Converted(joined.samples, joined.skipped)


def default_workers() -> int:
    """Processes that convert: one for each core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--workers` and `--shard`."""
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes (%(default)s)")
    add_shard_argument(parser)


def write_part(folder: Path, work: tuple[int, list[Source]]) -> int:
    """Convert some pairs into the LMDB of a part; how many there were."""
    first, sources = work
    with LmdbWriter(folder, map_size=16 << 20) as writer:
        skipped = 0
        for number, source in enumerate(sources, first):
            data, reason = _usable(source)
            if data is None:
                row = json.dumps([number, source.name, reason], ensure_ascii=False)
                writer.note(SKIPPED, skipped, row.encode("utf-8", "replace"))
                skipped += 1
            else:
                writer.add(data, source.label, **(source.extras or {}))
    return len(sources)


def _usable(source: Source) -> tuple[bytes | None, str]:
    """The picture's bytes, or None and why not."""
    if source.wrong or not source.label:
        return None, source.wrong or "no label"
    try:
        source.label.encode("utf-8")
        data = source.read()
        if source.check:
            decode_rgb(data)
    except UnicodeEncodeError:
        return None, "the label is no Unicode text"
    except Unusable as error:
        return None, str(error)
    except BadImage as error:
        return None, f"not a readable picture: {error}"
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        return None, f"no picture ({getattr(error, 'strerror', None) or error})"
    return data, ""


def _finish(note: Callable[[Path, Joined], None] | None, folder: Path, joined: Joined) -> None:
    if joined.skipped:
        rows = "".join(f"{number}\t{name}\t{reason}\n" for number, name, reason in joined.skipped)
        write_text(folder / LOG_NAME, rows)
    if note is not None:
        note(folder, joined)
