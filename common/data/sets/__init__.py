"""The public word sets: one TOML file each, with where they come from, how their release looks, and what is odd.

`strlab data list`, `info`, `convert` and `verify` read them.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

WHOLE = "all"  # the subset of a set that has only one


@dataclass(frozen=True)
class Subset:
    """One LMDB of a set: its folder below the data root ("": the given folder itself), and the words of a whole
    release.

    words: 0 where the number is not known. sha256: `digest` of the whole release, "" where it is not known. filter:
    "alphanumeric" (ASCII letters and digits, `least` of them) or "listed" (by a list that the user supplies).
    """

    name: str
    folder: str
    words: int = 0
    sha256: str = ""
    filter: str = ""
    least: int = 1


@dataclass(frozen=True)
class WordSet:
    """What is known of a public set; `form` names the converter of its release, or "lmdb"."""

    name: str
    title: str
    paper: str
    url: tuple[str, ...]
    licence: str
    language: str
    form: str
    layout: str
    odd: tuple[str, ...]
    subsets: tuple[Subset, ...]

    @property
    def words(self) -> str:
        """The words of every subset, as text."""
        return " / ".join(f"{subset.words:,}" if subset.words else "?" for subset in self.subsets)

    def subset(self, name: str) -> Subset:
        """The subset of that name. Raises `UserError`."""
        for subset in self.subsets:
            if subset.name == name:
                return subset
        raise UserError(f"--subset: {name!r} is none of {', '.join(subset.name for subset in self.subsets)}")


@functools.cache
def known() -> dict[str, WordSet]:
    """All sets by name, sorted."""
    folder = Path(__file__).parent
    return {file.stem: _read(file) for file in sorted(folder.glob("*.toml"))}


def find_set(name: str) -> WordSet:
    """The set of that name, whatever its case. Raises `UserError` that lists the names."""
    found = known().get(name.lower().replace("-", "_"))
    if found is None:
        raise UserError(f"{name}: no such set; `strlab data list` lists them: {', '.join(known())}")
    return found


def _read(file: Path) -> WordSet:
    content = tomllib.loads(file.read_text("utf-8"))
    subsets = tuple(Subset(name, **fields) for name, fields in content.pop("subsets").items())
    lists = {name: tuple(content.pop(name)) for name in ("url", "odd")}
    return WordSet(file.stem, subsets=subsets, **lists, **content)


def digest(pairs: Iterable[tuple[bytes, str]]) -> str:
    """sha256 over the sorted (sha256 of the picture's bytes, label) pairs of a set: its contents, whatever their
    order.
    """
    rows = sorted(hashlib.sha256(picture).digest() + label.encode("utf-8") for picture, label in pairs)
    total = hashlib.sha256()
    for row in rows:
        total.update(len(row).to_bytes(4, "little") + row)
    return total.hexdigest()
