"""Recognisers from their checkpoints: of a run, of the published code, of PARSeq's authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from common.errors import UserError
from common.models.weights import load_strict
from common.train.checkpoint import load
from projects.ssm.finetune.config import CONFIGS
from projects.ssm.model.build import build_recogniser
from projects.ssm.shapes import class_of, known_names, sizes_of
from projects.ssm.weights import guess_charset, local, tensors_of


def parse_model_args(words: Sequence[str]) -> dict[str, Any]:
    """`name:type=value` words -> values; type is int, float, str or bool ("true", in any case, is True).

    Raises `UserError` for a word of another form.
    """
    kinds = {"int": int, "float": float, "str": str, "bool": lambda text: text.lower() == "true"}
    found: dict[str, Any] = {}
    for word in words:
        head, equals, value = word.partition("=")
        name, colon, kind = head.partition(":")
        if not (equals and colon and name) or kind not in kinds:
            raise UserError(f"{word!r}: model arguments are name:type=value with type int, float, str or bool")
        try:
            found[name] = kinds[kind](value)
        except ValueError:
            raise UserError(f"{word!r}: {value!r} is no {kind}") from None
    return found


def stock_arguments(name: str) -> dict[str, Any]:
    """The published configuration of a class, for files that say nothing about themselves."""
    group = {"TRBC": "trba"}.get(name, name.lower())
    main = OmegaConf.load(CONFIGS / "main.yaml").model
    return {
        key: value
        for key, value in OmegaConf.to_container(
            OmegaConf.merge(main, OmegaConf.load(CONFIGS / "model" / f"{group}.yaml"))
        ).items()
        if value is not None and value != "???"
    }


def open_model(
    path: str | Path, overrides: Mapping[str, Any] | None = None, standard: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """A recogniser from a checkpoint of this library, of the published code or of PARSeq's authors, with its arguments.

    Args:
        path: the file.
        overrides: constructor arguments that replace those of the file.
        standard: force the standard encoder; by default the names in the file decide.

    Raises `UserError` for a file that is no recogniser or does not fit its arguments.
    """
    path = local(str(path).removeprefix("pretrained="))
    content = load(path)
    state = known_names(tensors_of(content, path))
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    hyper = dict(hyper or {})
    name = str(hyper.get("class") or class_of(state, path))
    try:
        sizes = sizes_of(state, name)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not the weights of {name} ({error}); give a recogniser's checkpoint") from None
    options = {**stock_arguments(name), **sizes, **hyper, **(overrides or {}), "class": name}
    options["charset_train"] = guess_charset(state, options, path)
    if name == "TransOCR":
        options["standard"] = standard or "encoder.blocks.0.attn.qkv.weight" in state
    model = build_recogniser(name, options["charset_train"], options)
    load_strict(model, state, what=path)
    return model, options


def to_device(name: str) -> torch.device:
    """The published default, cuda, means CUDA if there is any."""
    from common.infer.recognizer import pick_device  # training does not read and does not load the recognizer

    if name == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: reading on the CPU")
        return torch.device("cpu")
    return pick_device(name)
