"""Label normalisation as pure functions: case, charset, whitespace, Unicode folding.

`Normaliser` composes them in one picklable object, so that a data set can carry it into spawned workers.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


@lru_cache(maxsize=64)
def _members(charset: str) -> frozenset[str]:
    return frozenset(charset)


def fold_case(text: str, charset: str) -> str:
    """`text` in lower case, or in capitals where the charset has capitals and no lower-case letter.

    The published loaders always take lower case, which deletes every letter of such a charset.
    """
    return text.upper() if _capitals_only(charset) else text.lower()


@lru_cache(maxsize=64)
def _capitals_only(charset: str) -> bool:
    return charset != charset.lower() and charset == charset.upper()


def keep_only(text: str, charset: str, lower: bool = False) -> str:
    """`text`, its case folded first if asked (`fold_case`), without the characters that `charset` does not have."""
    if lower:
        text = fold_case(text, charset)
    members = _members(charset)
    return text if members.issuperset(text) else "".join(character for character in text if character in members)


def fold_ascii(text: str) -> str:
    """NFKD decomposition with everything outside ASCII dropped: `Å` becomes `A`, `½` becomes `12`, `中` vanishes."""
    return text if text.isascii() else unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def remove_whitespace(text: str) -> str:
    """`text` without any Unicode whitespace."""
    return "".join(text.split())


def adapt_to_charset(text: str, charset: str) -> str:
    """PARSeq's and SSM's charset adapter: take the charset's single case if it has only one, then keep its
    characters.
    """
    if charset == charset.lower():
        text = text.lower()
    elif charset == charset.upper():
        text = text.upper()
    return keep_only(text, charset)


def kept_by_regex_class(charset: str) -> str:
    """The characters of `charset` that survive `re.sub("[^charset]", "", text)` with the charset not escaped.

    The published loaders of SIGA-T, MGP-STR and the SSM pre-training normalise that way; with the 94 characters the
    backslash is read as an escape and deleted, the other 93 stay. A charset that is no valid class is kept whole.
    """
    try:
        outside = re.compile(f"[^{charset}]")
    except re.error:
        return charset
    return "".join(character for character in charset if not outside.match(character))


@dataclass(frozen=True)
class Normaliser:
    """Steps applied in this order to one label; call it with a `str`, it returns a `str`.

    `whitespace`: delete whitespace; `ascii_fold`: `fold_ascii`; `lower`: lower-case; `charset`: keep only these
    characters (None keeps all); `adapt`: take the charset's single case before keeping (`adapt_to_charset`).
    """

    charset: str | None = None
    lower: bool = False
    whitespace: bool = False
    ascii_fold: bool = False
    adapt: bool = False

    def prepare(self, text: str) -> str:
        """The steps before the charset, after which the length of a label is measured by PARSeq and SSM."""
        if self.whitespace:
            text = remove_whitespace(text)
        return fold_ascii(text) if self.ascii_fold else text

    def __call__(self, text: str) -> str:
        text = self.prepare(text)
        if self.charset is None:
            return text.lower() if self.lower else text
        return adapt_to_charset(text, self.charset) if self.adapt else keep_only(text, self.charset, self.lower)
