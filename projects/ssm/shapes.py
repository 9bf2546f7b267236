"""What the names and shapes of a state dict say of its recogniser: class, sizes, number of characters.

PARSeq's authors release plain state dicts (`parseq-bb5792a6.pt`, …) in which nothing else says what they are, and
their present Lightning checkpoints put `model.` before every name of PARSeq.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.errors import UserError
from common.text.charset import CHARSET_36, CHARSET_62, CHARSET_94

State = Mapping[str, Tensor]
SIGNS = {  # a name that only this class has; the tensor of its classes, and how many they are beyond the charset
    "PARSeq": ("decoder.layers.0.norm_q.weight", "head.bias", 1),
    "TransOCR": ("text_embed.embedding.weight", "head.bias", 1),
    "ABINet": ("model.language.proj.weight", "model.language.cls.bias", 1),
    "TRBA": ("model.Prediction.attention_cell.i2h.weight", "model.Prediction.generator.bias", 3),
    "TRBC": ("model.Prediction.weight", "model.Prediction.bias", 1),
    "ViTSTR": ("model.patch_embed.proj.weight", "model.head.bias", 1),
    "CRNN": ("model.cnn.conv0.weight", "model.rnn.1.linear.bias", 1),
}


def known_names(state: State) -> dict[str, Tensor]:
    """The names of this library: of PARSeq and TransOCR without `model.`, of the other recognisers with it."""
    if any(f"model.{SIGNS[name][0]}" in state for name in ("PARSeq", "TransOCR")):
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}
    signs = [sign.removeprefix("model.") for sign, _, _ in SIGNS.values() if sign.startswith("model.")]
    flat = any(sign in state for sign in signs) and not any(SIGNS[name][0] in state for name in ("PARSeq", "TransOCR"))
    return {f"model.{name}" if flat else name: tensor for name, tensor in state.items()}


def class_of(state: State, what: str) -> str:
    """The recogniser that these names belong to. Raises `UserError` for a file that holds none."""
    for name, (sign, _, _) in SIGNS.items():
        if sign in state:
            return name
    some = ", ".join(list(state)[:3])
    hint = " (a pre-trained encoder starts a recogniser with model.encoder_pretrained=true)"
    raise UserError(f"{what}: no recogniser is in it, its tensors are {some} …{hint}")


def charset_of(state: State, name: str, what: str) -> str:
    """The published charset of as many characters as the head has. Raises `UserError` for another number."""
    classes = len(state[SIGNS[name][1]]) - SIGNS[name][2]
    for charset in (CHARSET_36, CHARSET_62, CHARSET_94):
        if len(charset) == classes:
            return charset
    raise UserError(
        f"{what}: its head has {classes} characters and the file does not say which; add charset_train:str=… with them "
        "in their order (test.py, read.py), or give a checkpoint with hyper_parameters"
    )


def sizes_of(state: State, name: str) -> dict[str, Any]:
    """Constructor arguments that the shapes decide; numbers of heads leave none, they follow the published widths."""
    if name in ("PARSeq", "TransOCR"):
        return transformer_sizes(state, name)
    if name == "ViTSTR":
        dim, _, *patch = state["model.patch_embed.proj.weight"].shape
        tokens = state["model.pos_embed"].shape[1] - 1
        return {"embed_dim": dim, "num_heads": dim // 64, "patch_size": patch, "img_size": image_size(tokens, patch)}
    if name == "ABINet":
        return {
            "d_model": len(state["model.language.proj.weight"]),
            "d_inner": len(state["model.language.model.layers.0.linear1.weight"]),
            "l_num_layers": count(state, "model.language.model.layers."),
            "v_num_layers": count(state, "model.vision.backbone.transformer.layers."),
            "v_attention": "attention" if "model.vision.attention.w0.weight" in state else "position",
        }
    if name in ("TRBA", "TRBC"):
        return {
            "num_fiducial": len(state["model.Transformation.LocalizationNetwork.localization_fc2.bias"]) // 2,
            "output_channel": len(state["model.FeatureExtraction.ConvNet.conv4_2.weight"]),
            "hidden_size": len(state["model.SequenceModeling.0.linear.bias"]),
        }
    return {"hidden_size": state["model.rnn.0.rnn.weight_hh_l0"].shape[1]}


def transformer_sizes(state: State, name: str) -> dict[str, Any]:
    """Sizes of PARSeq and TransOCR: 64 channels a head in the encoder; in the decoder 32, but 8 heads from 512 on."""
    dim, _, *patch = state["encoder.patch_embed.proj.weight"].shape
    width, depth = len(state["decoder.norm.weight"]), count(state, "encoder.blocks.")
    sizes = {
        "patch_size": patch, "max_label_length": state["pos_queries"].shape[1] - 1,
        "enc_depth": depth, "enc_num_heads": max(dim // 64, 1),
        "enc_mlp_ratio": len(state["encoder.blocks.0.mlp.fc1.bias"]) / dim,
        "dec_depth": count(state, "decoder.layers."), "dec_num_heads": 8 if width >= 512 else max(width // 32, 1),
        "dec_mlp_ratio": len(state["decoder.layers.0.linear1.bias"]) / width,
    }  # fmt: skip
    if "encoder.pos_embed" in state:
        sizes["img_size"] = image_size(state["encoder.pos_embed"].shape[1], patch)
    return sizes | ({"embed_dim": dim} if name == "PARSeq" else {"enc_embed_dim": dim, "dec_embed_dim": width})


def image_size(tokens: int, patch: list[int]) -> list[int]:
    """(height, width) of the picture that so many patches cover: 32 x 128 or 224 x 224 where one fits, else 32 high."""
    for height, width in ((32, 128), (224, 224)):
        if (height // patch[0]) * (width // patch[1]) == tokens:
            return [height, width]
    return [32, tokens * patch[1] // max(32 // patch[0], 1)]


def count(state: State, prefix: str) -> int:
    """How many layers are numbered behind `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
