"""DiG's character sets by the names of `--voc_type`, and the metric that it prints."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError
from common.text.charset import CHARSET_36, NAMED
from common.text.codecs import EosPadUnkCodec
from common.text.normalise import keep_only

VOCABULARIES = ("LOWERCASE", "ALLCASES", "ALLCASES_SYMBOLS")
SPECIALS = 3  # EOS, PADDING, UNKNOWN


def codec(voc_type: str, max_len: int) -> EosPadUnkCodec:
    """The codec of a `--voc_type`."""
    return EosPadUnkCodec(NAMED[voc_type], max_len)


def codec_of_classes(classes: int, max_len: int) -> EosPadUnkCodec:
    """The codec whose size is `--nb_classes`: 71, 65 or 97. Raises `UserError` for another number."""
    for name in VOCABULARIES:
        if len(NAMED[name]) + SPECIALS == classes:
            return codec(name, max_len)
    raise UserError(f"--nb_classes: {classes} fits no --voc_type; use {sizes()}")


def sizes() -> str:
    """The class counts in words, for messages."""
    return ", ".join(f"{len(NAMED[name]) + SPECIALS} for {name}" for name in VOCABULARIES)


def check_classes(classes: int, voc_type: str) -> None:
    """Raise `UserError` where `--nb_classes` is not the size of the charset with its three special classes."""
    expected = len(NAMED[voc_type]) + SPECIALS
    if classes != expected:
        raise UserError(
            f"--nb_classes: {classes} does not fit --voc_type {voc_type}, which has {expected} classes; use {sizes()}"
        )


def published_form(text: str) -> str:
    """What the published metric compares: digits and letters only, lower case."""
    # lower-cased after the selection: a letter such as the Kelvin sign must vanish, not become a k
    return keep_only(text, CHARSET_36 + CHARSET_36.upper()).lower()


def set_f_measure(prediction: str, label: str) -> float:
    """Published `recognition_fmeasure` of one pair: F of the *sets* of characters, in [0, 1]; empty pairs give 0."""
    predicted, expected = set(published_form(prediction)), set(published_form(label))
    hits = len(predicted & expected)
    precision, recall = hits / (len(predicted) + 1e-5), hits / (len(expected) + 1e-5)
    return 2 * precision * recall / (precision + recall + 1e-5)


def published_accuracy(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Share of pairs equal in the published form; two empty forms are equal."""
    return sum(published_form(p) == published_form(g) for p, g in zip(predictions, labels)) / max(len(labels), 1)
