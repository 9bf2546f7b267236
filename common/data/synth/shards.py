"""A corpus rendered by several processes or machines: each makes its parts, the last one joins and finishes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from common.data.lmdb import LmdbWriter
from common.data.parts import Shard, join_parts, make_parts

JOBS = 20  # jobs of 100 crops that make a part
EXTRAS = ("mask", "boxes", "meta")  # in the order in which one process writes them


def render_parts(
    root: Path,
    folders: dict[str, Iterator[tuple]],
    draw: Callable[[tuple], list[tuple]],
    plan: dict,
    workers: int,
    shard: Shard,
    progress: Callable[[int], None],
) -> int:
    """Render this shard's parts of the LMDBs `folders` (path below `root` -> jobs); parts that are still missing.

    draw: a job -> (image, label, mask, boxes, metadata) of its crops. An LMDB whose parts are all there is joined.
    """
    missing = 0
    for folder, jobs in folders.items():
        target = root / folder
        if (target / "data.mdb").is_file():
            continue
        parts, absent = make_parts(
            target, _works(jobs, draw), write_part, plan=plan, workers=workers, shard=shard, progress=progress
        )
        missing += len(absent)
        if not absent and join_parts(target, parts, extras=EXTRAS) is None:
            missing += 1  # another process joins them
    return missing


def _works(jobs: Iterator[tuple], draw: Callable[[tuple], list[tuple]]) -> Iterator[tuple[Callable, list[tuple]]]:
    jobs = iter(jobs)
    while chunk := list(islice(jobs, JOBS)):
        yield draw, chunk


def write_part(folder: Path, work: tuple[Callable, list[tuple]]) -> int:
    """Render some jobs into the LMDB of a part; how many crops there are."""
    draw, jobs = work
    with LmdbWriter(folder, map_size=32 << 20) as writer:
        for job in jobs:
            for image, label, mask, boxes, meta in draw(job):
                writer.add(image, label, mask=mask, boxes=boxes, meta=meta)
        return writer.count
