"""Any source of (picture, label) pairs -> a word LMDB: what the converters of single data sets share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.data.convert.gt import LOG_NAME, Converted
from common.data.convert.records import Unusable, picture_below
from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import LmdbWriter
from common.data.parts import SKIPPED, WHOLE_JOB, Joined, Shard, join_parts, make_parts
from common.errors import UserError
from common.files import write_text

PART_SIZE = 2000  # samples: the unit of resuming


class Source(NamedTuple):
    """One pair to convert: a name for messages (file and line), the label, and a picklable function that gives the
    picture's file bytes.

    extras: what else to store with it (see `LmdbWriter.add`). wrong: why the record cannot be used, "" if it can.
    picture: the file name of the picture, where it is one.
    """

    name: str
    label: str
    read: Callable[[], bytes]
    extras: Mapping[str, bytes] | None = None
    wrong: str = ""
    picture: str = ""

    @classmethod
    def file(
        cls, root: Path, picture: str, label: str, where: str = "", extras: Mapping[str, bytes] | None = None
    ) -> Source:
        """A picture that is the file `picture` below `root`; `where`: the file and line that names it."""
        read = partial(picture_below, root, str(picture), False)
        return cls(f"{where} {picture}".strip(), label, read, extras, picture=Path(str(picture)).name)

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
) -> Converted:
    """Write the LMDB folder `out`, which must not exist.

    Pairs with an empty label, a missing picture or one that cannot be decoded are skipped and listed in
    `error_image_log.txt`. The pairs are converted in parts (see `common.data.parts`): a killed conversion resumes when
    it is called again with the same `plan`, by several processes and shards. `sources` must give the same pairs in the
    same order each time. total: how many pairs are expected, for the progress bar. note(folder, joined) may add files.
    `say` gets the summary. Raises `UserError` for an unwritable place, or where nothing could be used.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: it exists: give a new folder")
    with tqdm(total=total, desc=out.name, unit="img", disable=None, leave=False) as bar:
        works = _numbered(sources, part_size)
        about = {**(plan or {}), "part_size": part_size}
        parts, missing = make_parts(
            out, works, write_part, plan=about, workers=workers, shard=shard, progress=bar.update
        )
    if missing:
        say(f"{out}: shard {shard} is done; {len(missing)} of {parts} parts are not made yet")
        return Converted()
    joined = join_parts(out, parts, partial(_finish, note))
    if joined is None:
        say(f"{out}: shard {shard} is done; another process joins the parts")
        return Converted()
    if joined.skipped:
        known = f"{joined.samples + len(joined.skipped)} samples"
        say(f"{len(joined.skipped)} of {known} skipped, listed in {out / LOG_NAME}; the first: {joined.skipped[0][2]}")
    say(f"Created dataset with {joined.samples} samples")
    return Converted(joined.samples, joined.skipped)


def default_workers() -> int:
    """Processes that convert: one for each core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def _numbered(sources: Iterable[Source], size: int) -> Iterator[tuple[int, list[Source]]]:
    """(number of the first, sources) of every part; numbers count from 1."""
    iterator, first = iter(sources), 1
    while chunk := list(islice(iterator, size)):
        yield first, chunk
        first += len(chunk)
    if first == 1:
        yield 1, []


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
