"""The command lines of `sim_pretrain.py` (P) and `main_pixel.py` (X): published flags, and additional ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Any

from common.errors import UserError
from common.flags import LAUNCH, Flag, Table, device_of, fill
from projects.ssm.model.pixel import VARIANTS as PIXEL_VARIANTS
from projects.ssm.model.pretrainer import VARIANTS

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


TABLE = Table({
    "model and losses": (
        Flag("--model", default={"P": "flipae_vit_small_str", "X": "pixel_vit_small"}, help="see README"),
        Flag("--input_size", pair, [32, 128], "HEIGHT,WIDTH in pixels"),
        Flag("--patch_size", pair, [4, 4], "HEIGHT,WIDTH; ssm_micro_patch16x8 has its own"),
        Flag("--norm_pix_loss", bool, help="standardise the pixels of each patch"),
        Flag("--mm", float, 0.995, "momentum of the target network, at the start", range=(0, 1), dead="X"),
        Flag("--mmschedule", default="const", help="const or cosine (rises to 1)", dead="X"),
        Flag("--feat_start_epoch", int, 10, "first epoch with the feature loss", dead="X"),
        Flag("--feat_ramp", float, 40.0, "its weight grows by 1 over this an epoch", range=(1e-9, inf), dead="X"),
        Flag("--dense_loss", bool, help="add the paper's L_den, which the published code does not have", dead="X"),
        Flag("--teacher_seeds", choices=("position", "random"), default="position", dead="X",
             help="teacher transform by position in the batch, as published, or drawn for each image"),
        Flag("--ema_decoder_once", bool, help="average the decoder once a step, not twice", dead="X"),
        Flag("--copy_prompt", bool, help="start the momentum prompts as a copy", dead="X"),
    ),
    "optimisation": (
        Flag("--batch_size", int, 64, "of one process", range=(1, inf)),
        Flag("--epochs", int, 400, "passes over the data", range=(1, inf)),
        Flag("--accum_iter", int, 1, "micro-batches of a step", range=(1, inf)),
        Flag("--weight_decay", float, 0.05, "of AdamW; none on vectors and biases", range=(0, inf)),
        Flag("--lr", float, 1e-4, "absolute, at the end of the warm-up", range=(0, inf)),
        Flag("--min_lr", float, 0.0, "at the end of the cosine", range=(0, inf)),
        Flag("--warmup_epochs", int, 40, "linear from 0", range=(0, inf)),
        Flag("--amp", choices=("auto", "no", "fp16", "bf16"), default="auto", help="auto: fp16 on CUDA, else no"),
        Flag("--compile", bool, help="torch.compile the model"),
        Flag("--tf32", bool, help="TF32 matrix products on CUDA"),
    ),
    "data": (
        Flag("--data_path", default="", help="root of the LMDB folders; needed"),
        Flag("--max_length", int, 25, "images with a longer label are skipped", dead="X"),
        Flag("--data_filtering_off", bool, help="do not look at the labels", dead="X"),
        Flag("--exclude", default="", variants="P",
             help="list of pictures not to train on, from `strlab doctor --against`"),
        Flag("--direction", default="Hybrid", help=f"one of {', '.join(DIRECTIONS)}", dead="X"),
        Flag("--ratio", int, 1, "1: HF and VF flip; 0: they do not", range=(0, 1), dead="X"),
        Flag("--bad_share", float, 0.01, "share of unreadable samples that stops the run", range=(0, 1), free=True),
        Flag("--num_workers", int, 4, "loader processes; 0 loads in this one", range=(0, inf), free=True),
        Flag("--pin_mem", bool, True, "page-locked batches on CUDA", free=True),
        Flag("--no_pin_mem", bool, True, const=False, dest="pin_mem", help="plain memory", free=True),
    ),
    "augmentation": (
        Flag("--isrand_aug", bool, help="random operations of random groups"),
        Flag("--issel_aug", bool, help="one operation of each group named by a switch"),
        *(Flag(f"--{name}", bool, help="a group of --issel_aug", dead="X") for name in GROUPS),
        *(Flag(f"--is{name}_aug", bool, help="a comparison recipe") for name in ("semantic", "rotation", "learning")),
        Flag("--isscatter_aug", bool, help="its switch is misspelt in the published code", dead=True),
        Flag("--intact_prob", float, 0.5, "share of views that stay as they are", range=(0, 1), dead="X"),
        Flag("--augs_num", int, 3, "operations", range=(0, inf), dead="X"),
        Flag("--augs_mag", int, help="magnitude 0, 1 or 2; random if not given", range=(0, 2), dead="X"),
    ),
    "pixel tasks": (
        Flag("--pixel_type", choices=("SR", "Seg"), default="SR", variants="X", help="task"),
        Flag("--pretrained", default="", variants="X", free=True,
             help="encoder of SSM, DiG or CCD; without it: random"),
        Flag("--eval_data_path", default="", variants="X", help="what to measure on; Seg: DATA_PATH/val without it",
             free=True),
        Flag("--best_dir", default="", variants="X", help="where the best checkpoints go; default: OUTPUT_DIR/best",
             free=True),
        Flag("--model_path", default="", variants="X", help="checkpoint that --eval_only measures", free=True),
        Flag("--eval_only", bool, variants="X", help="measure --model_path and end", free=True),
        Flag("--vis", bool, variants="X", help="write input, prediction and truth into --demo_dir", free=True),
        *(Flag(f"--{name}", default="", variants="X", dead=True) for name in ("scratch_path", "dig_path", "ccd_path")),
        Flag("--train_val", bool, variants="X", dead=True),
        Flag("--compare", bool, variants="X", dead=True),
    ),
    "run": (
        Flag("--output_dir", default="./output_dir", help="checkpoints and log.txt", free=True),
        Flag("--demo_dir", default="./vis_dir", help="folder for pictures", free=True),
        Flag("--log_dir", default="./log_dir", help="TensorBoard scalars", free=True),
        Flag("--device", default="cuda", help="cuda, cpu or auto; without the flag: CUDA if there is any", free=True),
        Flag("--seed", int, 0, "rank is added for the random draws of the model", range=(0, inf)),
        Flag("--resume", default="", help="a training state or a checkpoint to resume from", free=True),
        Flag("--auto_resume", bool, help="resume from what is in --output_dir", free=True),
        Flag("--allow_changes", bool, help="resume although flags that decide the result differ", free=True),
        Flag("--start_epoch", int, 0, "first epoch of a run that resumes nothing", range=(0, inf), free=True),
        Flag("--state_steps", int, 0, "write the exact training state every so many steps", range=(0, inf), free=True),
        Flag("--max_steps", int, 0, "stop after so many steps, as on SIGTERM; 0: never", range=(0, inf), free=True),
        Flag("--debug", bool, help="50 steps an epoch"),
        Flag("--world_size", int, 1, "checked against what the launcher started", free=True),
        Flag("--dist_on_itp", bool, help="read rank and world size from Open MPI first", free=True),
        *LAUNCH,
    ),
    "published, unused": (
        Flag("--mode", default="align", dead=True), Flag("--embed_dim", int, 384, dead=True),
        Flag("--encoder_depth", int, 12, dead=True), Flag("--encoder_num_heads", int, 6, dead=True),
        Flag("--align_encoder", default="clip_ViT-B/16", dead=True), Flag("--mask_ratio", float, 0.75, dead=True),
        Flag("--online_ln", bool, dead=True), Flag("--with_blockwise_mask", bool, dead=True),
        Flag("--blockwise_num_masking_patches", int, 75, dead=True), Flag("--lambda_F", float, 50.0, dead=True),
        Flag("--T", float, 0.2, dead=True), Flag("--clip_grad", float, 1.0, dead=True),
        Flag("--beta2", float, 0.95, dead=True), Flag("--blr", float, 1e-3, dead=True),
        Flag("--select_data", default="label-unlabel", dead=True), Flag("--batch_ratio", default="0.5-0.5", dead=True),
        Flag("--total_data_usage_ratio", default="1.0", dead=True), Flag("--PAD", bool, dead=True),
        Flag("--rgb", bool, True, dead=True), Flag("--sensitive", bool, dead=True),
        Flag("--character", default="0123456789abcdefghijklmnopqrstuvwxyz", dead=True),
        Flag("--sel_prob", float, 1.0, dead=True), Flag("--eval_img", bool, dead=True), Flag("--range", dead=True),
        Flag("--model_dir", default="", dead=True), Flag("--demo_imgs", default="", dead=True),
        Flag("--pair_mix", bool, dead=True), Flag("--enable_wandb", bool, dead=True),
        Flag("--project", default="mdr-debug", dead=True),
    ),
})  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """What both scripts read, and the values of all flags as they are stored in checkpoints.

    The flags' help describes the fields; `parsed` holds every flag, those without effect too.
    """

    model: str
    input_size: list[int]
    patch_size: list[int]
    norm_pix_loss: bool
    batch_size: int
    epochs: int
    accum_iter: int
    weight_decay: float
    lr: float
    min_lr: float
    warmup_epochs: int
    amp: str
    compile: bool
    tf32: bool
    data_path: str
    bad_share: float
    num_workers: int
    pin_mem: bool
    output_dir: str
    demo_dir: str
    log_dir: str
    device: str
    seed: int
    resume: str
    auto_resume: bool
    allow_changes: bool
    start_epoch: int
    state_steps: int
    max_steps: int
    debug: bool
    world_size: int
    dist_on_itp: bool
    dist_url: str
    local_rank: int
    dist_timeout: float
    parsed: Mapping[str, Any]


@dataclass(frozen=True)
class PretrainOptions(RunOptions):
    """Options of `sim_pretrain.py`; `parsed` also has the augmentation's switches."""

    mm: float
    mmschedule: str
    feat_start_epoch: int
    feat_ramp: float
    dense_loss: bool
    teacher_seeds: str
    ema_decoder_once: bool
    copy_prompt: bool
    max_length: int
    data_filtering_off: bool
    exclude: str
    direction: str
    ratio: int


@dataclass(frozen=True)
class PixelOptions(RunOptions):
    """Options of `main_pixel.py`."""

    pixel_type: str
    pretrained: str
    eval_data_path: str
    best_dir: str
    model_path: str
    eval_only: bool
    vis: bool


def parse(argv: Sequence[str] | None = None) -> PretrainOptions:
    """The command line of `sim_pretrain.py`. Raises `UserError` for values that cannot run."""
    title = "Pre-train an encoder by symmetric superimposition modelling (SSM)."
    values, given = TABLE.parse(argv, "sim_pretrain.py", title, "P")
    check(values, VARIANTS)
    one_of("--direction", values["direction"], DIRECTIONS)
    one_of("--mmschedule", values["mmschedule"], ("const", "cosine"))
    device = device_of(values["device"], "device" in given)
    return fill(PretrainOptions, {**values, "device": device}, parsed={**values, "device": device})


def parse_pixel(argv: Sequence[str] | None = None) -> PixelOptions:
    """The command line of `main_pixel.py`. Raises `UserError` for values that cannot run."""
    values, given = TABLE.parse(argv, "main_pixel.py", "Text super-resolution or segmentation (SSM).", "X")
    check(values, PIXEL_VARIANTS)
    if any(values[f"is{kind}_aug"] for kind in ("rand", "sel", "semantic", "rotation", "learning")):
        raise UserError("--isrand_aug, --issel_aug, …: pairs are not augmented; do not give the augmentation flags")
    if values["eval_only"] and not values["model_path"]:
        raise UserError("--model_path: it is needed with --eval_only: the checkpoint to measure")
    device = device_of(values["device"], "device" in given)
    best_dir = values["best_dir"] or f"{values['output_dir']}/best"
    return fill(PixelOptions, {**values, "device": device, "best_dir": best_dir}, parsed={**values, "device": device})


def one_of(flag: str, value: str, names: Sequence[str]) -> None:
    """Refuse a word that is not among `names`, naming the near ones."""
    if value not in names:
        near = get_close_matches(value, names, n=3, cutoff=0.3) or names
        raise UserError(f"{flag}: {value!r} is unknown; near: {', '.join(near)}")


def check(values: Mapping[str, Any], models: Mapping[str, Any]) -> None:
    """Refuse early what the ranges cannot check; `models` are the names that `--model` takes."""
    one_of("--model", values["model"], list(models))
    if not values["data_path"]:
        raise UserError("--data_path: it is needed: the folder that holds the LMDB folders")
    if not values["output_dir"]:
        raise UserError("--output_dir: it is needed: checkpoints and logs go there")
    if values["warmup_epochs"] > values["epochs"]:
        raise UserError(
            f"--warmup_epochs: {values['warmup_epochs']} must be at most the {values['epochs']} epochs of the run"
        )


def check_grid(input_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Refuse images (height, width) that patches do not cover exactly."""
    if any(size % patch for size, patch in zip(input_size, patch_size)):
        raise UserError(f"--input_size: {list(input_size)} is not a multiple of the patch {list(patch_size)}")
