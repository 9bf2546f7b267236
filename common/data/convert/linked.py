"""Releases that are LMDBs already: checked and linked; and TextZoom's LMDBs of pairs, which become one of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common.data.convert.records import Unusable
from common.data.convert.samples import Source
from common.data.lmdb import WordLmdb, lmdb_folders
from common.errors import UserError


def link(root: Path, out: Path) -> list[tuple[Path, int]]:
    """Check every LMDB at or below `root` and link it at the same place below `out`: (link, samples).

    Raises `UserError` where there is none, one cannot be read, or something else is in the way.
    """
    folders = lmdb_folders(root)
    if not folders:
        raise UserError(f"{root}: no LMDB (data.mdb) at or below it; give the unpacked data set's folder")
    made = []
    for folder in folders:
        place = out / folder.relative_to(root) if folder != root else out
        count = len(WordLmdb(folder))
        if place.is_symlink() and place.resolve() == folder.resolve():
            made.append((place, count))
            continue
        if place.exists() or place.is_symlink():
            raise UserError(f"{place}: it exists: give a new folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(folder.resolve(), place.parent.resolve()), target_is_directory=True)
        made.append((place, count))
    return made


def textzoom(root: Path, split: str, kind: str) -> Iterator[Source]:
    """TextZoom: LMDBs with `image_hr-%09d`, `image_lr-%09d` and labels, in folders train1, train2, test/easy, ….

    kind: hr or lr.
    """
    folders = [folder for folder in lmdb_folders(root) if split in folder.relative_to(root).as_posix().lower()]
    if not folders:
        raise UserError(f"{root}: no LMDB of {split} in it; give the unpacked data set's folder")
    for folder in folders:
        words = WordLmdb(folder)
        for number in range(int(words.stored_count() or 0)):
            label = words.value("label", number)
            where = f"{folder} {number + 1}"
            if label is None:
                yield Source.bad(where, "no label")
            else:
                yield Source(where, label.decode("utf-8", "replace"), partial(_stored, folder, f"image_{kind}", number))


def _stored(folder: Path, prefix: str, number: int) -> bytes:
    value = WordLmdb(folder).value(prefix, number)
    if value is None:
        raise Unusable(f"no {prefix}-{number + 1:09d}")
    return value
