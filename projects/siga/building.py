"""From options to a codec, a model with its starting weights, and the card that describes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.models.pretrained import DEIT_BASE, load_encoder, start_from
from common.train.checkpoint import load
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec, build_siga, init_published, load_tps


def build_options(options: argparse.Namespace) -> dict[str, Any]:
    """What beyond the variant's name fixes the model, as a card keeps it: `build_siga`'s arguments, `character`."""
    given = {
        "character": options.character,
        "batch_max_length": options.batch_max_length,
        "image_size": [options.imgH, options.imgW],
    }
    if options.family != "T":
        given |= {
            "num_fiducial": options.num_fiducial,
            "output_channel": options.output_channel,
            "hidden_size": options.hidden_size,
        }
    return given


def build_model(options: argparse.Namespace, codec: Codec) -> SigaModel:
    """The model of these options with the published start: R and S by name (biases 0, Kaiming), T by its layers.

    The rectification is trainable until `starting_weights` has seen weights for it; the published code froze it at its
    random start.
    """
    words = build_options(options)
    words.pop("character")
    words["image_size"] = tuple(words["image_size"])
    if options.family != "T":
        words["freeze_tps"] = False
        if getattr(options, "rectify_masks", None):
            words["rectify_masks"] = options.rectify_masks == "yes"
    model = build_siga(options.model_name, num_class=codec.num_classes, **words)
    init_published(model)
    return model


def starting_weights(
    model: SigaModel, options: argparse.Namespace, start: tuple[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Load `--tps` and `--pretrained` into a fresh model and settle whether its rectification is trained.

    `start`: path and content of the checkpoint or training state that the run continues from. Returns lines for the
    log, and warnings.

    Raises:
        UserError: a file that does not fit, or a flag that this variant has no use for.
    """
    lines, warnings = [], []
    tps = tps_file(options)
    if tps:
        if not options.variant.has_tps:
            raise UserError(f"--tps: {options.model_name} has no rectification; leave the flag out")
        load_tps(model, load(tps), what=tps)
        lines.append(f"TPS: weights from {tps}, frozen")
    elif options.variant.has_tps:
        lines.append(settle_tps(model, start))
    if options.family != "T":
        if options.pretrained:
            raise UserError(f"--pretrained: {options.model_name} is trained from scratch; only T starts from a ViT")
    elif start is None:
        begin = start_from(DEIT_BASE if options.variant.published else None, options.pretrained, options.download)
        loaded = f" ({load_encoder(model.mgp_str, load(begin.path), str(begin.path))})" if begin.path else ""
        lines.append(begin.line + loaded)
        warnings += [begin.warning] if begin.warning else []
    return lines, warnings


def tps_file(options: argparse.Namespace) -> str:
    """The file that `--tps` means, "" for none: auto is TPS.pth in the working folder, where the published code has
    it, for the published variants."""
    if options.family == "T" or options.tps in ("", "none"):
        return ""
    if options.tps != "auto":
        return options.tps
    return "TPS.pth" if options.variant.has_tps and options.variant.published and Path("TPS.pth").is_file() else ""


def settle_tps(model: SigaModel, start: tuple[str, Any] | None) -> str:
    """Train the rectification or freeze it, as the run did that is gone on from; returns a line for the log.

    Published optimizers leave the TPS out; ours have it where it was trained. A file without an optimizer has trained
    weights for it, which stay as they are, as published.
    """
    if start is None:
        return "TPS: no weights given (--tps), so the rectification is trained with the rest"
    path, content = start
    trained = optimized(content) == len(list(model.parameters()))
    model.freeze_tps(not trained)
    return f"TPS: weights from {path}, " + ("trained on, as there" if trained else "frozen")


def optimized(content: Any) -> int:
    """How many tensors the optimizer in a checkpoint's content steps; 0 without one."""
    try:
        return sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    except (KeyError, TypeError, IndexError):
        return 0
