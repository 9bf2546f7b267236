"""Where fine-tuning starts: pre-trained encoders by their key names, recognisers with other character sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.train.checkpoint import load
from projects.ssm.finetune.shapes import charset_of, class_of, known_names, sizes_of

FORMATS = ("ssm", "dig", "mae")
RELEASES = ("parseq-tiny", "parseq", "abinet", "trba", "vitstr", "crnn")


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

    def check(self, what: str, own: Mapping[str, Tensor]) -> None:
        """Raise `UserError` unless every block and the patch embedding of the encoder are kept."""
        lacking = [
            name for name in self.missing if name.startswith(TRUNKS) and not name.endswith("num_batches_tracked")
        ]
        wanted = sum(name.startswith(TRUNKS) for name in own)
        if lacking or not self.kept:
            raise UserError(
                f"{what}: {wanted - len(lacking)} of the {wanted} tensors of the encoder's blocks and patch embedding "
                f"are in it ({self.format} form); missing: {some(lacking)}; not used: {some(self.unused, 3)}; is it "
                "another model, or another model.enc_depth?"
            )


TRUNKS = ("encoder.patch_embed.", "encoder.blocks.", "model.FeatureExtraction.", "model.cnn.", "model.blocks.",
          "model.patch_embed.", "model.vision.backbone.")  # fmt: skip
"""Where the recognisers keep what an encoder checkpoint must fill."""


def some(names: list[str], most: int = 6) -> str:
    """A few names and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint of any form: Lightning's `state_dict`, `model`, or the file itself.

    What DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) put into names is taken out.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    found = {name: value for name, value in items if isinstance(value, Tensor)}
    if not found:
        raise UserError(f"{what}: no weights are in it; give a checkpoint of a model")
    return {".".join(w for w in name.split(".") if w not in ("module", "_orig_mod")): t for name, t in found.items()}


def registry_entry(content: Any) -> str | None:
    """The registry's `RECOGNISE`: which recogniser a checkpoint without metadata holds, None for another file."""
    try:
        return f"ssm/{class_of(known_names(tensors_of(content, '')), '')}"
    except UserError:
        return None


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
    return name if name.startswith("encoder.") else None


def same_attention(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors with every attention in the form that the model has: one fused `qkv`, or three projections.

    DiG keeps a fused matrix and biases for queries and values only, SSM's encoder one bias for all three, the encoder
    of `standard=false` three matrices. A bias of the keys moves all scores of a query alike, so it may be left at 0.
    """
    done = dict(state)
    for name in state:
        prefix, found, _ = name.partition(".attn.qkv.weight")
        at = f"{prefix}.attn."
        if found:
            q_bias = state.get(f"{at}q_bias")
            if q_bias is not None and f"{at}v_bias" in state:
                done[f"{at}qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), state[f"{at}v_bias"]])
            if f"{at}linear_q.weight" in own:
                for part, rows in zip("qkv", done.pop(f"{at}qkv.weight").chunk(3)):
                    done[f"{at}linear_{part}.weight"] = rows
                if f"{at}qkv.bias" in done:
                    done[f"{at}q_bias"], _, done[f"{at}v_bias"] = done.pop(f"{at}qkv.bias").chunk(3)
            elif q_bias is not None:
                done.pop(f"{at}q_bias"), done.pop(f"{at}v_bias"), done.pop(f"{at}k_bias", None)
        prefix, found, _ = name.partition(".attn.linear_q.weight")
        at = f"{prefix}.attn."
        if found and f"{at}qkv.weight" in own:
            done[f"{at}qkv.weight"] = torch.cat([done.pop(f"{at}linear_{part}.weight") for part in "qkv"])
            biases = [done.pop(f"{at}{part}_bias", None) for part in "qkv"]
            if biases[0] is not None and biases[2] is not None:
                key_bias = torch.zeros_like(biases[0]) if biases[1] is None else biases[1]
                done[f"{at}qkv.bias"] = torch.cat([biases[0], key_bias, biases[2]])
    yield from done.items()


def load_encoder(model: nn.Module, path: str, form: str | None = None, pos_embed: bool = False) -> Import:
    """Start the encoder of `model` from a pre-training checkpoint.

    Args:
        model: a recogniser.
        path: checkpoint of SSM, DiG or a MAE-style pre-training.
        form: one of `FORMATS`; by default the names decide.
        pos_embed: take over the position table too (published: the recogniser keeps its own).

    Raises `UserError` where a block or the patch embedding is missing, or a tensor has another shape.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"model.encoder_format: {form!r} is none of {', '.join(FORMATS)}")
    state, own = tensors_of(load(path), str(path)), model.state_dict()
    report = Import(form or format_of(state))
    targets: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = renamed(name, report.format, own)
        if target is None:
            report.unused.append(name)
        else:
            targets[target] = tensor
    chosen: dict[str, Tensor] = {}
    for name, tensor in same_attention(targets, own):
        if name not in own or (name.endswith("pos_embed") and not pos_embed):
            report.unused.append(name)
        elif own[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}: give "
                "model.enc_embed_dim, model.enc_num_heads and model.patch_size as in pre-training"
            )
        else:
            chosen[name] = tensor
    report.kept = list(chosen)
    report.missing = [
        name for name in own
        if name not in chosen and name.startswith(("encoder.", *TRUNKS)) and not name.endswith(".k_bias")
    ]  # fmt: skip
    report.check(str(path), own)
    model.load_state_dict(chosen, strict=False)
    return report


def load_matching(model: nn.Module, path: str) -> Import:
    """`parseq_pretrained`: of a recogniser's checkpoint every name that the model has. Shapes must agree."""
    state, own = known_names(tensors_of(load(path), str(path))), model.state_dict()
    chosen = {name: tensor for name, tensor in state.items() if name in own}
    other = [name for name in chosen if own[name].shape != chosen[name].shape]
    if other:
        raise UserError(f"{path}: other shapes: {some(other)}; for another charset or length use pretrained=")
    unused = [name for name in state if name not in own]
    report = Import("recogniser", list(chosen), [name for name in own if name not in chosen], unused)
    report.check(str(path), own)
    model.load_state_dict(chosen, strict=False)
    return report


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
    """The charset of a checkpoint: as it says, or the published one of as many characters as its head has."""
    if hyper.get("charset_train"):
        return str(hyper["charset_train"])
    return charset_of(state, class_of(state, path), path)


def take_sizes(options: dict[str, Any], path: str) -> None:
    """Set the sizes of `pretrained=` in the model's options, so that the file opens without further ones.

    Picture size and word length stay as configured. Raises `UserError` for a file of another recogniser.
    """
    content = load(local(path))
    state = known_names(tensors_of(content, path))
    hyper = (content.get("hyper_parameters") if isinstance(content, Mapping) else None) or {}
    name = class_of(state, path)
    if options["class"] != name and not {options["class"], name} <= {"TransOCR", "ClusterSeq"}:
        raise UserError(f"pretrained: {path} holds another model, {name}; choose it with model={name.lower()}")
    found = sizes_of(state, name)
    found = {key: hyper.get(key, found[key]) for key in found if key not in ("img_size", "max_label_length")}
    if name == "TransOCR":
        found["standard"] = "encoder.blocks.0.attn.qkv.weight" in state
    changed = {key: value for key, value in found.items() if options.get(key) != value}
    if changed:
        print("pretrained: sizes of the file are used: " + ", ".join(f"model.{k}={v}" for k, v in changed.items()))
        options.update(changed)


def load_recogniser(model: nn.Module, charset: str, path: str) -> Remapping:
    """`pretrained=`: weights of a whole recogniser, class and token rows moved to where `charset` has them.

    Position tables of another length keep their common beginning. Raises `UserError` for another model.
    """
    content = load(local(path))
    state = known_names(tensors_of(content, path))
    hyper = content.get("hyper_parameters", {}) if isinstance(content, Mapping) else {}
    theirs, own = guess_charset(state, hyper, path), model.state_dict()
    result = Remapping(
        "".join(c for c in theirs if c in charset), "".join(c for c in charset if c not in theirs),
        "".join(c for c in theirs if c not in charset), [], [name for name in own if name not in state],
    )  # fmt: skip
    if result.fresh:
        raise UserError(
            f"{path}: it holds another model: {len(result.fresh)} of the {len(own)} tensors are not in it, "
            f"{some(result.fresh, 3)}; it has {some(list(state), 3)}"
        )
    for name, target in own.items():
        source = state[name]
        if source.shape == target.shape and theirs == charset:
            own[name] = source
            continue
        fitted = fit(source, target, theirs, charset) if name != "encoder.pos_embed" else None
        if source.shape == target.shape and fitted is None:
            fitted = source
        if fitted is None:
            raise UserError(
                f"{path}: {name} is {tuple(source.shape)}, the model's is {tuple(target.shape)}, and it is no matter "
                "of characters or length: it is another model, or another model.img_size or model.patch_size"
            )
        if fitted is not source:
            result.adjusted.append(name)
        own[name] = fitted
    model.load_state_dict(own)
    return result


def local(name: str) -> str:
    """The file of `pretrained=`; of a published id the copy in torch.hub's cache, which is never downloaded here.

    Raises `UserError` where there is none, or where the cached file's hash is not the one in its name.
    """
    if Path(name).is_file() or name not in RELEASES:
        return name
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for path in sorted(cache.glob(f"{name.replace('-', '_')}-*.pt")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise UserError(f"pretrained: {path} is damaged: its hash is not the one in its name; download it again")
        print(f"pretrained: {name}: {path}")
        return str(path)
    raise UserError(
        f"pretrained: {name} names a release of PARSeq's authors; nothing is downloaded here, and {cache} does not "
        "hold it: give the path of the downloaded file"
    )


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
