"""The three evaluation protocols of word recognition: which characters count, and whether case does; and the plain
comparison of what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.text.charset import CHARSET_36, CHARSET_62, CHARSET_94
from common.text.normalise import keep_only


@dataclass(frozen=True)
class Protocol:
    """`name` (36, 62, 94 or exact), the characters that count ("": all), and whether case is ignored."""

    name: str
    charset: str
    lower: bool

    def normalise(self, text: str) -> str:
        """Return the part of `text` that this protocol compares."""
        return keep_only(text, self.charset, self.lower) if self.charset else text

    def accuracy(self, predictions: Sequence[str], labels: Sequence[str]) -> tuple[float, int]:
        """(share in [0, 1] of exactly equal words, number of words counted); labels that are empty under the
        protocol do not count.

        The share of no word at all is NaN.
        """
        pairs = [
            (self.normalise(prediction), self.normalise(label))
            for prediction, label in zip(predictions, labels, strict=True)
        ]
        counted = [prediction == label for prediction, label in pairs if label]
        return (sum(counted) / len(counted) if counted else float("nan")), len(counted)


PROTOCOL_36 = Protocol("36", CHARSET_36, lower=True)  # letters and digits, case ignored
PROTOCOL_62 = Protocol("62", CHARSET_62, lower=False)  # letters and digits, case matters
PROTOCOL_94 = Protocol("94", CHARSET_94, lower=False)  # with the ASCII punctuation
PROTOCOLS = (PROTOCOL_36, PROTOCOL_62, PROTOCOL_94)
EXACT = Protocol("exact", "", lower=False)  # also for characters that no published protocol knows


def accuracy_36(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Word accuracy in [0, 1] over letters and digits, case ignored; labels without any of them are skipped."""
    return PROTOCOL_36.accuracy(predictions, labels)[0]


def accuracy_62(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Word accuracy in [0, 1] over letters and digits, case-sensitive; labels without any of them are skipped."""
    return PROTOCOL_62.accuracy(predictions, labels)[0]


def accuracy_94(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Word accuracy in [0, 1] over the 94 printable ASCII characters; labels without any of them are skipped."""
    return PROTOCOL_94.accuracy(predictions, labels)[0]
