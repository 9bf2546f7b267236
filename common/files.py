"""Files that appear whole or not at all, and finding files below a folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import UserError

TEMPORARY = ".tmp-"  # part of the names of unfinished files
MOST_BYTES = 1 << 30  # of a single picture or annotation from outside


class DiskFull(UserError):
    """There is no room for a file; earlier ones are untouched."""


@contextlib.contextmanager
def atomic_file(path: Path, needed: int = 0) -> Iterator[BinaryIO]:
    """Context manager: an open binary file that becomes `path` when the block ends well, and disappears otherwise.

    Args:
        path: the final name; its folder is made.
        needed: bytes about to be written, for the message (and an early check of the free space).

    Raises:
        DiskFull: no room; says the path and the bytes.
        UserError: the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed > free_bytes(path.parent):
            raise OSError(errno.ENOSPC, "no space left")
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(error, path, needed) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(error: OSError, path: Path, needed: int = 0) -> UserError:
    """The error of a file that could not be written, in one line: `DiskFull`, or a `UserError` with the reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f"{needed:,} bytes are needed" if needed else "more room is needed"
        free = free_bytes(path.parent)
        return DiskFull(f"{path}: no space left: {size}, {free:,} are free; free some or choose another output folder")
    return UserError(f"{path}: cannot be written ({error.strerror or error}); choose another output folder")


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write in the folder's file system (of the nearest parent that exists)."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; file systems that cannot sync folders are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write to a temporary file next to `path`, flush it to the disk, rename it. Raises `UserError` naming the path."""
    with atomic_file(Path(path), len(data)) as file:
        file.write(data)
    return Path(path)


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text; lone surrogates are written as question marks."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file. Raises OSError for pipes, devices, folders, and files of more than `most` bytes."""
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(handle)
    if stat.S_ISDIR(status.st_mode):  # `open` would name the handle, and leave it open
        os.close(handle)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(handle, "rb") as file:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {most:,}", str(path))
        return file.read()


def read_json(path: Path, kind: type = object, fix: str = "remove it, or copy it again") -> Any:
    """The content of a JSON file, which must be of a kind.

    Raises:
        UserError: no readable JSON, or another kind; names the file, and ends with `fix`.
    """
    try:
        found = json.loads(read_regular(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({getattr(error, 'strerror', None) or error}); {fix}") from None
    if not isinstance(found, kind):
        raise UserError(f"{path}: it holds a {type(found).__name__}, not a {kind.__name__}; {fix}")
    return found


def json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a log that hold a JSON object, with the object; none where there is no file. Lines that a kill has
    cut are skipped."""
    rows = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                rows.append((line, row))
    return rows


@functools.lru_cache(maxsize=4096)
def _resolved(folder: Path) -> Path:
    """The real path of a folder; looking it up for each of millions of pictures takes longer than reading them."""
    return folder.resolve()


def read_below(root: Path, name: str) -> bytes:
    """The bytes of the regular file `name` below `root`. Raises OSError, also for a name that leads out of `root`.

    A name is data from outside: `../x`, an absolute path, or a link to another place must not be read.
    """
    if "\0" in name:
        raise OSError(errno.EINVAL, "a file name with a zero byte")
    path = root / name
    if "\\" in name and not path.exists():  # a list made on Windows
        path = root / name.replace("\\", "/")
    real = path.resolve() if path.is_symlink() else _resolved(path.parent) / path.name
    if not real.is_relative_to(_resolved(root)) or real.name == "..":
        raise OSError(errno.EPERM, f"leads out of the folder {root}", str(path))
    return read_regular(path)


def files_below(root: str | Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The files below a folder whose name is `wanted`, sorted by path.

    Linked folders are searched too, hidden names (unfinished folders among them) are not. A folder that is reached
    twice counts once, under its real place where that lies below `root`; so links that lead back end.
    """
    waiting, seen, found = [Path(root)], set(), []
    while waiting:
        links: list[Path] = []
        for top, folders, names in itertools.chain.from_iterable(map(os.walk, waiting)):
            folder = Path(top)
            with contextlib.suppress(OSError):  # gone, or closed to us since it was listed
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [path for name in folders if (path := folder / name).is_symlink()]
            found += [folder / name for name in names if wanted(name) and not name.startswith(".")]
        waiting = links
    return sorted(found)


def picture_folder(source: Path, root: Path, names: Sequence[str] = ()) -> Path:
    """Where the pictures of an AnyWord file `source` are: the place meant by its `data_root` that has most of `names`.

    A relative `data_root` counts from the working folder (as published), from the file's folder, or from a folder above
    it; where the file was moved with its pictures, the end of `data_root` is looked for next to it.
    """
    near = [source.parent / root, *(above / root for above in source.absolute().parents[1:6])]
    tails = [source.parent.joinpath(*root.parts[start:]) for start in range(1, len(root.parts))]
    places = [place for place in (root, *near, *tails) if place.is_dir()]
    best = max(places, key=lambda place: sum((place / name).is_file() for name in names), default=root)
    # a folder of the same name by chance, such as /root, holds none of them
    return best if not names or any((best / name).is_file() for name in names) else root
