"""Large jobs in parts: several processes and machines make them, a killed one makes its parts again, one joins them.

A job that makes the LMDB `target` is cut into parts of a fixed number of records. Each part is an LMDB of its own in
the folder `.<target>.parts` next to it and appears whole or not at all. When the last part is there, whoever made it
joins all of them in order. So the result has the same bytes whatever the number of processes, machines and
interruptions.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError
from common.files import write_text

PLAN = "plan.json"
SKIPPED = "skipped"  # prefix of the records of a part that could not be used: JSON [number, name, reason]


class Shard(NamedTuple):
    """The share of this process: the parts `index`, `index + count`, `index + 2 count`, …"""

    index: int = 0
    count: int = 1

    def has(self, part: int) -> bool:
        """Whether this shard makes the part."""
        return part % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


WHOLE_JOB = Shard()


def add_shard_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="make only the I-th of N shares (1/4, 2/4, 3/4, 4/4), each in a process or on a machine of its own; under "
        "torchrun or srun this is taken from their variables. Whoever ends last joins all",
    )


def find_shard(text: str | None, environ: Mapping[str, str] = os.environ) -> Shard:
    """The shard that `--shard` names, or else the one of torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, …).

    I counts from 1 to N; 0 to N - 1 is understood too, since it covers the same shares. Raises `UserError`.
    """
    if text is not None:
        match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
        if not match or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) < 1:
            raise UserError(f"--shard: {text!r} is not I/N with I from 1 to N: give 1/4, 2/4, 3/4 and 4/4")
        return Shard((int(match[1]) - 1) % int(match[2]), int(match[2]))
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if environ.get(rank, "").isdigit() and environ.get(world, "").isdigit() and int(environ[world]) > 1:
            return Shard(int(environ[rank]) % int(environ[world]), int(environ[world]))
    return Shard()


def parts_folder(target: Path) -> Path:
    """Where the parts of `target` are until they are joined."""
    return target.with_name(f".{target.name}.parts")


def part_path(target: Path, number: int) -> Path:
    return parts_folder(target) / f"{number:07d}"


class Made(NamedTuple):
    """What one part took: its number, records looked at, and whether another process was at it already."""

    number: int
    records: int
    elsewhere: bool = False


def make_part(target: Path, number: int, make: Callable[[Path, Any], int], work: Any) -> Made:
    """Make one part by `make(folder, work)`, which returns the number of records; runs in a worker process."""
    folder = part_path(target, number)
    with claimed(folder.with_suffix(".lock")) as mine:
        if not mine:
            return Made(number, 0, elsewhere=True)
        for unfinished in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return Made(number, 0 if folder.exists() else make(folder, work))


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process holds `file` alone for as long as the block runs; a killed process lets go of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    except OSError:  # a file system without locks: the parts are made twice at worst
        pass
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def check_plan(target: Path, plan: Mapping[str, Any]) -> None:
    """Note what the parts are of. Raises `UserError` where parts of another job are there."""
    file = parts_folder(target) / PLAN
    wanted = json.loads(json.dumps(plan))
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(file.read_text("utf-8"))
        if found != wanted:
            found = found if isinstance(found, dict) else {}
            names = [name for name in wanted if found.get(name) != wanted[name]]
            differ = [f"{name} {found.get(name)!r}, now {wanted[name]!r}" for name in names]
            raise UserError(
                f"{file.parent}: begun by another command ({'; '.join(differ) or 'other fields'}): "
                "repeat that command, or remove the folder"
            )
        return
    write_text(file, json.dumps(wanted, indent=1))


def already_made(target: Path, plan: Mapping[str, Any], shard: Shard) -> bool:
    """Whether other shards of this very job have joined `target`, so that this one has nothing to do.

    Also False where a process was killed after joining: its parts are still there, and `join_parts` ends its work.
    Raises `UserError` where `target` is anything else.
    """
    if not target.exists():
        return False
    with contextlib.suppress(OSError, ValueError):
        same = json.loads((target / PLAN).read_text("utf-8")) == json.loads(json.dumps(plan))
        if same and parts_folder(target).is_dir():
            return False
        if same and shard.count > 1:
            return True
    raise UserError(f"{target}: it exists: give a new folder")


def chunks(items: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """(number of the first, counted from 1, items) of every part; one empty part where there are no items."""
    iterator, first = iter(items), 1
    while chunk := list(islice(iterator, size)):
        yield first, chunk
        first += len(chunk)
    if first == 1:
        yield 1, []


def run_job(
    target: Path,
    works: Iterable[tuple[int, Sequence[Any]]],
    make: Callable[[Path, Any], int],
    *,
    plan: Mapping[str, Any],
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
    total: int | None = None,
    progress: Callable[[int], None] | None = None,
    finish: Callable[[Path, Joined], None] | None = None,
    extras: Sequence[str] | None = None,
    advice: str = "",
    say: Callable[[str], None] = print,
) -> Joined | None:
    """Make the LMDB `target` from parts: this shard's parts with a progress bar, and the whole if they are all there.

    works: as `chunks` gives them. total: records of the job, for the bar. progress(records): called after each part.
    The others: see `make_parts` and `join_parts`. None, and `say` told why, where other shards have work left.
    """
    if already_made(target, plan, shard):
        say(f"{target}: another process has joined the parts")
        return None
    share = None if total is None else -(-total // shard.count)
    with tqdm(total=share, desc=target.name, unit="img", disable=None, leave=False) as bar:

        def counted() -> Iterator[tuple[int, Sequence[Any]]]:
            for number, work in enumerate(works):
                if shard.has(number) and part_path(target, number).exists():
                    bar.update(len(work[1]))  # made before this process was started
                yield work

        def step(records: int) -> None:
            bar.update(records)
            if progress is not None:
                progress(records)

        parts, missing = make_parts(target, counted(), make, plan=plan, workers=workers, shard=shard, progress=step)
    if missing:
        say(f"{target}: shard {shard} is done; {len(missing)} of {parts} parts are not made yet")
        return None
    joined = join_parts(target, parts, finish, extras, advice, keep_plan=True)
    if joined is None:
        say(f"{target}: shard {shard} is done; another process joins the parts")
    return joined


def make_parts(
    target: Path,
    works: Iterable[Any],
    make: Callable[[Path, Any], int],
    *,
    plan: Mapping[str, Any],
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, list[int]]:
    """Make the parts of this shard that are not there yet: (parts of the job, parts that are still missing).

    works: one picklable piece of work for each part, in order; it is drawn lazily. make: picklable, see `make_part`.
    progress: called with the number of records after each part, also of those made earlier (0 then).
    """
    check_plan(target, plan)
    total = 0

    def todo() -> Iterator[tuple[int, Any]]:
        nonlocal total
        for number, work in enumerate(works):
            total = number + 1
            if shard.has(number) and not part_path(target, number).exists() and not target.exists():
                yield number, work

    for made in _run(target, todo(), make, workers):
        if progress is not None:
            progress(made.records)
    if target.exists():  # joined by another process, which removes the parts
        return total, []
    return total, [number for number in range(total) if not part_path(target, number).exists()]


def _run(target: Path, todo: Iterator[tuple[int, Any]], make: Callable, workers: int) -> Iterator[Made]:
    first = list(islice(todo, 2))
    if workers < 2 or len(first) < 2:  # starting processes takes longer than one part
        for number, work in first:
            yield make_part(target, number, make, work)
        for number, work in todo:
            yield make_part(target, number, make, work)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: set[Future] = {pool.submit(make_part, target, number, make, work) for number, work in first}
        while waiting:
            for number, work in islice(todo, max(0, 2 * workers - len(waiting))):
                waiting.add(pool.submit(make_part, target, number, make, work))
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{target}: a worker process was killed (out of memory?); finished parts are kept: repeat the command "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class Joined(NamedTuple):
    """Samples of the joined LMDB, the skipped records as (number, name, reason)."""

    samples: int
    skipped: list[tuple[int, str, str]]


def join_parts(
    target: Path,
    parts: int,
    finish: Callable[[Path, Joined], None] | None = None,
    extras: Sequence[str] | None = None,
    advice: str = "",
    keep_plan: bool = False,
) -> Joined | None:
    """Join the parts into `target` and remove them; None where another process does so or has done so.

    All values under a sample's number are taken along, in the order of `extras` where it is given. `finish(folder,
    joined)` runs before the parts are removed. keep_plan: `target` gets a copy of the plan. Raises `UserError`, which
    ends in `advice`, where no part has a sample.
    """
    with claimed(parts_folder(target) / "join.lock") as mine:
        if not mine:
            return None
        if target.exists() and not all(part_path(target, number).exists() for number in range(parts)):
            shutil.rmtree(parts_folder(target), ignore_errors=True)
            return None  # another process has joined them and removes them
        skipped: list[tuple[int, str, str]] = []
        if not target.exists():
            with LmdbWriter(target) as writer:
                if keep_plan:
                    writer.put_file(PLAN, (parts_folder(target) / PLAN).read_text("utf-8"))
                for number in range(parts):
                    skipped += copy_part(part_path(target, number), writer, extras)
                samples = writer.count
                if not samples:
                    shutil.rmtree(parts_folder(target), ignore_errors=True)  # the next try may have better data
                    first = f"; the first: {skipped[0][1]}: {skipped[0][2]}" if skipped else ""
                    raise UserError(f"{target}: none of {len(skipped)} samples can be used{first}{advice}")
        else:  # a process that was killed between joining and removing
            for number in range(parts):
                skipped += skipped_of(WordLmdb(part_path(target, number)))
            samples = len(WordLmdb(target))
        joined = Joined(samples, sorted(skipped))
        if finish is not None:
            finish(target, joined)
        shutil.rmtree(parts_folder(target), ignore_errors=True)
    return joined


def copy_part(folder: Path, writer: LmdbWriter, extras: Sequence[str] | None = None) -> list[tuple[int, str, str]]:
    """Append the samples of a part with all their values; its skipped records."""
    words = WordLmdb(folder)
    skipped = skipped_of(words)
    if extras is None:
        extras = [prefix for prefix in words.prefixes() if prefix not in ("image", "label", SKIPPED)]
    for index in range(len(words)):
        values = {prefix: value for prefix in extras if (value := words.value(prefix, index)) is not None}
        label = words.value("label", index)
        writer.add(words.value("image", index), None if label is None else label.decode("utf-8"), **values)
    words.close()
    return skipped


def skipped_of(words: WordLmdb) -> list[tuple[int, str, str]]:
    """The skipped records of a part."""
    return [tuple(json.loads(value)) for _, value in words.items(SKIPPED)]
