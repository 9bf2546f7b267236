"""Word sets in every form: word LMDBs, a folder with a list, WebDataset tar shards, parquet and Arrow tables.

`open_words(path)` opens one; `find_sources(root)` finds all at or below a folder. All commands that read words use
these.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from common.data.lmdb import WordLmdb
from common.data.sources.base import LIST_NAMES, SAVED, WordSource
from common.files import files_below

__all__ = ["WordLmdb", "WordSource", "find_sources", "open_words", "set_or_stand_in"]
KINDS = "an LMDB, a folder with labels.txt, labels.csv or labels.jsonl, .tar shards, or .parquet or Arrow files"

STAND_IN = "synth-"  # before the name of the public set that a rendered one stands in for, in folders and tables


def set_or_stand_in(name: str, found: Container[str]) -> str | None:
    """Return `name` where it is among the sets that were found, else `synth-NAME`, else None."""
    return next((one for one in (name, f"{STAND_IN}{name}") if one in found), None)


def open_words(path: str | Path) -> WordSource | WordLmdb:
    """The word set at `path`: a folder or a file; nothing is read before the first access.

    Raises `UserError` for what is no word set.
    """
    path = Path(path)
    if path.is_file():
        forms = {".tar": "shards", ".parquet": "tables", ".arrow": "tables"}
        return _kind_named(forms.get(path.suffix, "listed"))(path)
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
        return _kind_named("tables")
    if any(folder.glob("*.parquet")):
        return _kind_named("tables")
    tars = sorted(folder.glob("*.tar"))
    if tars:
        from common.data.sources.shards import is_shard  # see `_kind_named`

        if is_shard(tars[0]):
            return _kind_named("shards")
    from common.data.sources.listed import find_list  # see `_kind_named`

    return _kind_named("listed") if find_list(folder) is not None else None


def _kind_named(form: str) -> type[WordSource]:
    """The class of a form, whose module is loaded where such a set is met: most trainings read LMDBs alone."""
    if form == "tables":
        from common.data.sources.tables import TableSource  # may need pyarrow

        return TableSource
    if form == "shards":
        from common.data.sources.shards import TarSource  # only where such a set is met

        return TarSource
    from common.data.sources.listed import ListSource  # only where such a set is met

    return ListSource
