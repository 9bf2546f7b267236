"""Where fine-tuning starts: pre-trained encoders by their key names, recognisers with other character sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.models.weights import strip_prefix
from common.text.charset import CHARSET_36, CHARSET_62, CHARSET_94
from common.train.checkpoint import load

FORMATS = ("ssm", "dig", "mae")
RELEASES = ("parseq-tiny", "parseq", "abinet", "trba", "vitstr", "crnn")
SHORT = {"parseq-patch16-224": "parseq", "parseq_tiny": "parseq-tiny"}


@dataclass
class Import:
    """Names of the model that were loaded, encoder names that were not, names of the file that were not used."""

    format: str
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"encoder weights ({self.format} form): {len(self.kept)} kept; missing: {some(self.missing)}; "
            f"not used: {some(self.unused)}"
        )


def some(names: list[str], most: int = 6) -> str:
    """A few names and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint of any form: Lightning's `state_dict`, `model`, or the file itself."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    found = {name: value for name, value in items if isinstance(value, Tensor)}
    if not found:
        raise UserError(f"{what}: no weights are in it; give a checkpoint of a model")
    return strip_prefix(found)


def format_of(state: Mapping[str, Tensor]) -> str:
    """Whose encoder it is: MAE-style (`backbone.…`), DiG's (`encoder.…`), SSM's (`patch_embed.…`)."""
    if any(name.startswith("backbone.") for name in state):
        return "mae"
    return "dig" if any(name.startswith("encoder.") for name in state) else "ssm"


def renamed(name: str, form: str, own: Mapping[str, Tensor]) -> str | None:
    """The name in the model of a tensor of the file, None where it belongs to no encoder."""
    if form == "mae":
        return f"encoder{name.removeprefix('backbone')}" if name.startswith("backbone.") else None
    if form == "ssm":
        return f"encoder.{name}"
    rest = name.removeprefix("encoder.")
    # the convolutional readers keep their features elsewhere
    for candidate in (name, f"model.FeatureExtraction.{rest}", f"model.{rest}"):
        if name.startswith("encoder.") and candidate in own:
            return candidate
    return None


def load_encoder(model: nn.Module, path: str, form: str | None = None, pos_embed: bool = False) -> Import:
    """Start the encoder of `model` from a pre-training checkpoint.

    Args:
        model: a recogniser.
        path: checkpoint of SSM, DiG or a MAE-style pre-training.
        form: one of `FORMATS`; by default the names decide.
        pos_embed: take over the position table too (published: the recogniser keeps its own).

    Raises `UserError` where nothing fits or a tensor has another shape.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"model.encoder_format: {form!r} is none of {', '.join(FORMATS)}")
    state, own = tensors_of(load(path), str(path)), model.state_dict()
    report = Import(form or format_of(state))
    chosen: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = renamed(name, report.format, own)
        positions = name.endswith("pos_embed") and not pos_embed
        if target is None or target not in own or positions:
            report.unused.append(name)
        elif own[target].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model's {target} {tuple(own[target].shape)}: give "
                "model.enc_embed_dim, model.enc_num_heads and model.patch_size as in pre-training"
            )
        else:
            chosen[target] = tensor
    report.kept = list(chosen)
    report.missing = [name for name in own if name.startswith("encoder.") and name not in chosen]
    if not chosen:
        raise UserError(f"{path}: none of its {len(state)} tensors belongs to this encoder: {some(list(state), 3)}")
    model.load_state_dict(chosen, strict=False)
    if any("linear_q" in name for name in report.unused):
        print("the file holds an encoder with separate projections; model.standard=false builds that one")
    return report


def load_matching(model: nn.Module, path: str) -> Import:
    """`parseq_pretrained`: of a recogniser's checkpoint every name that the model has. Shapes must agree."""
    state, own = tensors_of(load(path), str(path)), model.state_dict()
    chosen = {name: tensor for name, tensor in state.items() if name in own}
    other = [name for name in chosen if own[name].shape != chosen[name].shape]
    if other or not chosen:
        told = f"other shapes: {some(other)}" if other else "no name of it is in the model"
        raise UserError(f"{path}: {told}; for another charset or length use pretrained=")
    model.load_state_dict(chosen, strict=False)
    unused = [name for name in state if name not in own]
    return Import("recogniser", list(chosen), [name for name in own if name not in chosen], unused)


@dataclass
class Remapping:
    """Characters whose rows were taken over, those new to the model, those of the file that it has not."""

    kept: str
    new: str
    dropped: str
    adjusted: list[str]
    fresh: list[str]

    def __str__(self) -> str:
        rows = [("kept", self.kept), ("new", self.new), ("dropped", self.dropped)]
        lines = ["characters | count | which", "---|---|---"]
        lines += [f"{name} | {len(chars)} | {chars[:100]}" for name, chars in rows]
        lines.append(f"tensors remapped: {some(self.adjusted)}; left as they were: {some(self.fresh)}")
        return "\n".join(lines)


def guess_charset(state: Mapping[str, Tensor], hyper: Mapping[str, Any], path: str) -> str:
    """The charset of a checkpoint: as it says, or by the size of its token embedding or head."""
    if hyper.get("charset_train"):
        return str(hyper["charset_train"])
    sizes = {len(charset) + extra: charset for charset in (CHARSET_36, CHARSET_62, CHARSET_94) for extra in (1, 3)}
    for name in ("head.bias", "text_embed.embedding.weight", "model.head.bias"):
        if name in state and len(state[name]) in sizes:
            return sizes[len(state[name])]
    raise UserError(f"{path}: its character set is not known; give a checkpoint with hyper_parameters")


def load_recogniser(model: nn.Module, charset: str, path: str) -> Remapping:
    """`pretrained=`: weights of a whole recogniser, class and token rows moved to where `charset` has them.

    Position tables of another length keep their common beginning. Raises `UserError` for another model.
    """
    content = load(local(path))
    state = tensors_of(content, path)
    hyper = content.get("hyper_parameters", {}) if isinstance(content, Mapping) else {}
    theirs, own = guess_charset(state, hyper, path), model.state_dict()
    result = Remapping(
        "".join(c for c in theirs if c in charset), "".join(c for c in charset if c not in theirs),
        "".join(c for c in theirs if c not in charset), [], [name for name in own if name not in state],
    )  # fmt: skip
    if len(result.fresh) > len(own) // 2:
        raise UserError(f"{path}: it holds another model: {some(list(state), 3)}; here {some(list(own), 3)}")
    for name, target in own.items():
        source = state.get(name)
        if source is None:
            continue
        if source.shape == target.shape and theirs == charset:
            own[name] = source
            continue
        fitted = fit(source, target, theirs, charset)
        if fitted is None:
            raise UserError(
                f"{path}: {name} is {tuple(source.shape)}, the model's is {tuple(target.shape)}, and it is no matter "
                "of characters or length: it is another model"
            )
        if fitted is not source:
            result.adjusted.append(name)
        own[name] = fitted
    model.load_state_dict(own)
    return result


def local(name: str) -> str:
    """The file of `pretrained=`; published ids are not fetched."""
    if not Path(name).is_file() and name in RELEASES:
        raise UserError(
            f"pretrained: {name} names a release of PARSeq's authors; nothing is fetched here: give the path of the "
            "downloaded file"
        )
    return name


def fit(source: Tensor, target: Tensor, theirs: str, ours: str) -> Tensor | None:
    """`source` in the shape of `target`: rows by character, lengths by their beginning; None where that cannot be."""
    if source.ndim != target.ndim:
        return None
    result = source
    for axis in range(source.ndim):
        for extra in (1, 3):
            if (source.shape[axis], target.shape[axis]) == (len(theirs) + extra, len(ours) + extra):
                result = by_character(result, target, axis, theirs, ours)
                break
        else:
            if source.shape[axis] != target.shape[axis]:
                if source.ndim != 3 or axis != 1:  # only position tables [1, T, d] may change their length
                    return None
                result = by_beginning(result, target, axis)
    return result


def by_character(source: Tensor, target: Tensor, axis: int, theirs: str, ours: str) -> Tensor:
    """Move the rows along `axis`: end (0), characters, then BOS and PAD if there are any. New rows are the target's."""
    if theirs == ours:
        return source
    shape = [size if other == axis else source.shape[other] for other, size in enumerate(target.shape)]
    if list(target.shape) == shape:
        result = target.clone()
    else:
        result = source.new_zeros(shape)
    places = {character: index + 1 for index, character in enumerate(theirs)}
    pairs = [(0, 0), *((i + 1, places[c]) for i, c in enumerate(ours) if c in places)]
    pairs += [(len(ours) + 1 + k, len(theirs) + 1 + k) for k in range(source.shape[axis] - len(theirs) - 1)]
    to, origin = (torch.tensor(column) for column in zip(*pairs))
    return result.index_copy(axis, to, source.index_select(axis, origin).to(result.dtype))


def by_beginning(source: Tensor, target: Tensor, axis: int) -> Tensor:
    """The target with its beginning along `axis` replaced by the source's."""
    result = target.clone()
    length = min(source.shape[axis], target.shape[axis])
    result.narrow(axis, 0, length).copy_(source.narrow(axis, 0, length))
    return result
