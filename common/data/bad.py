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


class BadSample(NamedTuple):
    """LMDB folder, 1-based number as in its keys, and why the sample could not be used."""

    path: str
    number: int
    reason: str


class BadSamples:
    """Collects bad samples of a data set of `total` samples; more than `limit` (a share) of them raises `UserError`.

    `file` is the CSV (columns path, number, reason; sorted), rewritten whole whenever something new was added and
    `save` is called; None keeps no file. A sample is counted once however often it turns up.
    """

    def __init__(self, total: int, limit: float = 0.01, file: str | Path | None = None) -> None:
        self.total, self.limit, self.file = total, limit, None if file is None else Path(file)
        self._seen: dict[tuple[str, int], BadSample] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def rows(self) -> list[BadSample]:
        """All bad samples so far, sorted by folder and number."""
        return sorted(self._seen.values())

    def add(self, samples: Iterable[BadSample]) -> int:
        """Register `samples`; writes the list when it grew. Returns how many were new. Raises `UserError` above the
        limit.
        """
        before = len(self._seen)
        for sample in samples:
            self._seen.setdefault((sample.path, sample.number), sample)
        new = len(self._seen) - before
        if new:
            self.save()
            if len(self._seen) > self.limit * self.total:
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

    def _message(self) -> str:
        shown = "; ".join(f"{Path(row.path).name} {row.number}: {row.reason}" for row in self.rows()[:5])
        where = f", all in {self.file}" if self.file else ""
        return (
            f"{len(self)} of {self.total} samples cannot be read, more than {self.limit:.1%} ({shown}{where}): "
            "look with `strlab doctor`, or raise the limit"
        )
