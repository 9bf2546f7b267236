"""Character sets of the five papers in their exact index order, and what a charset cannot write.

A charset is a plain `str` of distinct characters; the position of a character is its index before a codec adds
special tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from common.errors import UserError

DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"  # the 32 ASCII marks in ASCII order

CHARSET_36 = DIGITS + LOWER
CHARSET_62 = DIGITS + LOWER + UPPER
CHARSET_94 = DIGITS + LOWER + UPPER + PUNCTUATION

SIGA_36 = LOWER + "1234567890"  # SIGA R and S: letters first, then 1 to 9, then 0
SIGA_94 = CHARSET_94  # SIGA R and S with --sensitive
DIG_LOWERCASE = DIGITS + LOWER + PUNCTUATION  # DiG's LOWERCASE, 68 characters
DIG_ALLCASES = CHARSET_62
DIG_ALLCASES_SYMBOLS = CHARSET_94

NAMED = {
    "36": CHARSET_36,
    "62": CHARSET_62,
    "94": CHARSET_94,
    "siga36": SIGA_36,
    "LOWERCASE": DIG_LOWERCASE,
    "ALLCASES": DIG_ALLCASES,
    "ALLCASES_SYMBOLS": DIG_ALLCASES_SYMBOLS,
}


def named_charset(name_or_characters: str) -> str:
    """The charset of that name (`36`, `62`, `94`, `siga36`, DiG's three), or the characters themselves.

    Raises `UserError` when a character stands twice, for its index would be ambiguous, or when nothing is given.
    """
    charset = NAMED.get(name_or_characters, name_or_characters)
    check_distinct(charset)
    return charset


def check_distinct(charset: str) -> None:
    """Raise `UserError` for an empty charset or one that names a character twice."""
    if not charset:
        raise UserError("charset: it is empty: give its characters, or one of " + ", ".join(NAMED))
    twice = "".join(character for character, count in Counter(charset).items() if count > 1)
    if twice:
        raise UserError(f"charset: {twice!r} stands twice: write every character once")


def unsupported(labels: Iterable[str], charset: str) -> Counter[str]:
    """Characters of `labels` that `charset` has not, with the number of times each occurs (empty: all are
    covered).
    """
    seen: Counter[str] = Counter()
    for label in labels:
        seen.update(label)
    allowed = frozenset(charset)
    return Counter({character: count for character, count in seen.items() if character not in allowed})
