"""The command line of `run_mae_pretraining_moco.py`: flags that act, flags of the original that never did."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from common.errors import UserError
from common.flags import add_no_effect, new_parser, note_no_effect, settle_device
from projects.dig import flags as shared
from projects.dig.model.encoder import SIZES
from projects.dig.model.pooling import NAMES
from projects.dig.model.pretraining import MODELS

SWITCH = ("switch", False)
DESCRIPTION = "Pre-train an encoder by reading and writing (DiG)."
NO_EFFECT: dict[str, tuple] = {
    "encoder_type": (str, "vit"), "text_mask_ratio": (float, 0.15), "use_multiscale_mask": SWITCH,
    "aug_ratio": (float, 0.0), "use_corner_mask": SWITCH, "corner_ratio": (float, 0.0), "corner_prob": (float, 0.0),
    "mask_scales": (int, 1), "mask_ratios": (float, 0.75), "use_abi_aug": SWITCH, "use_color_aug": SWITCH,
    "use_hard_sample": SWITCH, "input_size": (int, 224), "num_mem_slots": (int, 0), "use_mem_in_decoder": SWITCH,
    "use_ema": SWITCH, "momentum_teacher": (float, 0.996), "momentum_teacher_end": (float, 1.0),
    "loss_feat_type": (str, "cossim"), "loss_feat_beta": (float, 2), "fix_mask_token": SWITCH,
    "warmup_lr": (float, 1e-6), "loss_win_size": (int, 3), "use_loss_weight": SWITCH,
    "loss_weight_feat_align": (float, 0.0), "contrast_temperature": (float, 1), "loss_weight_consist": (float, 0.0),
    "relation_window_size": (str, "8_32"), "num_relation_heads": (int, 1), "relation_T": (float, 1.0),
    "soft_label_type": (str, "none"), "loss_weight_distill": (float, 0.0), "num_distribution": (int, 100000),
    "queue_size": (int, 65536), "loss_weight_semgroup": (float, 0.0), "distill_start_epoch": (int, 1),
    "cluster_update_interval": (str, "step"), "moco_m_cos": SWITCH, "use_patch_transformer": SWITCH,
    "use_image_slice": SWITCH, "alternately_training": SWITCH, "alternately_epoch_training": SWITCH,
    "first_train_mim": SWITCH, "use_mim": SWITCH, "use_moco": SWITCH, "attn_map_type": (str, "none"),
    "recon_patch_scales": (str, "1"), "num_target_layers": (int, 1), "corrupt_ops_ratios": (str, "1._0._0."),
    "loss_weight_pos": (float, 0.0), "color_jitter": (float, 0.0), "train_interpolation": (str, "bicubic"),
    "data_path": (str, shared.PLACEHOLDER, "+"), "imagenet_default_mean_and_std": ("switch", True),
    "train_url": (str, ""), "voc_type": (str, "ALLCASES_SYMBOLS"), "max_len": (int, 25),
    "num_samples": (int, math.inf), "mix_train_with_ctx": SWITCH, "ctx_path": (str, ""), "ctx_min_len": (int, 2),
    "ctx_max_len": (int, 25), "ctx_num_samples": (int, math.inf), "ctx_nb_classes": (int, 97),
    "image_to_ctx_ratio": (int, 50), "mix_train_with_aloneimage": SWITCH, "only_real_data_for_pretrain": SWITCH,
    "text_loss_weight": (float, 1.0), "vis_loss_weight": (float, 1.0),
}  # fmt: skip


def switch(text: str) -> bool:
    """A value of `--normlize_target`. The published type takes any text, "False" included, for True; here no means
    no."""
    return text.lower() not in ("", "0", "false", "no", "off")


def parser() -> argparse.ArgumentParser:
    """All flags of the script."""
    return _filled(new_parser("run_mae_pretraining_moco.py", DESCRIPTION))


def multi_machine_parser() -> argparse.ArgumentParser:
    """The flags of `run_mae_pretraining_moco_multiMachine.py`: those of the script and what names its node."""
    parser = _filled(new_parser("run_mae_pretraining_moco_multiMachine.py", DESCRIPTION))
    parser.set_defaults(opt_betas=[0.9, 0.999])
    group = parser.add_argument_group("nodes")
    group.add_argument("--init_method", default="tcp://127.0.0.1:23456", help="tcp://HOST:PORT of the first node")
    group.add_argument("--rank", type=int, default=0, help="number of this node")
    group.add_argument("--dataset_dir", default="", help="parent folder of --remote_folders")
    group.add_argument(
        "--remote_folders",
        default="openimagev5text_nolabel__googlecc",
        help="LMDB folders below --dataset_dir, separated by __; used where --image_alone_path is not given",
    )
    return parser


def _filled(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with the flags of pre-training."""
    add_model(parser)
    add_data(parser)
    shared.add_optimisation(parser, lr=1.5e-4, min_lr=1e-5, warmup_epochs=40)
    shared.add_run(parser, workers=10)
    add_no_effect(parser, NO_EFFECT)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Model, losses and momentum."""
    group = parser.add_argument_group("model and losses")
    sizes = ", ".join(SIZES)
    group.add_argument(
        "--model",
        default="pretrain_mae_base_patch16_224",
        help=f"pretrain_{{simmim_moco,simmim,moco}}_ori_vit_SIZE_patch4_32x128, SIZE of {sizes} (micro: patch8); "
        "the published default is not among them",
    )
    group.add_argument("--drop_path", type=float, default=0.0, help="stochastic depth of both encoders")
    group.add_argument("--mask_ratio", type=float, default=0.75, help="share of tokens hidden in a masked view")
    group.add_argument("--normlize_target", type=switch, default=False, help="standardise the pixels of each patch")
    group.add_argument("--only_mim_on_ori_img", action="store_true", help="do not mask the augmented view")
    group.add_argument("--num_windows", type=int, default=5, help="instances of the contrast in an image")
    group.add_argument("--patchnet_name", default="regular", help=f"patch head: {', '.join(NAMES)}")
    group.add_argument("--loss_weight_pixel", type=float, default=1.0, help="weight of the pixel loss")
    group.add_argument("--loss_weight_contrast", type=float, default=0.0, help="weight of the contrastive loss")
    group.add_argument("--contrast_warmup_steps", type=int, default=0, help="ramp of that weight")
    group.add_argument("--contrast_start_epoch", type=int, default=0, help="epoch in which the ramp begins")
    group.add_argument("--moco_dim", type=int, default=256, help="width of the projections")
    group.add_argument("--moco_mlp_dim", type=int, default=4096, help="hidden width of projector and predictor")
    group.add_argument("--moco_m", type=float, default=0.99, help="momentum, at the start")
    group.add_argument("--use_moco_m_cos", type=int, default=1, help="0 keeps the momentum; else it rises to 1")
    group.add_argument("--moco_t", type=float, default=1.0, help="temperature of the contrast")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Data and length of the run."""
    group = parser.add_argument_group("data")
    group.add_argument("--image_alone_path", default="", nargs="+", help="LMDB folders; labels are not read")
    group.add_argument("--aloneimage_num_samples", type=int, default=math.inf, help="first so many of each LMDB")
    group.add_argument("--num_view", type=int, default=1, help="views of an image; must be 2")
    group.add_argument("--input_h", type=int, default=32, help="height of both views")
    group.add_argument("--input_w", type=int, default=128, help="width of both views")
    group.add_argument("--batch_size", type=int, default=64, help="of one process")
    group.add_argument("--epochs", type=int, default=300, help="passes over the data")
    group.add_argument("--save_ckpt_freq", type=int, default=1, help="epochs between checkpoints")
    group.add_argument(
        "--eval_freq", type=int, default=500, help="a tenth of the steps between checkpoints in an epoch"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check. Raises `UserError` for combinations that cannot run."""
    options = parser().parse_args(argv)
    check(options)
    note_no_effect(options, NO_EFFECT)
    settle_device(options, argv)
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse early, in words."""
    shared.check_common(options)
    if options.model not in MODELS:
        raise UserError(f"--model: {options.model!r} is unknown; use one of {', '.join(MODELS)}")
    if options.num_view != 2:
        raise UserError(f"--num_view: {options.num_view}: pre-training compares two views; give --num_view 2")
    if options.patchnet_name not in NAMES:
        raise UserError(f"--patchnet_name: {options.patchnet_name!r} is none of {', '.join(NAMES)}")
    if not options.image_alone_path:
        raise UserError("--image_alone_path: it is needed: one or more LMDB folders")
    if not 0 < options.mask_ratio < 1:
        raise UserError(f"--mask_ratio: {options.mask_ratio} must lie between 0 and 1")
    if options.aloneimage_num_samples < 1:
        raise UserError(f"--aloneimage_num_samples: {options.aloneimage_num_samples} must be at least 1")
    check_windows(options)
    if not options.moco_t > 0:
        raise UserError(f"--moco_t: {options.moco_t} must be above 0")


def check_windows(options: argparse.Namespace) -> None:
    """The image must divide into patches; windows that do not divide the columns overlap, which is said."""
    size = SIZES[MODELS[options.model][1]]
    rows, columns = size.grid((options.input_h, options.input_w))
    if options.input_h % size.patch or options.input_w % size.patch:
        raise UserError(f"--input_h, --input_w: both must be multiples of the patch size {size.patch}")
    if not 1 <= options.num_windows <= columns:
        raise UserError(f"--num_windows: {options.num_windows} must be 1 to {columns}, the columns of patches")
    if columns % options.num_windows:
        print(f"--num_windows {options.num_windows} does not divide the {columns} columns of patches: windows overlap")
    if options.patchnet_name == "conv" and min(rows, columns) < 8:
        raise UserError("--patchnet_name: conv halves the patches three times; it needs at least 8 x 8 of them")
