"""A mask LMDB made in parts: each part is a small LMDB that appears whole, so a stopped run resumes where it was.

A data set of n pictures is cut into ranges; the parts lie next to the final folder and are joined into it at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from common.data.bad import BadSample
from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import WHOLE_JOB, Shard, claimed, parts_folder
from common.data.sources import open_words
from common.errors import UserError
from projects.siga.model.kmeans_mask import text_mask

SMALLEST_SIDE = 2  # both sides below it: nothing to cluster, skipped as published


class Part(NamedTuple):
    """Pictures `start` (0-based) up to `stop` of the LMDB `source`; the part's masks go to the folder `target`."""

    source: Path
    target: Path
    start: int
    stop: int


class PartDone(NamedTuple):
    """How a part ended: number of pictures looked at, and those without a mask."""

    part: Part
    pictures: int
    bad: list[BadSample]


def finished(target: Path) -> list[Path]:
    """The folders of the parts that are done, in order."""
    return sorted(parts_folder(target).glob("[0-9]*-[0-9]*"))


def plan(source: Path, target: Path, part_size: int, shard: Shard = WHOLE_JOB) -> list[Part]:
    """The parts of this shard that are still to be made; those whose folder exists are done.

    What stopped workers have left half written is removed. Raises UserError when parts of a run with another part size
    or another source are there.
    """
    if target.exists():
        return []
    count, folder = len(open_words(source)), parts_folder(target)
    wanted = {part_name(start, min(start + part_size, count)): start for start in range(0, count, part_size)}
    strange = [path.name for path in finished(target) if path.name not in wanted]
    if strange:
        raise UserError(
            f"{folder}: parts of another run ({strange[0]}): remove the folder, or use that run's --part_size"
        )
    own = [name for number, name in enumerate(wanted) if shard.has(number)]
    for name in own:  # not of other shards, which may be at work
        for unfinished in folder.glob(f".{name}.*.tmp"):
            shutil.rmtree(unfinished)
    own = [name for name in own if not (folder / name).exists()]
    return [Part(source, folder / name, wanted[name], min(wanted[name] + part_size, count)) for name in own]


def missing(source: Path, target: Path, part_size: int) -> int:
    """How many parts of `target` no shard has made yet."""
    if target.exists():  # joined by another process, which removes the parts
        return 0
    count = len(open_words(source))
    made = {path.name for path in finished(target)}
    return sum(part_name(start, min(start + part_size, count)) not in made for start in range(0, count, part_size))


def part_name(start: int, stop: int) -> str:
    """The folder name of a part; sorts by position."""
    return f"{start:09d}-{stop:09d}"


def encode_mask(mask: np.ndarray) -> bytes:
    """A 0/1 mask as PNG with these very values."""
    done, data = cv2.imencode(".png", mask)
    if not done:
        raise BadImage("the mask could not be written as PNG")
    return data.tobytes()


def make_part(part: Part) -> PartDone:
    """Masks of one part at the pictures' own sizes, under the pictures' own numbers. Runs in a worker process."""
    cv2.setNumThreads(0)
    words, bad = open_words(part.source), []
    with LmdbWriter(part.target, map_size=8 << 20) as writer:
        for index in range(part.start, part.stop):
            try:
                image = decode_rgb(words.image_bytes(index))
                if max(image.shape[:2]) < SMALLEST_SIDE:
                    raise BadImage(f"{image.shape[1]}x{image.shape[0]} pixels: too small")
                writer.add_value("mask", index, encode_mask(text_mask(image)))
            except (BadImage, KeyError) as error:
                bad.append(BadSample(str(part.source), index + 1, str(error.args[0])))
                writer.add_value("bad", index, bad[-1].reason.encode())  # for a run that is resumed
        writer.count = part.stop - part.start - len(bad)
    words.close()
    return PartDone(part, part.stop - part.start, bad)


def without_mask(source: Path, target: Path) -> list[BadSample]:
    """The pictures of the finished parts that have no mask."""
    found = []
    for folder in finished(target):
        words = WordLmdb(folder)
        found += [BadSample(str(source), index + 1, why.decode()) for index, why in words.items("bad")]
        words.close()
    return found


def join(parts: Iterable[Path], target: Path, count: int | None = None, overwrite: bool = False) -> int:
    """Copy the masks of the LMDB folders `parts` into one LMDB at `target`; the number of masks.

    `num-samples` becomes `count`, the number of pictures that the masks mirror, or the highest mask number without it.
    The result appears whole or not at all.
    """
    masks = 0
    with LmdbWriter(target, overwrite=overwrite) as writer:
        for folder in parts:
            words = WordLmdb(folder)
            for index, value in words.items("mask"):
                writer.add_value("mask", index, value)
                masks += 1
            words.close()
        if count is not None:
            writer.count = count
    return masks


def finish(source: Path, target: Path) -> int | None:
    """Join the parts of `target` and remove them; the number of masks, None where another process joins them."""
    folder = parts_folder(target)
    with claimed(folder / "join.lock") as mine:
        if not mine:
            return None
        masks = None
        if not target.exists():
            masks = join(finished(target), target, count=len(open_words(source)))
        shutil.rmtree(folder, ignore_errors=True)
    return masks
