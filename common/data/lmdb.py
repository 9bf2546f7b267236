"""The word LMDB: `num-samples`, `image-%09d`, `label-%09d` (1-based) and further values under the same numbers.

Reading is lazy and per process, so a `WordLmdb` may be pickled, forked and spawned. Writing grows the map as it
fills, commits in batches, and the folder appears under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import lmdb

from common.data.numbering import LONGEST, PUBLISHED, Numbering, numbering_of
from common.errors import UserError
from common.files import files_below

COUNT_KEY = b"num-samples"
MOST_ABSENT = 100  # times as many pictures as masks
TOLERATED_SHARE = 0.01  # of num-samples: a larger error stops, a smaller one is said and counted
CURE = "copy the folder again, or look with `strlab doctor`"


key = PUBLISHED.key  # of what is written: `key("image", 0)` is `image-000000001`


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; taken for granted on Windows."""
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def lmdb_folders(root: str | Path) -> list[Path]:
    """The folders at or below `root` that hold a data.mdb, sorted; see `files_below` for links and hidden names."""
    return sorted(file.parent for file in files_below(root, lambda name: name == "data.mdb"))


def open_environment(path: Path) -> lmdb.Environment:
    """The LMDB in folder `path`, read only, no lock file. Raises `UserError` for what is missing, foreign or cut
    off.
    """
    file = path / "data.mdb"
    if not file.is_file():
        raise UserError(f"{path}: no data.mdb in it: give the folder of an LMDB")
    size = file.stat().st_size
    try:
        environment = lmdb.open(
            os.fsencode(path), readonly=True, lock=False, readahead=False, meminit=False, max_readers=32
        )
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{file}: not a whole LMDB ({size} bytes; {error}): {CURE}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        # LMDB maps the file: a page beyond its end would kill the process with a bus error.
        environment.close()
        raise UserError(f"{file}: incomplete copy ({size} bytes of {needed}): copy the folder again")
    return environment


class _Handle:
    """One open environment with its read transaction, shared by all `WordLmdb`s of a process on the same file."""

    def __init__(self, path: Path) -> None:
        self.environment, self.users = open_environment(path), 0
        self.transaction = self.environment.begin(buffers=False)
        self.path, self.file = path, open(path / "data.mdb", "rb")  # noqa: SIM115 (open as long as the map)
        self.size = os.fstat(self.file.fileno()).st_size

    def check(self) -> None:
        """Raise `UserError` where the file has become shorter: reading its lost pages would kill the process."""
        size = os.fstat(self.file.fileno()).st_size
        if size < self.size:
            raise UserError(
                f"{self.path / 'data.mdb'}: it was cut to {size} of {self.size} bytes while it was read: copy the "
                "folder again, and write to no LMDB that a run reads"
            )

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()
        self.file.close()


# LMDB refuses to open a file twice in one process, so handles are shared by (device, inode).
_handles: dict[tuple[int, int], _Handle] = {}
_handles_pid = os.getpid()


def _take(path: Path) -> tuple[tuple[int, int], _Handle]:
    global _handles_pid
    if _handles_pid != os.getpid():
        # Inherited through fork: closing them here unmaps this process's copies only, and lets the files be opened
        # anew.
        for handle in _handles.values():
            handle.environment.close()
            handle.file.close()
        _handles.clear()
        _handles_pid = os.getpid()
    try:
        status = (path / "data.mdb").stat()
    except OSError:
        status = None
    name = (status.st_dev, status.st_ino) if status else (0, 0)
    if name not in _handles:
        _handles[name] = _Handle(path)
    _handles[name].users += 1
    return name, _handles[name]


def _give_back(name: tuple[int, int]) -> None:
    handle = _handles.get(name)
    if handle is None or _handles_pid != os.getpid():
        return
    handle.users -= 1
    if not handle.users:
        del _handles[name]
        handle.close()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[lmdb.Transaction]:
    """The read transaction of the LMDB in folder `path`, shared with all of this process that read the same file.

    Raises as `open_environment`.
    """
    name, handle = _take(path)
    try:
        yield handle.transaction
    finally:
        _give_back(name)


class WordLmdb:
    """Read-only view of one word LMDB; samples are numbered from 0 here, from 1 in the file.

    Nothing is opened before the first access, and then once per process. `len()` is `num-samples`. Raises
    `UserError` on first access when the folder is missing, foreign or truncated, or `num-samples` is missing or
    wrong by more than 1 %.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pid: int | None = None
        self._handle_name: tuple[int, int] | None = None
        self._handle: _Handle | None = None
        self._transaction: lmdb.Transaction | None = None
        self._count: int | None = None
        self._numbering: Numbering | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_count": self._count, "_numbering": self._numbering}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])
        self._count, self._numbering = state["_count"], state["_numbering"]

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._read_count()
        return self._count

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of sample `index`. Raises KeyError (naming the key) when it is missing."""
        return self._get(self.numbering.key("image", index))

    def label(self, index: int) -> str:
        """The label as stored. Raises KeyError when it is missing, UnicodeDecodeError when it is not UTF-8."""
        return self._get(self.numbering.key("label", index)).decode("utf-8")

    def value(self, prefix: str, index: int) -> bytes | None:
        """What stands under `prefix-%09d` (mask, boxes, …), or None."""
        return self._read(self.numbering.key(prefix, index))

    @property
    def numbering(self) -> Numbering:
        """How the keys are numbered; found at the first access, and all samples are read whatever it is."""
        if self._numbering is None:
            self._numbering = self._find_numbering()
        return self._numbering

    def stored_count(self) -> bytes | None:
        """What stands under `num-samples`, as it is; None when nothing does."""
        return self._read(COUNT_KEY)

    def prefixes(self) -> list[str]:
        """What stands before the number in `prefix-%09d` keys (image, label, mask, …), sorted."""
        found, here = [], b""
        while True:
            name = next((name for name, _ in self._walk(b"", values=False, start=here)), None)
            if name is None:
                return found
            prefix, dash, number = name.rpartition(b"-")
            if dash and number.isdigit():
                found.append(prefix.decode("utf-8", "replace"))
                here = prefix + b"."  # the character after "-": past all numbers of this prefix
            else:
                here = name + b"\0"

    def items(self, prefix: str) -> Iterator[tuple[int, bytes]]:
        """(0-based index, value) of all keys `prefix-…` in order; far faster than asking one by one."""
        if not self.numbering.in_order:
            for index in self.numbers(prefix):
                yield index, self.value(prefix, index)
            return
        start = prefix.encode() + b"-"
        for name, value in self._walk(start):
            if (index := self.numbering.index(name[len(start) :])) is not None:
                yield index, value

    def numbers(self, prefix: str) -> Iterator[int]:
        """0-based index of all keys `prefix-…` in order, without reading their values."""
        start = prefix.encode() + b"-"
        names = (name[len(start) :] for name, _ in self._walk(start, values=False))
        found = (index for digits in names if (index := self.numbering.index(digits)) is not None)
        yield from found if self.numbering.in_order else sorted(found)

    def count_keys(self, prefix: str) -> int:
        """How many keys `prefix-…` there are (walks them)."""
        return sum(1 for _ in self._walk(prefix.encode() + b"-", values=False))

    def close(self) -> None:
        """Let go of this process's handle; the next access opens a new one."""
        if self._handle_name is not None and self._pid == os.getpid():
            _give_back(self._handle_name)
        self._handle_name = self._handle = self._transaction = self._pid = None

    def __del__(self) -> None:
        if getattr(self, "_handle_name", None) is not None:
            self.close()

    def _read_transaction(self) -> lmdb.Transaction:
        if self._pid != os.getpid():
            self._handle_name, self._handle = _take(self.path)
            self._transaction, self._pid = self._handle.transaction, os.getpid()
        self._handle.check()
        return self._transaction

    def _walk(self, prefix: bytes, values: bool = True, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of all keys that begin with `prefix`, in order, from `start` on."""
        try:
            with self._read_transaction().cursor() as cursor:
                found = cursor.set_range(max(prefix, start)) if prefix or start else cursor.first()
                while found and cursor.key().startswith(prefix):
                    yield cursor.key(), cursor.value() if values else b""
                    found = cursor.next()
        except lmdb.Error as error:
            raise self._unreadable(prefix, error) from None

    def _read(self, name: bytes) -> bytes | None:
        try:
            return self._read_transaction().get(name)
        except lmdb.Error as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: bytes, error: Exception) -> UserError:
        return UserError(f"{self.path / 'data.mdb'}: {name.decode()}: unreadable page ({error}): {CURE}")

    def _get(self, name: bytes) -> bytes:
        value = self._read(name)
        if value is None:
            raise KeyError(f"no {name.decode()} in {self.path}")
        return value

    def _read_count(self) -> int:
        raw = self._read(COUNT_KEY)
        if raw is None or not raw.strip().isdigit() or len(raw.strip()) > LONGEST:
            found = self.count_keys("image")
            what = "missing" if raw is None else f"{raw[:20]!r}"
            raise UserError(
                f"{self.path}: num-samples is {what}, {found} images found: "
                f"`strlab doctor {self.path} --repair NEW` writes a sound copy"
            )
        count = int(raw)
        if self._only_masks():
            found = self.count_keys("mask")
            if count > MOST_ABSENT * found + 1000:  # unreadable pictures have no mask, so some keys may be absent
                raise UserError(
                    f"{self.path}: num-samples is {count}, but there are only {found} masks: make them again"
                )
            return count
        if self._has(count) or (count and not self._has(count - 1)):
            found = self.count_keys("image")
            said = f"{self.path}: num-samples says {count}, {found} images found"
            if abs(found - count) > TOLERATED_SHARE * max(found, count):
                raise UserError(f"{said}: `strlab doctor {self.path} --repair NEW` writes a sound copy")
            print(f"warning: {said}; samples above the smaller number are not read", flush=True)
        return count

    def _find_numbering(self) -> Numbering:
        """Look at the first key of pictures, labels or masks, and say so where other programs would lose samples."""
        for prefix in (b"image-", b"label-", b"mask-"):
            names = (name[len(prefix) :] for name, _ in self._walk(prefix, values=False))
            digits = next((name for name in names if name.isdigit() and len(name) <= LONGEST), None)
            if digits is None:
                continue
            found = numbering_of(digits, has_zero=int(digits) == 0)
            if not found.is_published:
                print(
                    f"warning: {self.path}: keys are numbered {found.describe()} ({(prefix + digits).decode()}), where "
                    "image-000000001 is the usual first: all are read here, other programs lose some; "
                    "`strlab doctor DIR --repair NEW` renumbers them",
                    flush=True,
                )
            return found
        return PUBLISHED

    def _only_masks(self) -> bool:
        """An LMDB of masks that mirrors one of pictures: it has `mask-…` keys and no pictures."""
        kinds = [next(self._walk(prefix, values=False), None) for prefix in (b"mask-", b"image-")]
        return kinds[0] is not None and kinds[1] is None

    def _has(self, index: int) -> bool:
        return self.value("image", index) is not None or self.value("label", index) is not None


class LmdbWriter:
    """Context manager that writes a word LMDB at `path`, which must not exist (`overwrite=True` replaces it at the
    end).

    `with LmdbWriter(path) as writer: writer.add(image, label, mask=png)`. Entries go to a temporary folder next to
    `path`, in transactions of `batch` samples; a full map is doubled and the transaction repeated. On a clean exit
    `num-samples` is written last, the file is synced and the folder renamed; on an exception nothing is left.
    `map_size` is the first size of the map in bytes.
    """

    def __init__(self, path: str | Path, map_size: int = 64 << 20, batch: int = 1000, overwrite: bool = False) -> None:
        self.path, self.batch, self.overwrite = Path(path), batch, overwrite
        if overwrite:
            self.path = self.path.resolve()  # of a linked folder what the link leads to
        self.count = 0
        self._pending: list[tuple[bytes, bytes]] = []
        self._look_for_leftovers()
        if self.path.exists() and not overwrite:
            raise UserError(f"{self.path}: it exists: give a new folder")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._environment = lmdb.open(
                os.fsencode(self._temporary), map_size=map_size, lock=False, sync=False, metasync=False
            )
        except (OSError, lmdb.Error) as error:
            raise UserError(
                f"{self.path}: cannot write there ({error}): choose another folder or free some space"
            ) from None

    def _look_for_leftovers(self) -> None:
        """What a killed process left next to `path`: put the older folder back where none has the name, report the
        rest."""
        leftovers = re.compile(rf"\.{re.escape(self.path.name)}\.(\d+)\.(old|tmp)")
        found = sorted(self.path.parent.iterdir()) if self.path.parent.is_dir() else []
        for folder in found:
            match = leftovers.fullmatch(folder.name)
            if match is None or is_alive(int(match[1])):
                continue
            if match[2] == "old" and not self.path.exists():
                folder.replace(self.path)
                print(f"{self.path}: put back: a run was killed while it replaced it", file=sys.stderr)
            else:
                print(f"{folder}: left by a run that was killed, and not used: delete it", file=sys.stderr)

    def __enter__(self) -> LmdbWriter:
        return self

    def add(self, image: bytes | None, label: str | None, **extras: bytes) -> int:
        """Append one sample; its 0-based index. `extras` are stored as `name-%09d`; None leaves the key out."""
        index = self.count
        values = {"image": image, "label": None if label is None else label.encode("utf-8"), **extras}
        self._pending += [(key(prefix, index), value) for prefix, value in values.items() if value is not None]
        self.count += 1
        if self.count % self.batch == 0:
            self._flush()
        return index

    def add_value(self, prefix: str, index: int, value: bytes) -> None:
        """Store `value` under `prefix-%09d` of sample `index`; mask LMDBs are written so. Counts samples up to
        `index`.
        """
        self._pending.append((key(prefix, index), value))
        self.count = max(self.count, index + 1)
        if len(self._pending) >= 3 * self.batch:
            self._flush()

    def note(self, prefix: str, index: int, value: bytes) -> None:
        """Store `value` under `prefix-%09d` without counting a sample."""
        self._pending.append((key(prefix, index), value))

    def put_file(self, name: str, text: str) -> None:
        """A small text file in the folder, which appears together with it."""
        (self._temporary / name).write_text(text, "utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._pending.append((COUNT_KEY, str(self.count).encode()))
                self._flush()
                self._environment.sync(True)
        except BaseException:
            kind = UserError
            raise
        finally:
            self._environment.close()
            if kind is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
        if kind is None:
            self._appear()

    def _appear(self) -> None:
        """Take the final name. An older folder of that name is deleted only when the new one stands there."""
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.overwrite and self.path.exists():
            self.path.replace(old)
        try:
            self._temporary.replace(self.path)
        except OSError as error:
            if old.exists():
                old.replace(self.path)
            raise UserError(f"{self.path}: cannot be put there ({error.strerror}): give another folder") from None
        shutil.rmtree(old, ignore_errors=True)

    def _flush(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    for name, value in self._pending:
                        transaction.put(name, value)
                self._pending.clear()
            except lmdb.MapFullError:
                self._grow()
            except (OSError, lmdb.Error) as error:
                raise UserError(
                    f"{self.path}: writing failed after {self.count} samples ({error}): free some space"
                ) from None

    def _grow(self) -> None:
        size = self._environment.info()["map_size"]
        wanted = sum(len(name) + len(value) for name, value in self._pending)
        self._environment.set_mapsize(2 * size + 2 * wanted)
