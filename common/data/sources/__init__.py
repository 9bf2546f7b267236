"""Word sets in every form: word LMDBs, a folder with a list, WebDataset tar shards, parquet and Arrow tables.

`open_words(path)` opens one; `find_sources(root)` finds all at or below a folder. All commands that read words use
these.
"""

from __future__ import annotations

from pathlib import Path

from common.data.lmdb import WordLmdb
from common.data.sources.base import WordSource
from common.data.sources.listed import LIST_NAMES, ListSource, find_list
from common.data.sources.shards import TarSource, is_shard
from common.data.sources.tables import SAVED, TableSource
from common.files import files_below

__all__ = ["WordLmdb", "WordSource", "find_sources", "open_words"]
KINDS = "an LMDB, a folder with labels.txt, labels.csv or labels.jsonl, .tar shards, or .parquet or Arrow files"


def open_words(path: str | Path) -> WordSource | WordLmdb:
    """The word set at `path`: a folder or a file; nothing is read before the first access.

    Raises `UserError` for what is no word set.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".tar":
            return TarSource(path)
        return TableSource(path) if path.suffix in (".parquet", ".arrow") else ListSource(path)
    if not path.is_dir() or (path / "data.mdb").is_file():
        return WordLmdb(path)  # which says what is missing
    kind = _kind(path)
    if kind is None:
        return WordLmdb(path)
    return kind(path)


def find_sources(root: str | Path) -> list[Path]:
    """The word sets at or below `root`, sorted: folders, or `root` itself where it is a file.

    A folder is at most one set: its LMDB before a table, shards, or a list.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    files = files_below(root, lambda name: name in _NAMES or name.endswith((".tar", ".parquet")))
    folders = dict.fromkeys(file.parent for file in files)
    return sorted(folder for folder in folders if (folder / "data.mdb").is_file() or _kind(folder) is not None)


_NAMES = {"data.mdb", SAVED, *LIST_NAMES}


def _kind(folder: Path) -> type[WordSource] | None:
    """The kind of word set that a folder without an LMDB is, None for none."""
    if (folder / SAVED).is_file() and any(folder.glob("*.arrow")):
        return TableSource
    if any(folder.glob("*.parquet")):
        return TableSource
    if any(folder.glob("*.tar")):
        return TarSource if is_shard(min(folder.glob("*.tar"))) else ListSource if find_list(folder) else None
    return ListSource if find_list(folder) is not None else None
