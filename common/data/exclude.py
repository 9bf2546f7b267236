"""Lists of samples that are no part of a set: leaks, and what was excluded by hand."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from common.errors import UserError


def read_exclusions(file: Path) -> dict[Path, set[int]]:
    """Real path of every set -> numbers (from 1) of the words to exclude: the columns path and number of a CSV file.

    Raises `UserError` for a file without them.
    """
    excluded: dict[Path, set[int]] = defaultdict(set)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                excluded[Path(row["path"]).resolve()].add(int(row["number"]))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): give a list that `strlab doctor` wrote") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: no list of path and number ({error}): `strlab doctor --against` writes one") from None
    return excluded
