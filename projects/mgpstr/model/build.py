"""The published models by their command-line names, and the small variants of this repository.

`--Transformer mgp-str` or `char-str` takes `--TransformerModel`; `--Transformer ACDS-STR-Base` or `ACDS-STR-Small`
names its model itself.
"""

from __future__ import annotations

import torch
from torch import nn

from common.errors import UserError
from common.models.pretrained import DEIT_BASE, DEIT_SMALL, DEIT_TINY, MAE_LARGE, load_encoder, start_from
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
        sizes: overrides of dim, depth, heads, patch.

    Raises `UserError` for an unknown name or a model of the other method.
    """
    if transformer in ACDS:
        return AcdsStr(num_classes, length, image_size=IMAGE_SIZE, **{**ACDS[transformer], **sizes})
    if transformer not in TRANSFORMERS:
        raise UserError(f"--Transformer: no method is called {transformer!r}; there are {', '.join(TRANSFORMERS)}")
    if model not in ALL:
        raise UserError(f"--TransformerModel: {transformer} needs one of {', '.join(ALL)}; got {model!r}")
    if (transformer == "char-str") != model.startswith("char_str"):
        raise UserError(f"--TransformerModel: {model} does not belong to --Transformer {transformer}")
    heads = ("char",) if transformer == "char-str" else tuple(granularities.split("-"))
    if heads[0] != "char" or not set(heads) <= {"char", "bpe", "wp"}:
        raise UserError(f"--granularities: {granularities!r} must be char, bpe and wp joined by '-', char first")
    return MgpStr(heads, num_classes, length, image_size=IMAGE_SIZE, **{**ALL[model], **sizes})


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
