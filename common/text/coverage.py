"""What a character set does to labels, counted before anything is trained or scored on them.

A loader that deletes the characters it does not know trains on empty words without an error. `Coverage` counts what
normalisation changes, one line for each source, and `check_coverage` stops a run that would lose too much.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from common.errors import UserError

MARKS = frozenset(string.punctuation + string.whitespace)
SHOWN = 15
DEFAULT_SHARE = 0.05  # of the labels; `--unsupported_share`


@dataclass
class Coverage:
    """Counts over the labels of one source; `normalise` is what the loader does to a label, `charset` what the model
    can write (None: whatever `normalise` keeps).

    `foreign`: labels with characters that are deleted or unknown (`characters`, each with how often); `empty`: labels
    of which nothing is left; `case_only`: labels that change in case and nothing else. White space that is removed on
    purpose (`spare_blanks`) is not counted. `damaged` is what a limit is held against: the foreign labels that lose
    more than ASCII marks and blanks, which the papers' sets of 36 and 62 characters delete from every benchmark.
    """

    normalise: Callable[[str], str]
    charset: str | None = None
    spare_blanks: bool = False
    labels: int = 0
    foreign: int = 0
    damaged: int = 0
    empty: int = 0
    case_only: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    _outside: dict[str, bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._known = None if self.charset is None else frozenset(self.charset)

    def count(self, raw: str, label: str) -> None:
        """One label as stored and as normalised."""
        self.labels += 1
        if label == raw and (self._known is None or self._known.issuperset(raw)):
            return
        self.empty += not label
        gone = [character for character in raw if self.outside(character)]
        if gone:
            self.foreign += 1
            self.damaged += not (self.deletes_marks and MARKS.issuperset(gone))
            self.characters.update(gone)
        elif label != raw and label.lower() == raw.lower():
            self.case_only += 1

    @cached_property
    def deletes_marks(self) -> bool:
        """Whether the charset has no punctuation at all, as those of 36 and 62 characters."""
        return all(self.outside(mark) for mark in string.punctuation)

    def outside(self, character: str) -> bool:
        """Whether this character is lost: normalisation deletes it, or the charset does not have it."""
        if character not in self._outside:
            kept = self.normalise(character)
            lost = not kept or not (self._known is None or self._known.issuperset(kept))
            self._outside[character] = lost and not (self.spare_blanks and character.isspace())
        return self._outside[character]

    def line(self, source: str) -> str:
        """One line for a log."""
        if not (self.foreign or self.empty or self.case_only):
            return f"{source}: all {self.labels:,} labels are within the charset"
        shown = f" ({shown_characters(self.characters)})" if self.foreign else ""
        return (
            f"{source}: {self.foreign:,} of {self.labels:,} labels have characters outside the charset{shown};"
            f" {self.empty:,} become empty; {self.case_only:,} change in case only"
        )


def shown_characters(characters: Counter[str]) -> str:
    """The most frequent ones with their counts, control characters escaped."""
    shown = ", ".join(f"{character!r} x {count:,}" for character, count in characters.most_common(SHOWN))
    return f"{shown}, …" if len(characters) > SHOWN else shown


def summed(parts: Iterable[Coverage]) -> Coverage:
    """The sum over several sources."""
    total = Coverage(str)
    for part in parts:
        total.labels += part.labels
        total.foreign += part.foreign
        total.damaged += part.damaged
        total.empty += part.empty
        total.case_only += part.case_only
        total.characters.update(part.characters)
    return total


def empty_line(source: str, empty: int) -> str:
    """What an evaluation says of words whose label the charset empties: both sides would be equal for nothing."""
    return f"{source}: {empty:,} words have an empty label in this charset and are in no accuracy"


def check_coverage(sources: Mapping[str, Coverage], limit: float = DEFAULT_SHARE, fix: str = "") -> list[str]:
    """One line for each source; stop where more than `limit` of all labels are damaged by the charset (`Coverage`).

    Args:
        sources: name -> counts.
        limit: share of the labels, 0 to 1 (`--unsupported_share`).
        fix: how this script's charset is extended, e.g. "--character".

    Raises:
        UserError: too many labels lose characters, or every label becomes empty.
    """
    lines, total = [coverage.line(name) for name, coverage in sources.items()], summed(sources.values())
    share, told = total.damaged / total.labels if total.labels else 0.0, f" ({fix})" if fix else ""
    if share > limit:
        raise UserError(
            f"labels: {total.damaged:,} of {total.labels:,} ({share:.1%}, limit {limit:.1%}) have characters outside"
            f" the charset: {shown_characters(total.characters)}; {total.empty:,} become empty: extend the"
            f" charset{told}, or train on what is left of them with --unsupported_share {share:.2g} or more"
        )
    if total.labels and total.empty == total.labels:
        raise UserError(f"labels: all {total.labels:,} are empty in this charset: extend it{told}")
    return lines
