"""Where scenes come from: AnyWord JSON files and LMDBs, their annotations, and an index of arrays over them."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np

from common.data.lmdb import open_environment
from common.errors import UserError
from common.files import picture_folder


@dataclass(frozen=True)
class Word:
    """One annotation: where its picture is, the polygon `[[x, y], …]` in the picture's pixels, and the text.

    Polygon and text stand as they were found: what cannot be used shows when the region is made.
    """

    picture: str
    polygon: list
    text: str
    language: str | None = None


def wanted(entry: object, language: str | None, keep_invalid: bool = True) -> bool:
    """Whether an annotation is of the language (it names it or names none), and legible where that is asked for."""
    if not isinstance(entry, dict):
        return True
    if not keep_invalid and entry.get("valid") is False:
        return False
    return language is None or entry.get("language", language) == language


def read_words(
    path: Path, language: str | None = None, *, images: Path | None = None, keep_invalid: bool = True
) -> list[Word]:
    """The annotations of an AnyWord JSON file, in file order.

    Skipped are those with an empty polygon or text; with `language`, also those that name another; without
    `keep_invalid` (the published reader keeps them), those marked `valid: false`. A relative data_root counts as
    `picture_folder` says; `images` replaces it. Raises UserError for a file of another form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        root, items = content["data_root"], content["data_list"]
        names = [str(item["img_name"]) for item in items[:20] if "img_name" in item]
        folder = images or picture_folder(Path(path), Path(root), names)
        root = root.rstrip("/") if root and folder == Path(root) else str(folder)
        words = []
        for item in items:
            for entry in item.get("annotations") or []:
                parts = entry if isinstance(entry, dict) else {}
                polygon, text = parts.get("polygon"), parts.get("text")
                if polygon not in ([], "") and text != "" and wanted(entry, language, keep_invalid):
                    words.append(Word(f"{root}/{item['img_name']}", polygon, text, parts.get("language")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: give a JSON file with data_root and data_list") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give a JSON file or an LMDB folder") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an AnyWord JSON file ({type(error).__name__}: {error})") from None
    return words


_open: dict[tuple[int, int, int], lmdb.Environment] = {}
"""By process, device and inode: LMDB refuses to open a file twice in a process."""


def _environment(path: Path) -> lmdb.Environment:
    place = (path / "data.mdb").stat()
    key = (os.getpid(), place.st_dev, place.st_ino)
    if key not in _open:
        for inherited in [old for old in _open if old[0] != key[0]]:
            _open.pop(inherited).close()  # of the parent that forked; only this process's copy is closed
        _open[key] = open_environment(path)
    return _open[key]


class SceneLmdb:
    """One AnyWord LMDB: `image-<id>` bytes and `annotations-<id>` JSON; opened lazily, once per process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def environment(self) -> lmdb.Environment:
        """The handle of this process; LMDB allows one a file, so all readers of a file share it."""
        try:
            return _environment(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: no readable data.mdb ({error.strerror}): was it moved?") from None

    def pictures(self) -> Iterator[tuple[bytes, list]]:
        """(id, annotations) of every picture that has annotations, in key order."""
        with self.environment.begin() as transaction:
            cursor = transaction.cursor()
            if not cursor.set_range(b"image-"):
                return
            for key in cursor.iternext(values=False):
                if not key.startswith(b"image-"):
                    break
                identity = key[len(b"image-") :]
                raw = transaction.get(b"annotations-" + identity)
                if raw is not None:
                    yield identity, self._parse(raw, identity)

    def _parse(self, raw: bytes, identity: bytes) -> list:
        try:
            entries = json.loads(raw)
        except ValueError:
            name = identity.decode(errors="replace")
            raise UserError(f"{self.path}: annotations-{name}: not JSON; write the LMDB again") from None
        return entries if isinstance(entries, list) else []

    def annotations(self, identity: bytes) -> list:
        """The annotations of a picture, as they were written."""
        with self.environment.begin() as transaction:
            return self._parse(transaction.get(b"annotations-" + identity), identity)

    def picture(self, identity: bytes) -> bytes:
        with self.environment.begin() as transaction:
            return transaction.get(b"image-" + identity)


def find_scene_lmdbs(root: str | Path) -> list[Path]:
    """Folders below `root` that hold a data.mdb and no further folders, sorted. Raises UserError for none."""
    root = Path(root)
    found = sorted(
        path.parent for path in root.rglob("data.mdb") if not any(child.is_dir() for child in path.parent.iterdir())
    )
    if not found:
        raise UserError(
            f"{root}: no LMDB (data.mdb) below it: set lmdb_path, or make one with `strlab data convert anyword`"
        )
    return found


class SceneIndex:
    """Every annotation of several LMDBs in key order, in arrays: workers share them, and would copy tuples.

    Args:
        environments: the LMDBs, in the order of the index.
        language: only annotations that name it or name none.
        keep_invalid: also those marked `valid: false`, as published.
        see: called with every text of the index, so that the annotations are read once only.
    """

    def __init__(
        self,
        environments: Sequence[SceneLmdb],
        language: str | None = None,
        see: Callable[[str], None] | None = None,
        *,
        keep_invalid: bool = True,
    ) -> None:
        identities, owners, places, numbers = [], array("i"), array("i"), array("i")
        for owner, environment in enumerate(environments):
            print(f"Building Index for Dataset {owner}", flush=True)
            for identity, entries in environment.pictures():
                identities.append(identity)
                owners.append(owner)
                for number, entry in enumerate(entries):
                    if wanted(entry, language, keep_invalid):
                        places.append(len(identities) - 1)
                        numbers.append(number)
                        if see is not None:
                            see(text_of(entry))
        self.identities, self.owners = np.array(identities, dtype=bytes), np.array(owners)
        self.places, self.numbers = np.array(places), np.array(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, bytes, int]:
        """(number of the LMDB, id of the picture, number of the annotation)."""
        place = self.places[index]
        return int(self.owners[place]), bytes(self.identities[place]), int(self.numbers[index])

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        return (self[index] for index in range(len(self)))


def text_of(entry: object) -> str:
    """The text of an annotation, empty where it has none."""
    text = entry.get("text") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else ""
