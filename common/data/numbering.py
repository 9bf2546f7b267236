"""How the keys of a word LMDB are numbered. The published form is `image-%09d` from 1; others are found and read
whole.
"""

from __future__ import annotations

from typing import NamedTuple

LONGEST = 18  # digits of a number that is taken for one


class Numbering(NamedTuple):
    """`first`: number of the first sample. `width`: digits, filled up with zeros; 1 where they are not filled up."""

    first: int = 1
    width: int = 9

    def key(self, prefix: str, index: int) -> bytes:
        """The key of 0-based sample `index`: `image-000000001` is that of 0 in the published form."""
        return b"%s-%0*d" % (prefix.encode(), self.width, index + self.first)

    def index(self, digits: bytes) -> int | None:
        """The 0-based sample of a key's digits, None for what is no key of this form."""
        if not digits.isdigit() or len(digits) > LONGEST:
            return None
        number = int(digits)
        return number - self.first if b"%0*d" % (self.width, number) == digits and number >= self.first else None

    @property
    def is_published(self) -> bool:
        """Whether other programs find the samples too."""
        return self == PUBLISHED

    @property
    def in_order(self) -> bool:
        """Whether the order of the keys is that of the samples, so that a walk through the file gives them in order."""
        return self.width > 1

    def describe(self) -> str:
        """The form in words: `from 0, 9 digits`."""
        return f"from {self.first}, {'no zeros in front' if self.width == 1 else f'{self.width} digits'}"


PUBLISHED = Numbering()


def numbering_of(digits: bytes, has_zero: bool) -> Numbering:
    """The numbering of an LMDB whose first key (in the order of bytes) ends in `digits`.

    has_zero: whether the number 0 occurs.
    """
    padded = len(digits) == PUBLISHED.width or (digits[:1] == b"0" and len(digits) > 1)
    return Numbering(0 if has_zero else 1, len(digits) if padded else 1)
