"""The published models by their command-line names, and the small variants of this repository.

`--Transformer mgp-str` or `char-str` takes `--TransformerModel`; `--Transformer ACDS-STR-Base` or `ACDS-STR-Small`
names its model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.models.pretrained import DEIT_BASE, DEIT_SMALL, DEIT_TINY, MAE_LARGE, load_encoder, start_from
from common.models.weights import ClassAxis, LoadReport, load_by_character, load_strict, position_axis, unwrapped
from common.text.charset import CHARSET_36, CHARSET_94
from common.train.checkpoint import load
from projects.mgpstr.model.acds_str import AcdsStr
from projects.mgpstr.model.mgp_str import MgpStr
from projects.mgpstr.model.names import ACDS, MICRO, MODELS, TRANSFORMERS

IMAGE_SIZE = (32, 128)
ALL = {**MODELS, **MICRO}
# the encoders that the published training starts from, always; ACDS-STR's starts from random weights
START_WEIGHTS = {
    "mgp_str_tiny_patch4_3_32_128": DEIT_TINY,
    "mgp_str_small_patch4_3_32_128": DEIT_SMALL,
    "mgp_str_base_patch4_3_32_128": DEIT_BASE,
    "char_str_base_patch4_3_32_128": DEIT_BASE,
    "mgp_str_large_patch4_3_32_128": MAE_LARGE,
}


def build_model(
    transformer: str,
    model: str = "",
    num_classes: int = 38,
    length: int = 27,
    granularities: str = "char-bpe-wp",
    **sizes,
) -> nn.Module:
    """Build a model with random weights.

    Args:
        transformer: one of `TRANSFORMERS`.
        model: one of `ALL` for mgp-str and char-str; not used for ACDS.
        num_classes: characters + 2.
        length: output positions, longest label + 2.
        granularities: heads of mgp-str joined by "-"; "char" must come first.
        sizes: overrides of dim, depth, heads, patch, image_size.

    Raises `UserError` for an unknown name or a model of the other method.
    """
    if transformer in ACDS:
        return AcdsStr(num_classes, length, **{"image_size": IMAGE_SIZE, **ACDS[transformer], **sizes})
    if transformer not in TRANSFORMERS:
        raise UserError(f"--Transformer: no method is called {transformer!r}; there are {', '.join(TRANSFORMERS)}")
    if model not in ALL:
        fit = (name for name in ALL if name.startswith("char_str") == (transformer == "char-str"))
        given = f"{model!r} is none of them" if model else "not given"
        raise UserError(f"--TransformerModel: {transformer} needs one of {', '.join(fit)}; {given}")
    if (transformer == "char-str") != model.startswith("char_str"):
        raise UserError(f"--TransformerModel: {model} does not belong to --Transformer {transformer}")
    heads = ("char",) if transformer == "char-str" else tuple(granularities.split("-"))
    if heads[0] != "char" or not set(heads) <= {"char", "bpe", "wp"}:
        raise UserError(f"--granularities: {granularities!r} must be char, bpe and wp joined by '-', char first")
    return MgpStr(heads, num_classes, length, **{"image_size": IMAGE_SIZE, **ALL[model], **sizes})


def start_model(model: nn.Module, name: str, pretrained: str, download: bool) -> tuple[str, list[str]]:
    """Put the published start weights into a fresh model's encoder: (line for the log, warnings).

    Class token, blocks and norm are loaded; patch embedding, positions and classes stay random, as published (spec
    section 5.3).

    Args:
        name: of the model, which decides what its published training starts from.
        pretrained, download: the flags.

    Raises `UserError` for a file that does not have every tensor of the encoder in its shape.
    """
    start = start_from(START_WEIGHTS.get(name), pretrained, download)
    warnings = [start.warning] if start.warning else []
    if start.path is None:
        return start.line, warnings
    if not isinstance(model, MgpStr):
        raise UserError(
            "--pretrained: ACDS-STR has no published start weights; use --saved_model for its own checkpoints"
        )
    done = load_encoder(model.mgp_str, load(start.path), f"--pretrained {start.path}")
    return f"{start.line} ({done})", warnings


def compile_parts(model: nn.Module) -> None:
    """`--compile`: the encoder; the heads work on as many positions as a batch has targets, which changes each time."""
    if isinstance(model, MgpStr):
        model.mgp_str.encode = torch.compile(model.mgp_str.encode)
    else:
        model.maps_and_logits = torch.compile(model.maps_and_logits)


def build_row(
    transformer: str,
    model: str = "",
    character: str = CHARSET_36,
    batch_max_length: int = 25,
    granularities: str = "char-bpe-wp",
    **sizes: Any,
) -> nn.Module:
    """The registry's `build`: the network for a charset and an input of `imgW` columns (128).

    `pad` and `sensitive` only decide how words are read.
    """
    sizes["image_size"] = (IMAGE_SIZE[0], sizes.pop("imgW", IMAGE_SIZE[1]))
    for name in ("pad", "sensitive"):
        sizes.pop(name, None)
    return build_model(transformer, model, len(character) + 2, batch_max_length + 2, granularities, **sizes)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a published checkpoint, or the weights of a training state, strictly. Raises `UserError`."""
    state = tensors_of(path)
    explain_charset(model, unwrapped(state, model.state_dict()), str(path))
    load_strict(model, state, what=str(path))


def tensors_of(path: str | Path) -> Mapping[str, torch.Tensor]:
    """The state dict of a checkpoint or of a training state. Raises `UserError` for other contents."""
    content = load(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: no state dict of MGP-STR or ACDS-STR; give a best_accuracy.pth or iter_N.pth")
    return state


def initialise(model: nn.Module, path: str | Path, before: str | None, character: str) -> LoadReport:
    """`--init`: the weights of another run, perhaps of another charset or length, as far as they fit.

    Rows of the character classifier move to the index that their character has here, queries of the A3 module by their
    position; a table of what is kept, new and dropped is printed.

    Args:
        before: characters of the file in index order; None: the 36 or 94 that its classifier has rows for.
        character: characters of `model`.

    Raises `UserError` where a block of the encoder does not fit, or the file's characters are not known.
    """
    state = tensors_of(path)
    own = model.state_dict()
    theirs = unwrapped(state, own)
    classes = next((len(value) for name, value in theirs.items() if name.endswith("_str.char_head.weight")), 0)
    if before is None:
        before = next((known for known in (CHARSET_36, CHARSET_94) if len(known) + 2 == classes), None)
    if before is None:
        raise UserError(
            f"--init {path}: which {max(classes - 2, 0)} characters it reads is not known; put its metadata file "
            f"{Path(path).name}.json next to it"
        )
    classifiers = ("*_str.char_head.*", "*_str.head.*", "*.tokenLearner2.1.weight", "*.norm_1.*")
    axes = [ClassAxis(name, 0, ["[GO]", "[s]", *before], ["[GO]", "[s]", *character]) for name in classifiers]
    # a token learner has one query for each position of the output
    queries = [name for name in own if name.endswith((".tokenLearner.1.weight", ".tokenLearner1.1.weight"))]
    axes += [position_axis(name, theirs[name], own[name]) for name in queries if name in theirs]
    encoder = (".blocks.", ".patch_embed.", ".cnnBackbone.")
    return load_by_character(
        model, state, axes, required=lambda name: any(part in name for part in encoder), what=f"--init {path}"
    )


def explain_charset(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """A clear word for the commonest mismatch: another number of characters."""
    own = model.state_dict()
    for name, value in state.items():
        if name.endswith("_str.char_head.weight") and name in own and len(value) != len(own[name]):
            raise UserError(
                f"{what}: charset: it has {len(value) - 2} characters, this model {len(own[name]) - 2}; give the "
                "--character (or --sensitive) of its training, or move its weights to another charset with --init"
            )
