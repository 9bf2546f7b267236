"""The command line of `sim_pretrain.py`: the published flags, those without effect, and ours."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from common.errors import UserError
from common.flags import add_no_effect, new_parser, note_no_effect, settle_device
from common.train.distributed import add_launch_arguments
from projects.ssm.pretrain.model import VARIANTS

SWITCH = ("switch", False)
NO_EFFECT: dict[str, tuple] = {
    "mode": (str, "align"), "embed_dim": (int, 384), "encoder_depth": (int, 12), "encoder_num_heads": (int, 6),
    "align_encoder": (str, "clip_ViT-B/16"), "mask_ratio": (float, 0.75), "online_ln": SWITCH,
    "with_blockwise_mask": SWITCH, "blockwise_num_masking_patches": (int, 75), "lambda_F": (float, 50),
    "T": (float, 0.2), "clip_grad": (float, 1.0), "beta2": (float, 0.95), "blr": (float, 1e-3),
    "select_data": (str, "label-unlabel"), "batch_ratio": (str, "0.5-0.5"), "total_data_usage_ratio": (str, "1.0"),
    "PAD": SWITCH, "rgb": ("switch", True), "character": (str, "0123456789abcdefghijklmnopqrstuvwxyz"),
    "sensitive": SWITCH, "sel_prob": (float, 1.0), "eval_img": SWITCH, "range": (str, None), "model_dir": (str, ""),
    "demo_imgs": (str, ""), "pair_mix": SWITCH, "enable_wandb": SWITCH, "project": (str, "mdr-debug"),
}  # fmt: skip
GROUPS = ("pattern", "warp", "geometry", "weather", "noise", "blur", "camera", "process")
DIRECTIONS = ("HF", "VF", "Hybrid", "aug_pool")


def pair(text: str) -> list[int]:
    """`32,128` or `[32,128]` -> [32, 128]. The published type cut its argument into letters."""
    try:
        height, width = (int(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        height = width = 0
    if height < 1 or width < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH")
    return [height, width]


def parser() -> argparse.ArgumentParser:
    """All flags of the script."""
    parser = new_parser("sim_pretrain.py", "Pre-train an encoder by symmetric superimposition modelling (SSM).")
    add_model(parser)
    add_optimisation(parser)
    add_data(parser)
    add_augmentation(parser)
    add_run(parser)
    add_no_effect(parser, NO_EFFECT)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Model and losses."""
    group = parser.add_argument_group("model and losses")
    group.add_argument("--model", default="flipae_vit_small_str", help=f"one of {', '.join(VARIANTS)}")
    group.add_argument("--input_size", type=pair, default=[32, 128], help="HEIGHT,WIDTH in pixels")
    group.add_argument("--patch_size", type=pair, default=[4, 4], help="HEIGHT,WIDTH; ssm_micro_patch16x8 has its own")
    group.add_argument("--norm_pix_loss", action="store_true", help="standardise the pixels of each patch")
    group.add_argument("--mm", type=float, default=0.995, help="momentum of the target network, at the start")
    group.add_argument("--mmschedule", default="const", help="const or cosine (rises to 1)")
    group.add_argument("--feat_start_epoch", type=int, default=10, help="first epoch with the feature loss")
    group.add_argument("--feat_ramp", type=float, default=40.0, help="its weight grows by 1 over this an epoch")
    group.add_argument("--dense_loss", action="store_true", help="add the paper's L_den, which the code left out")
    group.add_argument(
        "--teacher_seeds",
        choices=["position", "random"],
        default="position",
        help="teacher transform by position in the batch, as published, or drawn for each image",
    )
    group.add_argument("--ema_decoder_once", action="store_true", help="average the decoder once a step, not twice")
    group.add_argument("--copy_prompt", action="store_true", help="start the momentum prompts as a copy")


def add_optimisation(parser: argparse.ArgumentParser) -> None:
    """Steps, learning rate, precision."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--batch_size", type=int, default=64, help="of one process")
    group.add_argument("--epochs", type=int, default=400, help="passes over the data")
    group.add_argument("--accum_iter", type=int, default=1, help="micro-batches of a step")
    group.add_argument("--weight_decay", type=float, default=0.05, help="of AdamW; none on vectors and biases")
    group.add_argument("--lr", type=float, default=1e-4, help="absolute, at the end of the warm-up")
    group.add_argument("--min_lr", type=float, default=0.0, help="at the end of the cosine")
    group.add_argument("--warmup_epochs", type=int, default=40, help="linear from 0")
    group.add_argument("--amp", choices=["auto", "no", "fp16", "bf16"], default="auto", help="auto: fp16 on CUDA")
    group.add_argument("--compile", action="store_true", help="torch.compile the model")
    group.add_argument("--tf32", action="store_true", help="TF32 matrix products on CUDA")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where the images come from, and the inverted view."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="", help="root of the LMDB folders; needed")
    group.add_argument("--max_length", type=int, default=25, help="images with a longer label are left out")
    group.add_argument("--data_filtering_off", action="store_true", help="do not look at the labels")
    group.add_argument("--direction", default="Hybrid", help=f"one of {', '.join(DIRECTIONS)}")
    group.add_argument("--ratio", type=int, default=1, help="1: HF and VF flip; 0: they do not")
    group.add_argument("--num_workers", type=int, default=4, help="loader processes; 0 loads in this one")
    group.add_argument("--pin_mem", action="store_true", default=True, help="page-locked batches on CUDA")
    group.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", help="plain memory")


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Image augmentation of both views; none by default, as in the published command."""
    group = parser.add_argument_group("augmentation")
    group.add_argument("--isrand_aug", action="store_true", help="random operations of random groups")
    group.add_argument("--issel_aug", action="store_true", help="one operation of each group named by a switch")
    for name in GROUPS:
        group.add_argument(f"--{name}", action="store_true", help="a group of --issel_aug")
    for name in ("semantic", "rotation", "scatter", "learning"):
        group.add_argument(f"--is{name}_aug", action="store_true", help="a comparison recipe")
    group.add_argument("--intact_prob", type=float, default=0.5, help="share of views left as they are")
    group.add_argument("--augs_num", type=int, default=3, help="operations")
    group.add_argument("--augs_mag", type=int, help="magnitude 0, 1 or 2; random if not given")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Output, resuming, devices and processes."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="./output_dir", help="checkpoints and log.txt")
    group.add_argument("--demo_dir", default="./vis_dir", help="folder for pictures")
    group.add_argument("--log_dir", default="./log_dir", help="TensorBoard scalars")
    group.add_argument("--device", default="cuda", help="cuda, cpu or auto; without the flag: CUDA if there is any")
    group.add_argument("--seed", type=int, default=0, help="rank is added for the random draws of the model")
    group.add_argument("--resume", default="", help="a training state or a checkpoint; its epoch is taken over")
    group.add_argument("--auto_resume", action="store_true", help="go on from what is in --output_dir")
    group.add_argument("--start_epoch", type=int, default=0, help="first epoch of a run that resumes nothing")
    group.add_argument("--state_steps", type=int, default=0, help="write the exact training state every so many steps")
    group.add_argument("--max_steps", type=int, default=0, help="stop after so many steps, as on SIGTERM; 0: never")
    group.add_argument("--debug", action="store_true", help="50 steps an epoch")
    add_launch_arguments(parser, default_rank=-1)
    group.add_argument("--world_size", type=int, default=1, help="checked against what the launcher started")
    group.add_argument("--dist_on_itp", action="store_true", help="read rank and world size from Open MPI first")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check. Raises `UserError` for values that cannot run."""
    options = parser().parse_args(argv)
    check(options)
    note_no_effect(options, NO_EFFECT)
    if options.isscatter_aug:
        print("--isscatter_aug: no effect, as published (its switch is misspelt there)")
    settle_device(options, argv)
    return options


def one_of(flag: str, value: str, names: Sequence[str]) -> None:
    """Refuse a word that is not among `names`, telling the near ones."""
    if value not in names:
        near = get_close_matches(value, names, n=3, cutoff=0.3) or names
        raise UserError(f"{flag}: {value!r} is unknown; near: {', '.join(near)}")


def check(options: argparse.Namespace, models: Iterable[str] = VARIANTS) -> None:
    """Refuse early, in words; `models` are the names that `--model` takes."""
    one_of("--model", options.model, list(models))
    one_of("--direction", options.direction, DIRECTIONS)
    one_of("--mmschedule", options.mmschedule, ("const", "cosine"))
    if not options.data_path:
        raise UserError("--data_path: it is needed: the folder that holds the LMDB folders")
    if not options.output_dir:
        raise UserError("--output_dir: it is needed: checkpoints and logs go there")
    for name in ("batch_size", "epochs", "accum_iter"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)} must be at least 1")
    for name in ("lr", "min_lr", "weight_decay", "feat_ramp"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0) or (name == "feat_ramp" and not value):
            raise UserError(f"--{name}: {value} must be a number of at least 0")
    if not 0 <= options.mm <= 1:
        raise UserError(f"--mm: {options.mm} must lie between 0 and 1")
    if options.ratio not in (0, 1):
        raise UserError(f"--ratio: {options.ratio} must be 0 or 1")
    if not 0 <= options.warmup_epochs <= options.epochs:
        raise UserError(
            f"--warmup_epochs: {options.warmup_epochs} must be at most the {options.epochs} epochs of the run"
        )
    for name in ("num_workers", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name}: {getattr(options, name)} must be at least 0")


def check_grid(input_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Refuse images (height, width) that patches do not cover exactly."""
    if any(size % patch for size, patch in zip(input_size, patch_size)):
        raise UserError(f"--input_size: {list(input_size)} is not a multiple of the patch {list(patch_size)}")
