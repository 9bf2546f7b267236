"""Recognisers by class name, from the arguments of the published configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn

from common.errors import UserError
from common.text.codecs import CtcCodec, EosBosPadCodec
from projects.ssm.models.abinet_reader import ABINet
from projects.ssm.models.crnn import CRNN, CTCRecogniser
from projects.ssm.models.parseq import PARSeq
from projects.ssm.models.transocr import ClusterSeq, TransOCR
from projects.ssm.models.trba import TRBA, TRBC
from projects.ssm.models.vitstr import ViTSTR

CLASSES = {cls.__name__: cls for cls in (TransOCR, ClusterSeq, PARSeq, ViTSTR, CRNN, TRBA, TRBC, ABINet)}


def build_recogniser(name: str, charset: str, arguments: Mapping) -> nn.Module:
    """The recogniser `name` for `charset`; of `arguments` those its constructor knows, the rest belongs to training.

    Raises UserError for an unknown name or sizes that do not fit.
    """
    if name not in CLASSES:
        raise UserError(f"model: {name}: unknown; choose one of {', '.join(CLASSES)}")
    cls = CLASSES[name]
    known = set(inspect.signature(cls).parameters) | set(inspect.signature(cls.__mro__[1]).parameters)
    options = {key: value for key, value in arguments.items() if key in known}
    for key in ("img_size", "patch_size"):
        if key in options:
            options[key] = tuple(options[key])
    try:
        return cls(len(charset), **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"model {name}: {error}") from None


def codec_for(model: nn.Module, charset: str) -> EosBosPadCodec | CtcCodec:
    """The codec that goes with a recogniser."""
    return CtcCodec(charset) if isinstance(model, CTCRecogniser) else EosBosPadCodec(charset)


def build_row(name: str, charset: str, **arguments) -> nn.Module:
    """A registry row's recogniser."""
    return build_recogniser(name, charset, arguments)
