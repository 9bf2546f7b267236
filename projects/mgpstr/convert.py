"""`strlab convert mgpstr`: published MGP-STR checkpoints <-> the layout of transformers'
`MgpstrForSceneTextRecognition`.

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
    if "mgp_str.bpe_head.weight" not in state:
        raise UserError("checkpoint: no BPE head: only MGP-STR models exist in transformers, not char-str or ACDS-STR")
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
    """Give the block norms of a transformers model the published eps of 1e-6; its logits then equal ours."""
    for block in model.mgp_str.encoder.blocks:
        block.norm1.eps = block.norm2.eps = BLOCK_EPS
    return model


def export_hf(source: Path, folder: Path, charset: str = CHARSET_36) -> None:
    """Write a published checkpoint as a folder that `MgpstrForSceneTextRecognition.from_pretrained` opens.

    Beside config and weights the folder holds the character tokenizer and the image preprocessing for
    `MgpstrProcessor`.
    """
    state = strip_prefix(checkpoint.load(source))
    if "mgp_str.cls_token" not in state:
        raise UserError(f"{source}: no mgp_str.cls_token in it: not a checkpoint of MGP-STR")
    converted, config = to_hf(state), hf_config(state)
    if len(charset) + 2 != config["num_character_labels"]:
        raise UserError(
            f"--character: {len(charset)} characters, the checkpoint has {config['num_character_labels'] - 2}"
        )
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
    }
    for name, thing in (
        ("config", config),
        ("vocab", vocabulary),
        ("preprocessor_config", preprocessing),
        ("tokenizer_config", tokenizer),
    ):
        files.write_text(folder / f"{name}.json", json.dumps(thing, indent=1, ensure_ascii=False))


def import_hf(source: Path, target: Path) -> None:
    """Write a transformers folder or weight file as a published checkpoint with its card."""
    if source.is_dir():
        candidates = [source / "model.safetensors", source / "pytorch_model.bin"]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise UserError(f"{source}: neither model.safetensors nor pytorch_model.bin in it")
        source = found[0]
    state = from_hf(checkpoint.load(source))
    checkpoint.save_atomic(target, state)
    size = next(
        (
            name
            for name, sizes in {**MODELS, **MICRO}.items()
            if sizes["dim"] == state["module.mgp_str.cls_token"].shape[-1]
        ),
        None,
    )
    if size:
        checkpoint.write_card(target, f"mgpstr/{size}", {}, origin=str(source))


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab convert mgpstr`."""
    parser = subparsers.add_parser("mgpstr", help="MGP-STR <-> transformers", description=__doc__)
    parser.add_argument("source", type=Path, help="published .pth file, or a transformers folder or weight file")
    parser.add_argument("target", type=Path, help="folder to write for --to hf, file for --to original")
    parser.add_argument("--to", choices=("hf", "original"), required=True)
    parser.add_argument("--character", default=CHARSET_36, help="the charset of the checkpoint (for --to hf)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`strlab convert mgpstr`."""
    if args.to == "hf":
        export_hf(args.source, args.target, args.character)
    else:
        import_hf(args.source, args.target)
    print(f"wrote {args.target}")
    return 0
