"""The published models by their command-line names, and the small variants of this repository.

`--Transformer mgp-str` or `char-str` takes `--TransformerModel`; `--Transformer ACDS-STR-Base` or `ACDS-STR-Small`
names its model itself.
"""

from __future__ import annotations

from torch import nn

from common.errors import UserError
from common.models.weights import load_strict, strip_prefix
from common.train.checkpoint import load
from projects.mgpstr.acds_str import AcdsStr
from projects.mgpstr.mgp_str import MgpStr
from projects.mgpstr.names import ACDS, MICRO, MODELS, START_WEIGHTS, TRANSFORMERS

IMAGE_SIZE = (32, 128)
ALL = {**MODELS, **MICRO}
# names in the files of DeiT and MAE that the published code leaves out: other patches, positions and classes
LEFT_OUT = ("patch_embed", "pos_embed", "head.", "dist_token", "head_dist.", "decoder", "mask_token")


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


def load_start_weights(model: nn.Module, name: str, path: str) -> str:
    """Put DeiT or MAE weights into the encoder of an MGP-STR model; returns a line for the log.

    Class token, blocks and norm are taken; patch embedding, positions and classes stay fresh, as published (spec 5.3).
    `path` "none" loads nothing and says which file the paper starts from. Raises `UserError` for a file that does not
    fit, or for ACDS-STR, which starts from nothing.
    """
    if path in ("", "none"):
        wanted = START_WEIGHTS.get(name)
        return (
            f"start: random (the paper starts from {wanted}; give it with --pretrained)" if wanted else "start: random"
        )
    if not isinstance(model, MgpStr):
        raise UserError(
            "--pretrained: ACDS-STR has no published start weights; use --saved_model for its own checkpoints"
        )
    content = load(path)
    state = strip_prefix(content.get("model", content))
    taken = {key: value for key, value in state.items() if not any(part in key for part in LEFT_OUT)}
    encoder = [key for key in model.mgp_str.state_dict() if key.startswith(("cls_token", "blocks.", "norm."))]
    own = nn.ParameterDict({key.replace(".", "/"): model.mgp_str.get_parameter(key) for key in encoder})
    report = load_strict(
        own, {key.replace(".", "/"): value for key, value in taken.items()}, what=f"--pretrained {path}"
    )
    return f"start: {len(report.kept)} tensors of {path}; patch embedding, positions and heads are fresh"
