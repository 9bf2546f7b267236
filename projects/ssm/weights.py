"""Where fine-tuning starts: pre-trained encoders by their key names, recognisers with other character sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.models.pretrained import PARSEQ_RELEASES, checkpoint_folders
from common.models.weights import ClassAxis, LoadReport, load_by_character, load_partial
from common.train.checkpoint import load
from projects.ssm.shapes import charset_of, class_of, known_names, sizes_of

FORMATS = ("ssm", "dig", "mae")


TRUNKS = ("encoder.patch_embed.", "encoder.blocks.", "model.FeatureExtraction.", "model.cnn.", "model.blocks.",
          "model.patch_embed.", "model.vision.backbone.")  # fmt: skip
"""Where the recognisers keep what an encoder checkpoint must fill."""


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
                    done[f"{at}k_bias"] = torch.zeros_like(done[f"{at}q_bias"])
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


def load_encoder(model: nn.Module, path: str, form: str | None = None, pos_embed: bool = False) -> LoadReport:
    """Start the encoder of `model` from a pre-training checkpoint; prints what was kept, is new and was dropped.

    Args:
        model: a recogniser.
        path: checkpoint of SSM, DiG or a MAE-style pre-training.
        form: one of `FORMATS`; by default the names decide.
        pos_embed: take over the position table too (published: the recogniser keeps its own).

    Raises `UserError` where a block or the patch embedding is missing or has another shape.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"model.encoder_format: {form!r} is none of {', '.join(FORMATS)}")
    state, own = tensors_of(load(path), str(path)), model.state_dict()
    form = form or format_of(state)
    found = same_attention({renamed(name, form, own) or f"other.{name}": tensor for name, tensor in state.items()}, own)
    chosen = {name: tensor for name, tensor in found if pos_embed or not name.endswith("pos_embed")}
    try:
        return load_partial(model, chosen, required=needed_of_encoder, what=f"{path} ({form} form)")
    except UserError as error:
        raise UserError(
            f"{error}\nmodel.enc_embed_dim, model.enc_depth and model.patch_size must be as in pre-training"
        ) from None


def load_pixel_encoder(model: nn.Module, path: str) -> LoadReport:
    """Start `patch_embed`, `blocks` and `norm` of a pixel model from SSM's, DiG's (`encoder.`) or CCD's checkpoint
    (`student`, `module.backbone.`). Raises `UserError` unless all of them are there in the model's shapes."""
    content = load(path)
    student = content.get("student") if isinstance(content, Mapping) else None
    state, parts = tensors_of(student or content, str(path)), ("patch_embed.", "blocks.", "norm.")
    prefix = {"mae": "backbone.", "dig": "encoder.", "ssm": ""}[format_of(state)]
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    found = same_attention({name.removeprefix(prefix): tensor for name, tensor in own.items()}, model.state_dict())
    chosen = {name: tensor for name, tensor in found if name.startswith(parts)}
    return load_partial(model, chosen, required=lambda name: name.startswith(parts), what=str(path))


def needed_of_encoder(name: str) -> bool:
    """Whether an encoder checkpoint must fill this tensor: blocks and patch embedding, but for counters of batches."""
    return name.startswith(TRUNKS) and not name.endswith(("num_batches_tracked", ".k_bias"))


def load_matching(model: nn.Module, path: str) -> LoadReport:
    """`parseq_pretrained`: of a recogniser's checkpoint every name that the model has, at least the whole encoder."""
    state = known_names(tensors_of(load(path), str(path)))
    return load_partial(model, state, required=needed_of_encoder, what=str(path))


def guess_charset(state: Mapping[str, Tensor], hyper: Mapping[str, Any], path: str) -> str:
    """The charset of a checkpoint: as it says, or the published one of as many characters as its head has."""
    if hyper.get("charset_train"):
        return str(hyper["charset_train"])
    return charset_of(state, class_of(state, path), path)


def with_sizes_of(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options with the sizes of `pretrained=`, so that the file opens without further ones.

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
    return {**options, **changed}


def load_recogniser(model: nn.Module, charset: str, path: str) -> LoadReport:
    """`pretrained=`: weights of a whole recogniser, class and token rows moved to where `charset` has them.

    Position queries of another length keep their common beginning. Raises `UserError` for another model.
    """
    path = local(path)
    content = load(path)
    state, own = known_names(tensors_of(content, path)), model.state_dict()
    hyper = content.get("hyper_parameters", {}) if isinstance(content, Mapping) else {}
    theirs, queries = guess_charset(state, hyper, path), state.get("pos_queries")
    if queries is not None and "pos_queries" in own and queries.shape[-1] == own["pos_queries"].shape[-1]:
        length = min(queries.shape[1], own["pos_queries"].shape[1])
        state["pos_queries"] = torch.cat([queries[:, :length], own["pos_queries"][:, length:]], dim=1)
    return load_by_character(model, state, class_axes(theirs, charset), required=lambda name: True, what=path)


def class_axes(before: str, after: str) -> list[ClassAxis]:
    """Where the recognisers keep one row a class: end (CTC: blank), characters, and with `more` BOS and PAD."""
    more = ("[begin]", "[pad]")
    rows = [
        ("head.*", 0, ()), ("text_embed.embedding.weight", 0, more), ("model.head.*", 0, ()),
        ("model.rnn.1.linear.*", 0, ()), ("model.Prediction.weight", 0, ()), ("model.Prediction.bias", 0, ()),
        ("model.Prediction.generator.*", 0, more), ("model.Prediction.char_embeddings.weight", 0, more),
        ("model.*.cls.*", 0, ()), ("model.language.proj.weight", 1, ()),
    ]  # fmt: skip
    return [ClassAxis(name, axis, ("[end]", *before, *last), ("[end]", *after, *last)) for name, axis, last in rows]


def local(name: str) -> str:
    """The file of `pretrained=`; of a published id the copy in torch.hub's cache, which is never downloaded here.

    Raises `UserError` where there is none, or where the cached file's hash is not the one in its name.
    """
    if Path(name).is_file() or name not in PARSEQ_RELEASES:
        return name
    release, folders = PARSEQ_RELEASES[name], checkpoint_folders()
    stem = release.name.rpartition("-")[0]
    for path in (path for folder in folders for path in sorted(folder.glob(f"{stem}-*.pt"))):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise UserError(f"pretrained: {path} is damaged: its hash is not the one in its name; download it again")
        print(f"pretrained: {name}: {path}")
        return str(path)
    raise UserError(
        f"pretrained: {name} names a release of PARSeq's authors; nothing is downloaded here, and no cache holds it: "
        f"fetch {release.url} into {folders[0]}, or give the path of the file"
    )
