"""Character sets of the five papers in their exact index order, and what a charset cannot write.

A charset is a plain `str` of distinct characters; the position of a character is its index before a codec adds
special tokens.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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


def read_charset(path: str | Path) -> str:
    """The characters of a file with one character a line, in its order.

    The file is UTF-8, with or without a byte-order mark. Line ends and one blank after a character are ignored, as are
    empty lines at the end; a line of one blank is the blank. Characters are composed (NFC). A file of one line gives
    the characters of that line.

    Raises:
        UserError: no such file, another encoding, or a line that is not one character (its number is named), a
            character that stands twice.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the charset file cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte {error.start}): {_encoding_of(path.read_bytes())};"
            " convert it, e.g. with iconv -t UTF-8"
        ) from None
    lines = [unicodedata.normalize("NFC", line.rstrip("\r")) for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) == 1:
        charset = lines[0]
    else:
        charset = "".join(_one_character(path, number, line) for number, line in enumerate(lines, 1))
    if not charset:
        raise UserError(f"{path}: the charset file is empty; write one character a line")
    twice = [character for character, count in Counter(charset).items() if count > 1]
    if twice:
        at = [number for number, line in enumerate(lines, 1) if line[:1] == twice[0]]
        raise UserError(f"{path}: {twice[0]!r} stands twice (lines {', '.join(map(str, at))}): write it once")
    return charset


def _one_character(path: Path, number: int, line: str) -> str:
    if len(line) == 2 and line[1] in " \t":
        line = line[0]
    if len(line) != 1:
        what = "is empty" if not line else f"holds {len(line)} characters ({line[:20]!r})"
        raise UserError(f"{path}: line {number} {what}; write one character a line")
    return line


def _encoding_of(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it looks like UTF-16"
    try:
        content.decode("gb18030")
    except UnicodeDecodeError:
        return "its encoding is unknown"
    return "it looks like GBK"


def described(charset: str) -> str:
    """The one line a log shows of a charset."""
    return f"{len(charset):,} characters, from {charset[0]!r} to {charset[-1]!r}"
