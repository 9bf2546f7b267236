"""`strlab convert mgpstr`: published MGP-STR checkpoints to and from transformers' layout.

No tensor changes its shape. transformers has one `layer_norm_eps` (1e-5) for all norms where the published blocks
have 1e-6, so its logits differ by about 3e-5; `exact_eps` sets the blocks' norms right, and then they are equal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common import files
from common.errors import UserError
from common.models.weights import strip_prefix
from common.text.charset import CHARSET_36
from common.train import checkpoint
from projects.mgpstr.model.names import MICRO, MODELS

State = dict[str, torch.Tensor]
RENAMED = (
    ("mgp_str.embeddings.proj.", "mgp_str.patch_embed.proj."),
    ("mgp_str.embeddings.", "mgp_str."),
    ("mgp_str.encoder.", "mgp_str."),
)
BLOCK_EPS = 1e-6


def original_name(hf_name: str) -> str:
    """Name in `MgpstrForSceneTextRecognition` -> published name without `module.`."""
    for theirs, ours in RENAMED:
        if hf_name.startswith(theirs):
            return ours + hf_name.removeprefix(theirs)
    return "mgp_str." + hf_name.replace("_a3_module.", "_tokenLearner.")


def hf_name(name: str) -> str | None:
    """Published name without `module.` -> name in transformers; None for `norm` and `head`, which it does not have."""
    inner = name.removeprefix("mgp_str.")
    if inner.startswith(("norm.", "head.")):
        return None
    if inner.startswith("blocks."):
        return f"mgp_str.encoder.{inner}"
    if inner.startswith(("cls_token", "pos_embed", "patch_embed.")):
        return f"mgp_str.embeddings.{inner.removeprefix('patch_embed.')}"
    return inner.replace("_tokenLearner.", "_a3_module.")


def to_hf(state: Mapping[str, torch.Tensor]) -> State:
    """A published state dict of MGP-STR (with or without `module.`) in transformers' names."""
    state = strip_prefix(state)
    missing = [name for name in ("char", "bpe", "wp") if f"mgp_str.{name}_head.weight" not in state]
    if missing:
        raise UserError(
            f"checkpoint: no head for {' and '.join(missing)}: MgpstrForSceneTextRecognition has heads for characters, "
            "BPE and WordPiece; char-str, ACDS-STR and models of fewer --granularities do not exist there"
        )
    return {hf_name(name): tensor for name, tensor in state.items() if hf_name(name)}


def from_hf(state: Mapping[str, torch.Tensor]) -> State:
    """transformers' state dict in the published names with `module.`; the unused `norm` and `head` are made anew."""
    made = {original_name(name): tensor for name, tensor in state.items()}
    if "mgp_str.char_head.weight" not in made:
        raise UserError("checkpoint: no char_head.weight in it: not a MgpstrForSceneTextRecognition")
    classes, dim = made["mgp_str.char_head.weight"].shape
    made |= {"mgp_str.norm.weight": torch.ones(dim), "mgp_str.norm.bias": torch.zeros(dim)}
    fresh = nn.init.trunc_normal_(torch.empty(classes, dim), std=0.02, generator=torch.Generator().manual_seed(0))
    made |= {"mgp_str.head.weight": fresh, "mgp_str.head.bias": torch.zeros(classes)}
    return {f"module.{name}": tensor for name, tensor in made.items()}


def hf_config(state: Mapping[str, torch.Tensor]) -> dict:
    """The keyword arguments of `MgpstrConfig`, read off a published state dict without `module.`."""
    dim, depth = (
        state["mgp_str.cls_token"].shape[-1],
        1 + max(int(name.split(".")[2]) for name in state if ".blocks." in name),
    )
    known = [sizes for sizes in (*MODELS.values(), *MICRO.values()) if (sizes["dim"], sizes["depth"]) == (dim, depth)]
    height, width = state["mgp_str.patch_embed.proj.weight"].shape[-2:]
    return {
        "image_size": [32, 128],
        "patch_size": width if height == width else [height, width],
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": known[0]["heads"] if known else dim // 64,
        "max_token_length": state["mgp_str.char_tokenLearner.tokenLearner.1.weight"].shape[0],
        "num_character_labels": len(state["mgp_str.char_head.bias"]),
        "num_bpe_labels": len(state["mgp_str.bpe_head.bias"]),
        "num_wordpiece_labels": len(state["mgp_str.wp_head.bias"]),
    }


def exact_eps(model: nn.Module) -> nn.Module:
    """Give the block norms of a transformers model the published eps of 1e-6, so that its logits are the published."""
    for block in model.mgp_str.encoder.blocks:
        block.norm1.eps = block.norm2.eps = BLOCK_EPS
    return model


def export_hf(source: Path, folder: Path, character: str | None = None) -> None:
    """Write a published checkpoint as a folder that `MgpstrForSceneTextRecognition.from_pretrained` opens.

    In addition to config and weights the folder holds the character tokenizer and the image preprocessing for
    `MgpstrProcessor`. Charset and case come from `character`, else from the metadata file next to the checkpoint, else
    they are the 36 characters. Raises `UserError` where the charset does not fit the character head.
    """
    state = strip_prefix(checkpoint.load(source))
    if "mgp_str.cls_token" not in state:
        raise UserError(f"{source}: no mgp_str.cls_token in it: not a checkpoint of MGP-STR")
    converted, config = to_hf(state), hf_config(state)
    kept = checkpoint.read_card(source).get("options") or {}
    charset = character or kept.get("character", CHARSET_36)
    classes = config["num_character_labels"]
    if len(charset) + 2 != classes:
        where = "--character" if character else "the metadata file" if "character" in kept else "the default charset"
        raise UserError(f"{source}: {where} has {len(charset)} characters, its head {classes - 2}; give --character")
    checkpoint.save_atomic(folder / "model.safetensors", converted)
    config |= {"architectures": ["MgpstrForSceneTextRecognition"], "model_type": "mgp-str"}
    vocabulary = {token: index for index, token in enumerate(["[GO]", "[s]", *charset])}
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 128},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    tokenizer = {
        "tokenizer_class": "MgpstrTokenizer",
        "processor_class": "MgpstrProcessor",
        "model_max_length": config["max_token_length"],
        "sensitive": bool(kept.get("sensitive", cased(charset))),
    }
    for name, thing in (
        ("config", config),
        ("vocab", vocabulary),
        ("preprocessor_config", preprocessing),
        ("tokenizer_config", tokenizer),
    ):
        files.write_text(folder / f"{name}.json", json.dumps(thing, indent=1, ensure_ascii=False))
    print(f"{len(charset)} characters, labels of at most {config['max_token_length'] - 2}: {charset}")


def cased(charset: str) -> bool:
    """Whether labels must keep their case to be written in a charset."""
    return charset.lower() != charset


def import_hf(source: Path, target: Path) -> None:
    """Write weights of transformers as a published checkpoint in float32, with its metadata file.

    Args:
        source: a folder (one file, shards, or a half-precision variant) or a weight file; charset, case and longest
            label come from the JSON files next to the weights.
        target: the checkpoint.

    Raises `UserError` for sizes that no model of this repository has, and for a vocab.json that does not fit the head.
    """
    folder = source if source.is_dir() else source.parent
    weights = checkpoint.load_hub_folder(source) if source.is_dir() else checkpoint.load(source)
    state = from_hf({name: tensor.float() for name, tensor in weights.items()})
    bare = strip_prefix(state)
    model, charset = model_of(bare, folder), charset_of(bare, folder)
    told = json_file(folder / "tokenizer_config.json").get("sensitive")
    options = {
        "character": charset,
        "sensitive": cased(charset) if told is None else bool(told),
        "batch_max_length": bare["mgp_str.char_tokenLearner.tokenLearner.1.weight"].shape[0] - 2,
    }
    checkpoint.save_atomic(target, state)
    checkpoint.write_card(target, f"mgpstr/{model}", options, origin=str(source))
    print(f"{model}: {len(charset)} characters, labels of at most {options['batch_max_length']}: {charset}")


def json_file(path: Path) -> dict:
    """The object in a JSON file, {} where there is no file. Raises `UserError` for another content."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object; copy it again")
    return content


def model_of(state: Mapping[str, torch.Tensor], folder: Path) -> str:
    """The name of the model with the sizes of a state dict and the attention heads of config.json next to it."""
    config = hf_config(state)
    heads = json_file(folder / "config.json").get("num_attention_heads", config["num_attention_heads"])
    height, width = state["mgp_str.patch_embed.proj.weight"].shape[-2:]
    found = (config["hidden_size"], config["num_hidden_layers"], heads, (height, width))
    models = {name: sizes for name, sizes in {**MODELS, **MICRO}.items() if name.startswith("mgp")}
    for name, sizes in models.items():
        if found == (sizes["dim"], sizes["depth"], sizes["heads"], sizes.get("patch", (4, 4))):
            return name
    raise UserError(
        f"{folder}: width {found[0]}, {found[1]} blocks, {heads} heads, patches of {height}x{width}: no model here has "
        f"these sizes; there are {', '.join(models)}"
    )


def charset_of(state: Mapping[str, torch.Tensor], folder: Path) -> str:
    """The characters of vocab.json in the order of their ids, or the 36 where there is no such file."""
    vocabulary = json_file(folder / "vocab.json")
    classes = len(state["mgp_str.char_head.bias"])
    tokens = sorted(vocabulary, key=vocabulary.get) if vocabulary else ["[GO]", "[s]", *CHARSET_36]
    characters = tokens[2:]
    fits = len(tokens) == classes and tokens[:2] == ["[GO]", "[s]"] and all(len(token) == 1 for token in characters)
    if not fits:
        what = folder / "vocab.json" if vocabulary else f"{folder}: without vocab.json the 36 characters are meant; it"
        raise UserError(
            f"{what}: {len(tokens)} tokens, the character head has {classes}; [GO], [s] and one token "
            "for each character are needed"
        )
    return "".join(characters)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("mgpstr", help="MGP-STR <-> transformers", description=__doc__)
    parser.add_argument("source", type=Path, help="published .pth file, or a transformers folder or weight file")
    parser.add_argument("target", type=Path, help="folder to write for --to hf, file for --to original")
    parser.add_argument(
        "--to",
        choices=("hf", "original"),
        required=True,
        help="form to write: of Hugging Face transformers, or the published one",
    )
    parser.add_argument(
        "--character", help="the charset of the checkpoint, for --to hf; default: what its metadata file says"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    taken = args.target.is_dir() and any(args.target.iterdir()) if args.to == "hf" else args.target.exists()
    if taken and not args.force:
        raise UserError(f"{args.target}: exists; give another name, or --force to overwrite it")
    if args.to == "hf":
        export_hf(args.source, args.target, args.character)
    else:
        import_hf(args.source, args.target)
    print(f"wrote {args.target}")
    return 0
