"""DiG's character sets by the names of `--voc_type`."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from common.text.charset import NAMED
from common.text.codecs import EosPadUnkCodec

VOCABULARIES = ("LOWERCASE", "ALLCASES", "ALLCASES_SYMBOLS")
SPECIALS = 3  # EOS, PADDING, UNKNOWN


def codec(voc_type: str, max_len: int) -> EosPadUnkCodec:
    return EosPadUnkCodec(NAMED[voc_type], max_len)


def equal_words(found: Tensor, wanted: Tensor, codec: EosPadUnkCodec) -> Tensor:
    """Which rows of ids `[B, L]` read the same word as those of `wanted`, bool `[B]`, on the tensors' device.

    Letters and digits up to the first end count, case ignored: the published metric without leaving the device.
    """
    folded = ["0123456789abcdefghijklmnopqrstuvwxyz".find(character.lower()) + 1 for character in codec.charset]
    table = torch.tensor([*folded, *[0] * SPECIALS], device=found.device)

    def kept(ids: Tensor) -> Tensor:
        ended = (ids == codec.end).cumsum(1) > 0
        characters = table[ids].masked_fill(ended, 0)
        return characters.gather(1, (characters == 0).int().argsort(dim=1, stable=True))  # dropped ones to the end

    return (kept(found) == kept(wanted)).all(1)


def codec_of_classes(classes: int, max_len: int) -> EosPadUnkCodec:
    """The codec whose size is `--nb_classes`: 71, 65 or 97. Raises `UserError` for another number."""
    for name in VOCABULARIES:
        if len(NAMED[name]) + SPECIALS == classes:
            return codec(name, max_len)
    raise UserError(f"--nb_classes: {classes} fits no --voc_type; use {sizes()}")


def sizes() -> str:
    """The class counts in words, for messages."""
    return ", ".join(f"{len(NAMED[name]) + SPECIALS} for {name}" for name in VOCABULARIES)


def check_classes(classes: int, charset: str, name: str) -> None:
    """Raise `UserError` where `--nb_classes` is not the size of the charset `name` with its three special classes."""
    expected = len(charset) + SPECIALS
    if classes != expected:
        raise UserError(f"--nb_classes: {classes} does not fit {name}, which has {expected} classes; use {sizes()}")


def classes_of(charset: str) -> list[str]:
    """A name for every class, in the order of the ids; the decoder's embedding has one more row, for the begin."""
    return [*charset, "[end]", "[padding]", "[unknown]"]
