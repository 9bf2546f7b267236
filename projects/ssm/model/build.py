"""Recognisers by class name, from the arguments of the published configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn

from common.errors import UserError
from common.text.codecs import CtcCodec, EosBosPadCodec
from projects.ssm.model.abinet_reader import ABINet
from projects.ssm.model.crnn import CRNN, CTCRecogniser
from projects.ssm.model.parseq import PARSeq
from projects.ssm.model.transocr import ClusterSeq, TransOCR
from projects.ssm.model.trba import TRBA, TRBC
from projects.ssm.model.vitstr import ViTSTR

CLASSES = {cls.__name__: cls for cls in (TransOCR, ClusterSeq, PARSeq, ViTSTR, CRNN, TRBA, TRBC, ABINet)}


def build_recogniser(name: str, charset: str, arguments: Mapping) -> nn.Module:
    """The recogniser `name` for `charset`; of `arguments` those its constructor knows, the rest belongs to training.

    Raises UserError for an unknown name or sizes that do not fit.
    """
    if name not in CLASSES:
        raise UserError(f"model: {name}: unknown; choose one of {', '.join(CLASSES)}")
    cls = CLASSES[name]
    known = {**inspect.signature(cls.__mro__[1]).parameters, **inspect.signature(cls).parameters}
    options = {key: value for key, value in arguments.items() if key in known}
    for key, value in options.items():
        check_kind(key, value, known[key].annotation)
    if "patch_size" in options:
        size, patch = options.get("img_size", known["img_size"].default), options["patch_size"]
        if any(side % part for side, part in zip(size, patch)):
            raise UserError(f"model.img_size: {list(size)} is not a multiple of model.patch_size {list(patch)}")
    for key in ("img_size", "patch_size"):
        if key in options:
            options[key] = tuple(options[key])
    try:
        return cls(len(charset), **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"model {name}: {error}") from None


def check_kind(key: str, value: object, annotation: str) -> None:
    """Refuse a value that is not what the constructor's annotation says, and sizes below 1."""
    kinds = {"bool": (bool, "true or false"), "int": (int, "a whole number"), "float": ((int, float), "a number")}
    kind, told = kinds.get(annotation, (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and annotation in ("int", "float")):
        raise UserError(f"model.{key}: {value!r} is not {told}")
    least = 0 if key in ("refine_iters", "iter_size") else 1
    if annotation == "int" and value < least:
        raise UserError(f"model.{key}: {value} must be at least {least}")


def codec_for(model: nn.Module, charset: str) -> EosBosPadCodec | CtcCodec:
    """The codec that goes with a recogniser."""
    return CtcCodec(charset) if isinstance(model, CTCRecogniser) else EosBosPadCodec(charset)


def build_row(name: str, charset: str, **arguments) -> nn.Module:
    """`build_recogniser` with its arguments spread out, which is how the registry calls it."""
    return build_recogniser(name, charset, arguments)
