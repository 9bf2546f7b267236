"""Weights in checkpoints of the published form: what a recogniser takes from a pre-trained or fine-tuned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from common.errors import UserError
from common.models import weights
from common.models.weights import LoadReport, load_partial, unwrapped
from common.train.checkpoint import read_card
from projects.dig import text

OWN = ("encoder.mask_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.norm1.weight")


def state_of(checkpoint: object, keys: str = "model|module", what: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint: the first of `keys` that it has, else the checkpoint itself, without
    what wrappers of the model have put before the names.

    Raises `UserError` where that is no dict of tensors.
    """
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = next((checkpoint[key] for key in keys.split("|") if key in checkpoint), checkpoint)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{what}: weights: no state dict under {keys!r} and none at the top; see --model_key")
    return unwrapped(state, OWN)


def needed(name: str) -> bool:
    """Tensors without which taking over weights is a mistake: the encoder's embedding and blocks."""
    return name.startswith(("encoder.blocks.", "encoder.patch_embed."))


def load_pretrained(
    model: nn.Module, state: Mapping[str, Tensor], what: str = "--finetune", prefix: str = ""
) -> LoadReport:
    """Take every weight of `state` whose name and shape fit `model`; the rest of the model keeps its initial values.

    A leading `backbone.` is removed, `prefix` is put in front of what remains. The momentum branch, the projectors and
    the pixel head of a pre-training checkpoint stay unused. Prints what was kept, is new and was dropped.

    Raises:
        UserError: a tensor of the encoder does not fit: a checkpoint of another method or size. Names are listed.
    """
    return load_partial(model, state, lambda name: prefix + name.removeprefix("backbone."), required=needed, what=what)


def load_by_character(model: nn.Module, state: Mapping[str, Tensor], before: str, after: str, what: str) -> LoadReport:
    """As `load_pretrained`, from a recogniser of the charset `before`: rows of the classes move to where their
    characters are in `after`. Prints the characters kept, new and dropped."""
    old, new = text.classes_of(before), text.classes_of(after)
    begin = ["[begin]"]
    axes = [
        weights.ClassAxis("decoder.classifier.*", 0, old, new),
        weights.ClassAxis("decoder.decoder.fc.*", 0, old, new),
        weights.ClassAxis("decoder.trg_word_emb.weight", 0, old + begin, new + begin),
        weights.ClassAxis("decoder.decoder.tgt_embedding.weight", 0, old + begin, new + begin),
    ]
    return weights.load_by_character(model, state, axes, required=needed, what=what)


def charset_of(path: str | Path, classes: int) -> str:
    """The charset of a recogniser's checkpoint: from its metadata file, else by the number of its classes.

    Raises `UserError` where neither says it, and for a metadata file that cannot be read.
    """
    charset = read_card(Path(path)).get("options", {}).get("charset")
    return charset or text.codec_of_classes(classes, 3).charset


@dataclass(frozen=True)
class Shape:
    """What a fine-tuned checkpoint's own tensors say about the model that wrote it."""

    model: str
    decoder_type: str
    decoder_name: str
    classes: int
    conditioned: bool

    def options(self) -> dict:
        """Arguments for `build_recogniser`."""
        return dict(self.__dict__)


def shape_of(state: Mapping[str, Tensor], what: str = "checkpoint") -> Shape:
    """Read the variant off the tensors of a fine-tuned checkpoint. Raises `UserError` where they fit none.

    `--use_1d_attdec` leaves no trace in the weights and must be known.
    """
    from projects.dig.model import decoder, encoder  # pre-training has no decoder and does not load it

    try:
        dim, _, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    except (KeyError, ValueError):
        raise UserError(f"{what}: weights: no encoder.patch_embed.proj.weight; this is no DiG recogniser") from None
    sizes = [name for name, size in encoder.SIZES.items() if (size.dim, size.patch) == (dim, patch)]
    if not sizes:
        raise UserError(f"{what}: encoder: width {dim} with patch {patch} is no DiG variant")
    model = f"simmim_vit_{sizes[0]}_patch{patch}_32x128"
    if "decoder.decoder.fc.weight" in state:
        return Shape(model, "attention", "tf_decoder", len(state["decoder.decoder.fc.weight"]), False)
    if "decoder.classifier.weight" not in state:
        raise UserError(f"{what}: decoder: there is none; a pre-trained checkpoint goes to --finetune, not here")
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.layer_stack."))
    hidden, width = state["decoder.layer_stack.0.mlp.w_1.weight"].shape
    names = [n for n, s in decoder.SIZES.items() if (s.layers, s.dim, s.hidden) == (layers, width, hidden)]
    if not names:
        raise UserError(f"{what}: decoder: {layers} layers of width {width} and {hidden} are no DiG decoder")
    conditioned = any(".gamma_decode." in name for name in state)
    return Shape(model, "tf_decoder", names[0], len(state["decoder.classifier.weight"]), conditioned)


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
