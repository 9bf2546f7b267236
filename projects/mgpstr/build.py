"""The published models by their command-line names, and the small variants of this repository.

`--Transformer mgp-str` or `char-str` takes `--TransformerModel`; `--Transformer ACDS-STR-Base` or `ACDS-STR-Small` names its model itself.
"""

from __future__ import annotations

from torch import nn

from common.errors import UserError
from projects.mgpstr.acds_str import AcdsStr
from projects.mgpstr.mgp_str import MgpStr

IMAGE_SIZE = (32, 128)
SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
}
# ours, for machines without a GPU: 1.1 M parameters in the encoder, 64 tokens instead of 256
MICRO = {"dim": 128, "depth": 6, "heads": 4, "patch": 8}
MODELS = {
    **{f"mgp_str_{size}_patch4_3_32_128": sizes for size, sizes in SIZES.items()},
    "char_str_base_patch4_3_32_128": SIZES["base"],
    "mgp_str_micro_patch8_3_32_128": MICRO,
    "char_str_micro_patch8_3_32_128": MICRO,
}
ACDS = {
    "ACDS-STR-Base": {"depth": 10, "first_guided": 7, "dim": 768, "heads": 12},
    "ACDS-STR-Small": {"depth": 6, "first_guided": 3, "dim": 768, "heads": 12},
    "ACDS-STR-Micro": {"depth": 4, "first_guided": 1, "dim": 128, "heads": 4, "stage_widths": (16, 16, 24, 32, 48, 64)},
}
TRANSFORMERS = ("mgp-str", "char-str", *ACDS)
# files of pre-trained encoders that the published training starts from
START_WEIGHTS = {
    "mgp_str_tiny_patch4_3_32_128": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    "mgp_str_small_patch4_3_32_128": "deit_small_distilled_patch16_224-649709d9.pth",
    "mgp_str_base_patch4_3_32_128": "deit_base_patch16_224-b5f2ef4d.pth",
    "char_str_base_patch4_3_32_128": "deit_base_patch16_224-b5f2ef4d.pth",
    "mgp_str_large_patch4_3_32_128": "mae_pretrain_vit_large.pth",
}


def build_model(transformer: str, model: str = "", num_classes: int = 38, length: int = 27, granularities: str = "char-bpe-wp", **sizes) -> nn.Module:
    """Build a model with random weights.

    Args:
        transformer: one of `TRANSFORMERS`.
        model: one of `MODELS` for mgp-str and char-str; not used for ACDS.
        num_classes: characters + 2.
        length: output positions, longest label + 2.
        granularities: heads of mgp-str joined by "-"; "char" must come first.
        sizes: overrides of dim, depth, heads (tests).

    Raises `UserError` for an unknown name or a model of the other method.
    """
    if transformer in ACDS:
        return AcdsStr(num_classes, length, image_size=IMAGE_SIZE, **{**ACDS[transformer], **sizes})
    if transformer not in TRANSFORMERS:
        raise UserError(f"--Transformer: no method is called {transformer!r}; there are {', '.join(TRANSFORMERS)}")
    if model not in MODELS:
        raise UserError(f"--TransformerModel: {transformer} needs one of {', '.join(MODELS)}; got {model!r}")
    if (transformer == "char-str") != model.startswith("char_str"):
        raise UserError(f"--TransformerModel: {model} does not belong to --Transformer {transformer}")
    heads = ("char",) if transformer == "char-str" else tuple(granularities.split("-"))
    if heads[0] != "char" or not set(heads) <= {"char", "bpe", "wp"}:
        raise UserError(f"--granularities: {granularities!r} must be char, bpe and wp joined by '-', char first")
    return MgpStr(heads, num_classes, length, image_size=IMAGE_SIZE, **{**MODELS[model], **sizes})
