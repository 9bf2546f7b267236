"""The register of samples that could not be read: counted once each, listed in a CSV, and a limit to how many are
too many.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import write_text

FILE_NAME = "bad_samples.csv"
CURE = "look with `strlab doctor`, or raise the limit"


class BadSample(NamedTuple):
    """LMDB folder, 1-based number as in its keys, and why the sample could not be used."""

    path: str
    number: int
    reason: str


class BadSamples:
    """Collects bad samples of a data set of `total` samples; more than `limit` (a share) of them raises `UserError`.

    `file` is the CSV (columns path, number, reason; sorted), rewritten whole whenever something new was added; None
    keeps no file. A sample is counted once however often it turns up; `others` are listed and not counted. `fix` ends
    the message of that error.
    """

    def __init__(self, total: int, limit: float = 0.01, file: str | Path | None = None, fix: str = CURE) -> None:
        self.total, self.limit, self.fix = total, limit, fix
        self.file = None if file is None else Path(file)
        self.others: list[BadSample] = []
        self._seen: dict[tuple[str, int], BadSample] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def rows(self) -> list[BadSample]:
        """All bad samples so far, sorted by folder and number."""
        return sorted({*self._seen.values(), *self.others})

    def recall(self) -> None:
        """Take over the list on disk: the run is resumed. The limit is checked with the next new sample."""
        if self.file is not None:
            self._take(stored(self.file))

    def start(self) -> None:
        """The run begins or is resumed: its list, even an empty one, replaces the one on disk."""
        if self._seen or (self.file is not None and self.file.exists()):
            self.save()

    def add(self, samples: Iterable[BadSample], write: bool = True) -> int:
        """Register `samples` and write the list when it grew (`write=False`: only above the limit; `start` follows).

        Returns how many were new. Raises `UserError` above the limit.
        """
        new = self._take(samples)
        over = new > 0 and len(self) > self.limit * self.total
        if over or (new and write):
            self.save()
        if over:
            raise UserError(self._message())
        return new

    def save(self) -> None:
        """Write the list to `file`, whole or not at all."""
        if self.file is None:
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(BadSample._fields)
        writer.writerows(self.rows())
        write_text(self.file, text.getvalue())

    def _take(self, samples: Iterable[BadSample]) -> int:
        before = len(self._seen)
        for sample in samples:
            self._seen.setdefault((sample.path, sample.number), sample)
        return len(self._seen) - before

    def _message(self) -> str:
        rows = sorted(self._seen.values())[:5]
        first = "; ".join(f"{Path(row.path).name} {row.number}: {row.reason}" for row in rows)
        said = f"{first}, all in {self.file}" if self.file else first
        share = f"{len(self)} of {self.total} samples cannot be read, more than {self.limit:.1%}"
        return f"{share} ({said}): {self.fix}"


def stored(file: Path) -> list[BadSample]:
    """The rows of a list on disk, none where there is none; lines that are not rows are skipped."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [row for row in csv.reader(lines) if len(row) == len(BadSample._fields) and row[1].isdecimal()]
    return [BadSample(path, int(number), reason) for path, number, reason in rows]
