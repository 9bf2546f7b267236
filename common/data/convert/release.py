"""Finding files in an unpacked release, whatever the archive's top folders and the case of its names."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from common.data.lists import read_text as read_encoded
from common.errors import UserError

# A word of its own, or the capitalised end of one; not the end of "latest".
_SPLIT = re.compile(r"(?<![A-Za-z])(?:[Tt]rain|TRAIN|[Tt]est|TEST)|(?<=[a-z])(?:Train|Test)")
JUNK = ("__macosx", ".ds_store", "thumbs.db")


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar")


def packed(root: Path) -> str:
    """A hint where archives below `root` were not unpacked, "" where there are none."""
    names = [path.name for path in find(root, *(f"*{suffix}" for suffix in ARCHIVES), shallowest=True)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; unpack {', '.join(names[:3])}{more} first" if names else ""


def find(root: Path, *patterns: str, shallowest: bool = False) -> list[Path]:
    """Files at or below `root` whose lower-case name fits one of the patterns (`gt*.txt`), sorted by path.

    shallowest: stop at the first depth that has one, for releases of millions of files below their lists. A pattern
    with slashes is compared with the end of the path. macOS's companions of files are no files of the release.
    """
    found: list[Path] = []
    level = [root]
    while level and not (found and shallowest):
        deeper: list[Path] = []
        for folder in level:
            for entry in _entries(folder):
                if entry.is_dir():
                    deeper.append(Path(entry.path))
                elif any(_fits(Path(entry.path), pattern) for pattern in patterns):
                    found.append(Path(entry.path))
        level = deeper
    return sorted(found)


def need(root: Path, *patterns: str, shallowest: bool = False) -> list[Path]:
    """`find`, which must find something. Raises `UserError` that names what is missing."""
    found = find(root, *patterns, shallowest=shallowest)
    if not found:
        raise UserError(f"{root}: no {' or '.join(patterns)} in it; give the unpacked data set's folder")
    return found


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [entry for entry in entries if not entry.name.startswith("._") and entry.name.lower() not in JUNK]


def _fits(path: Path, pattern: str) -> bool:
    parts = pattern.count("/") + 1
    return fnmatch.fnmatchcase("/".join(path.parts[-parts:]).lower(), pattern.lower())


def same_name(root: Path, name: str) -> str:
    """`name` as it is written on the disk below `root`: exact where it exists, else by folding case; else unchanged."""
    name = name.strip().replace("\\", "/").removeprefix("./")
    if (root / name).exists():
        return name
    here, parts = root, []
    for part in Path(name).parts:
        actual = _listing(here).get(part.lower())
        if actual is None:
            return name
        parts.append(actual)
        here = here / actual
    return "/".join(parts)


@lru_cache(maxsize=256)
def _listing(folder: Path) -> dict[str, str]:
    return {entry.name.lower(): entry.name for entry in _entries(folder)}


def picture_root(root: Path, listed_in: Path, names: list[str], suits: Callable[[Path], int]) -> Path:
    """The folder at or below `root` that the pictures `names` of the list `listed_in` start from.

    It is the one that has most of the first names; of several (both splits of a release have a `word_1.png`) the one
    that suits best, and then the list's own. suits: path below `root` -> how well, below 0 for not at all.
    """
    sample = names[:50]

    def rank(folder: Path) -> tuple[int, int, bool]:
        hits = sum((folder / same_name(folder, name)).is_file() for name in sample)
        return hits, suits(folder.relative_to(root)), folder == listed_in.parent

    folders = [folder for folder in _folders(root) if suits(folder.relative_to(root)) >= 0]
    best = max(folders, key=rank, default=listed_in.parent)
    return best if rank(best)[0] else listed_in.parent


def split_of(path: Path) -> str | None:
    """train or test, as the last such word of the path says: `ch4_test_word_images_gt`, `SceneTrialTrain/words.xml`."""
    found = _SPLIT.findall(path.as_posix())
    return found[-1].lower() if found else None


def _folders(root: Path) -> Iterator[Path]:
    level = [root]
    while level:
        yield from level
        level = [Path(entry.path) for folder in level for entry in _entries(folder) if entry.is_dir()]


def read_text(path: Path, fallback: str | None = None) -> str:
    """A text file, without its byte-order mark. Raises `UserError` naming a file that is missing or not UTF-8."""
    return read_encoded(path, fallback=fallback)[0]


def read_json(path: Path) -> dict | list:
    """A JSON file. Raises `UserError` naming a file that is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from None


def numbered_lines(path: Path, fallback: str | None = None) -> Iterator[tuple[str, str]]:
    """(file:line, text) of the lines of a text file that are not blank."""
    for number, line in enumerate(read_text(path, fallback).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}:", line.rstrip("\r")


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(file:line, object) of a file of JSON lines; a line that is not JSON gives its text."""
    for where, line in numbered_lines(path):
        try:
            yield where, json.loads(line)
        except ValueError:
            yield where, line
