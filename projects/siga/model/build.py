"""SIGA recognisers (Guan et al., "Self-Supervised Implicit Glyph Attention for Text Recognition", CVPR 2023).

    model = build_siga("TRBA", num_class=37)
    output = model(images, text[:, :-1], masks)            # training: all seven decoders, teacher forced
    losses = model.losses(output, text, lengths, step)     # losses.total, losses.parts
    reading, maps = model.read(images)                     # inference: the Share branch alone

Images are float [B, 3, H, W]; text ids int64 [B, T+1] with the start id in column 0; lengths count the end symbol;
masks are float [B, 1, H, W] of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.models.pretrained import DEIT_BASE, load_encoder, start_from
from common.models.weights import (
    ClassAxis,
    LoadReport,
    load_by_character,
    load_strict,
    position_axis,
    strip_prefix,
    unwrapped,
)
from common.text.charset import CHARSET_36, CHARSET_94, SIGA_36, SIGA_94
from common.text.codecs import GlyphCodec, GoCodec
from common.train.checkpoint import load, read_card
from projects.siga.model.base import SigaModel
from projects.siga.model.char_str import CharStrModel
from projects.siga.model.two_unit import TwoUnitModel
from projects.siga.model.variants import variant

Codec = GlyphCodec | GoCodec


def make_codec(family: str, character: str | None, batch_max_length: int) -> Codec:
    """Text <-> ids of R, S (end = padding = 0, start = number of classes) or T ([GO] 0, [s] 1); without `character`
    the published one."""
    if family == "T":
        return GoCodec(character or CHARSET_36, batch_max_length)
    return GlyphCodec(character or SIGA_36, batch_max_length + 1, truncate=family == "R")


def build_row(name: str, character: str | None = None, batch_max_length: int = 25, **options: Any) -> SigaModel:
    """The variant with as many classes as `character` asks for, as the registry and metadata files name it; see
    `build_siga` for the rest."""
    codec = make_codec(variant(name).family, character, batch_max_length)
    if options.get("image_size"):
        options["image_size"] = tuple(options["image_size"])
    return build_siga(name, num_class=codec.num_classes, batch_max_length=batch_max_length, **options)


def build_siga(
    name: str,
    *,
    num_class: int | None = None,
    batch_max_length: int = 25,
    image_size: tuple[int, int] | None = None,
    num_fiducial: int = 20,
    input_channel: int = 3,
    output_channel: int | None = None,
    hidden_size: int | None = None,
    rectify_masks: bool | None = None,
    freeze_tps: bool | None = None,
) -> SigaModel:
    """The model called `name` (TRBA, RBA, TSBA, char_str_base_patch4_3_32_128, their `_small` forms or an alias).

    `num_class`: classes of the codec, by default 37 (R, S: end + 36 characters) or 38 (T: start, end + 36).
    `image_size` (H, W), `num_fiducial`, `output_channel` (columns' width) and `hidden_size` replace the variant's own
    values. `rectify_masks`: send the pseudo-mask through the image's TPS (published: R yes, S no). `freeze_tps`: keep
    the rectification out of training, right only with loaded TPS weights (default: yes for the published variants).
    Raises UserError where the sizes do not fit.
    """
    settings = variant(name)
    # a published checkpoint fits the variant's own sizes only
    given = {"image_size": image_size, "fiducials": num_fiducial, "columns": output_channel, "hidden": hidden_size}
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    check_sizes(settings.family, settings.image_size, num_fiducial)
    if settings.family == "T":
        return CharStrModel(settings, num_class or 38, batch_max_length, input_channel=input_channel)
    model = TwoUnitModel(
        settings,
        num_class or 37,
        batch_max_length,
        input_channel=input_channel,
        rectify_masks=rectify_masks,
        identity_tps=not settings.published,
    )
    if freeze_tps is not None:
        model.freeze_tps(freeze_tps)
    return model


def check_sizes(family: str, image_size: tuple[int, int], num_fiducial: int) -> None:
    """Refuse sizes the architectures cannot take."""
    height, width = image_size
    heights = {"R": (32,), "S": (32, 48), "T": (32,)}[family]
    if height not in heights or width % 8:
        wanted = " or ".join(map(str, heights))
        raise UserError(
            f"--imgH/--imgW: {height} x {width}: this model takes height {wanted} and a width that 8 divides"
        )
    if num_fiducial % 2 or num_fiducial < 4:
        raise UserError(f"--num_fiducial: {num_fiducial}: must be even and at least 4")


def init_published(model: SigaModel) -> None:
    """The start of R and S without a checkpoint: biases 0, matrices Kaiming-normal (fan in), vectors called weight 1.

    Also LSTMs and embeddings, as published; not the fiducial layer, positions and buffers. T keeps its constructors'
    start.
    """
    if model.settings.family == "T":
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "localization_fc2" in name or "pos_embed" in name:
                continue
            if "bias" in name:
                parameter.zero_()
            elif "weight" in name and parameter.ndim >= 2:
                nn.init.kaiming_normal_(parameter)
            elif "weight" in name:
                parameter.fill_(1.0)


def start_model(
    model: SigaModel,
    tps: str,
    pretrained: str,
    download: bool,
    start: tuple[str, Any] | None = None,
    init: str = "",
    character: str = "",
) -> tuple[list[str], list[str]]:
    """Load `--init`, `--tps` and `--pretrained` into a fresh model and settle whether its rectification is trained.

    `start`: path and content of the checkpoint or training state that the run continues from; `character`: of the
    model. Returns lines for the log, and warnings.

    Raises:
        UserError: a file that does not fit, or a flag that this variant has no use for.
    """
    lines, variant = [], model.settings
    if init and start is None:
        start = (init, load(init))
        lines.append(initialise(model, *start, character))
    if variant.family == "T":
        if start is not None:
            return lines, []
        begin = start_from(DEIT_BASE if variant.published else None, pretrained, download)
        loaded = f" ({load_encoder(model.mgp_str, load(begin.path), str(begin.path))})" if begin.path else ""
        return [begin.line + loaded], [begin.warning] if begin.warning else []
    if tps == "auto":  # the published code loads ./TPS.pth into a fresh model
        here = start is None and variant.has_tps and variant.published and Path("TPS.pth").is_file()
        tps = "TPS.pth" if here else "none"
    if tps not in ("", "none"):
        if not variant.has_tps:
            raise UserError(f"--tps: {variant.name} has no rectification; leave the flag out")
        load_tps(model, load(tps), what=tps)
        lines.append(f"TPS: weights from {tps}, frozen")
    elif variant.has_tps:
        lines.append(settle_tps(model, start))
    if pretrained:
        raise UserError(f"--pretrained: {variant.name} is trained from scratch; only T starts from a ViT")
    return lines, []


def initialise(model: SigaModel, path: str, content: Any, character: str) -> str:
    """`--init`: the weights of another run, perhaps of another charset or word length, as far as they fit.

    Rows of the classifiers and embeddings move to the index that their character has here, glyph channels stay at
    their position; a table of what is kept, new and dropped is printed. Returns a line for the log.

    Raises:
        UserError: the backbone does not fit, or the file's characters are not known.
    """
    tensors, own, t = weights_in(content, path), model.state_dict(), model.settings.family == "T"
    theirs = unwrapped(tensors, own)

    # the characters of the file: from its options (of a state, or of the metadata file), else by its classes
    special = ["[GO]", "[s]"] if t else ["[end]"]
    classes = next((len(value) for name, value in theirs.items() if name.endswith("generator.generator.weight")), 0)
    options = content.get("options") or read_card(Path(path)).get("options") or {}
    published = (CHARSET_36, CHARSET_94) if t else (SIGA_36, SIGA_94)
    before = options.get("character") or next((c for c in published if len(c) + len(special) == classes), None)
    if before is None:
        raise UserError(
            f"--init {path}: which {max(classes - len(special), 0)} characters it reads is not known; put its metadata "
            f"file {Path(path).name}.json next to it"
        )

    old, new = [*special, *before], [*special, *character]
    axes = [
        ClassAxis("*generator.weight", 0, old, new),
        ClassAxis("*generator.bias", 0, old, new),
        # the last row is R's and S's start symbol; T has it, too, without using it
        ClassAxis("*char_embeddings.weight", 0, [*old, "[start]"], [*new, "[start]"]),
    ]
    # channels of the glyph heads: background and one for each position in the word
    axes += [position_axis(n, theirs[n], own[n]) for n in own if "cls_Head_" in n and n in theirs]

    def needed(name: str) -> bool:
        backbone = ("FeatureExtraction." in name and "pos_embed" not in name) or ".blocks." in name
        return backbone or ".patch_embed." in name

    def rename(name: str) -> str | None:
        return None if "crossentropy.weight" in name else name  # S's class weights are the model's own

    report = load_by_character(model, tensors, axes, rename, required=needed, what=f"--init {path}")
    return f"start: {len(report.kept)} tensors of {path}, at step 0"


def settle_tps(model: TwoUnitModel, start: tuple[str, Any] | None) -> str:
    """Train the rectification or freeze it, as the run did that is continued; returns a line for the log.

    Published optimizers do not have the TPS; those written here have it where it was trained. A file without an
    optimizer has trained weights for it, which stay as they are, as published.
    """
    if start is None:
        return "TPS: no weights given (--tps), so the rectification is trained with the rest"
    path, content = start
    try:
        optimized = sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    except (KeyError, TypeError, IndexError):
        optimized = 0
    trained = optimized == len(list(model.parameters()))
    model.freeze_tps(not trained)
    return f"TPS: weights from {path}, " + ("trained on, as there" if trained else "frozen")


def load_published(model: SigaModel, state: Mapping, what: str = "checkpoint") -> LoadReport:
    """Strictly load a published state dict: the dict itself or one that holds it under `net`, with or without `module.`
    in front and with or without the spline constants. Raises UserError if a name or shape differs."""
    if "net" in state:
        state = state["net"]
    return load_strict(model, state, what=what)


def load_tps(model: TwoUnitModel, state: Mapping[str, torch.Tensor], what: str = "TPS weights") -> LoadReport:
    """Load the rectification alone from a TPS file or a whole checkpoint of R or S, and freeze it as published."""
    state = strip_prefix(state.get("net", state))
    prefix = "model_one.Transformation."
    inner = {name.removeprefix(prefix).removeprefix("Transformation."): tensor for name, tensor in state.items()}
    wanted = {
        name: tensor for name, tensor in inner.items() if name.startswith(("LocalizationNetwork.", "GridGenerator."))
    }
    if not wanted:
        raise UserError(f"{what}: weights: no LocalizationNetwork.* entries; give the TPS.pth of the published models")
    report = load_strict(model.model_one.Transformation, wanted, what=what)
    model.freeze_tps()
    return report


def weights_in(content: Any, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in published form (`net`, T also a bare state dict) or in this library's (`model`).

    Raises `UserError` for other contents.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{what}: no checkpoint of SIGA (a {type(content).__name__}); give a best_accuracy.pth")
    state = next((content[key] for key in ("net", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {name: value for name, value in strip_prefix(state).items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{what}: no weights in it; give a checkpoint of SIGA")
    return tensors


def load_weights(model: SigaModel, content: Any, what: str) -> None:
    """Strictly load a checkpoint's weights; see `weights_in` for its forms.

    Raises:
        UserError: names or shapes differ: another variant, charset or word length.
    """
    tensors = weights_in(content, what)
    _explain_charset(model, tensors, what)
    load_published(model, tensors, what=what)


def _explain_charset(model: SigaModel, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """A clear word for the commonest mismatch: the output layer has another number of classes."""
    own = model.state_dict()
    for name, value in tensors.items():
        if name.endswith("generator.generator.weight") and name in own and value.shape[0] != own[name].shape[0]:
            raise UserError(
                f"{what}: charset: it predicts {value.shape[0]} classes, this run {own[name].shape[0]}; give the "
                "same --character (or --sensitive) as its training, or move its weights to another charset with --init"
            )
