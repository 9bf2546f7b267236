"""WebDataset shards: tar files in which a sample is the files of one name, `000017.jpg` and `000017.txt` (or
`.json`).
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np

from common.data.lists import LABEL_NAMES
from common.data.sources.base import Texts, WordSource
from common.errors import UserError

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "img", "image"}
LABELS = {"txt", "text", "label", "gt", "json"}


class TarSource(WordSource):
    """The samples of a tar file, or of all tar files of a folder in the order of their names; in file order.

    The headers are read once; a picture is then one read at a known place, so shuffled access is as quick as in order.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index: tuple[list[Path], np.ndarray, Texts] | None = None
        self._open: dict[int, int] = {}
        self._pid: int | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_index": self._index, "_open": {}, "_pid": None}

    def __len__(self) -> int:
        return len(self._read()[1])

    def image_bytes(self, index: int) -> bytes:
        """The bytes of the picture's member."""
        files, places, _ = self._read()
        shard, start, size = places[index].tolist()
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()  # a forked child must not share its parent's descriptors
        if shard not in self._open:
            self._open[shard] = os.open(files[shard], os.O_RDONLY)
        data = os.pread(self._open[shard], size, start)
        if len(data) != size:
            raise KeyError(f"{files[shard]}: breaks off in sample {index + 1}")
        return data

    def label(self, index: int) -> str:
        """The text of the sample, without the line end that editors add."""
        return self._read()[2][index]

    def close(self) -> None:
        """Close this process's files."""
        if self._pid == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)
        self._open = {}

    def __del__(self) -> None:
        if getattr(self, "_open", None):
            self.close()

    def _read(self) -> tuple[list[Path], np.ndarray, Texts]:
        if self._index is None:
            files = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
            places: list[tuple[int, int, int]] = []
            labels: list[str] = []
            skipped = 0
            for shard, file in enumerate(files):
                skipped += _index_shard(file, shard, places, labels)
            if not places:
                raise UserError(f"{self.path}: no sample of a picture and a text in it: a WebDataset tar is needed")
            if skipped:
                print(f"warning: {self.path}: {skipped} samples without a picture or a text skipped", flush=True)
            self._index = files, np.array(places, dtype=np.int64).reshape(-1, 3), Texts(labels)
        return self._index


def is_shard(file: Path, members: int = 20) -> bool:
    """Whether the first members of a tar file make a sample of a picture and a text."""
    kinds = set()
    try:
        with tarfile.open(file, "r:") as archive:
            for _ in range(members):
                member = archive.next()
                if member is None:
                    break
                kinds.add(member.name.lower().rpartition(".")[2])
    except (tarfile.TarError, OSError, EOFError):
        return False
    return bool(kinds & PICTURES and kinds & LABELS)


def _index_shard(file: Path, shard: int, places: list[tuple[int, int, int]], labels: list[str]) -> int:
    """Append the samples of one tar file; how many were incomplete. Raises `UserError` for what is no tar file."""
    skipped, key, picture, label = 0, None, None, None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if (folder, stem) != key:
                    skipped += _add(key, picture, label, places, labels)
                    key, picture, label = (folder, stem), None, None
                kind = kind.lower().rpartition(".")[2]
                if kind in PICTURES:
                    picture = (shard, member.offset_data, member.size)
                elif kind in LABELS:
                    label = _text(archive.extractfile(member).read(), kind)
        skipped += _add(key, picture, label, places, labels)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{file}: not a whole tar file ({error}): copy it again") from None
    return skipped


def _add(key: tuple | None, picture: tuple | None, label: str | None, places: list, labels: list[str]) -> int:
    if picture is None or label is None:
        return int(key is not None)
    places.append(picture)
    labels.append(label)
    return 0


def _text(data: bytes, kind: str) -> str | None:
    """The label in a member; None where it is no text."""
    try:
        text = data.decode("utf-8-sig")
        if kind != "json":
            return text.rstrip("\r\n")
        content = json.loads(text)
    except ValueError:
        return None
    if isinstance(content, str):
        return content
    found = [content[name] for name in LABEL_NAMES if isinstance(content, dict) and isinstance(content.get(name), str)]
    return found[0] if found else None
