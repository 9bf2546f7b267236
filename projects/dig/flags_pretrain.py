"""The command lines of `run_mae_pretraining_moco.py` and its multi-machine sibling, and the options of the script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from common.errors import UserError
from common.flags import Flag, Table, device_of, fill, per
from projects.dig import flags
from projects.dig.flags import no_effect
from projects.dig.model.encoder import SIZES
from projects.dig.model.pooling import NAMES
from projects.dig.model.pretraining import MODELS

SCRIPT, DESCRIPTION = "run_mae_pretraining_moco.py", "Pre-train an encoder by reading and writing (DiG)."
NODES = "M"  # variant of the table: the script for several machines

TABLE = Table({
    "model and losses": (
        Flag("--model", default="pretrain_mae_base_patch16_224",
             help=f"pretrain_{{simmim_moco,simmim,moco}}_ori_vit_SIZE_patch4_32x128, SIZE of {', '.join(SIZES)} "
             "(micro: patch8); the published default is not among them"),
        Flag("--drop_path", float, 0.0, "stochastic depth of both encoders"),
        Flag("--mask_ratio", float, 0.75, "share of tokens hidden in a masked view"),
        Flag("--normlize_target", flags.switch, False, "standardise the pixels of each patch"),
        Flag("--only_mim_on_ori_img", bool, help="do not mask the augmented view"),
        Flag("--num_windows", int, 5, "instances of the contrast in an image"),
        Flag("--patchnet_name", default="regular", help=f"patch head: {', '.join(NAMES)}"),
        Flag("--loss_weight_pixel", float, 1.0, "weight of the pixel loss"),
        Flag("--loss_weight_contrast", float, 0.0, "weight of the contrastive loss"),
        Flag("--contrast_warmup_steps", int, 0, "ramp of that weight"),
        Flag("--contrast_start_epoch", int, 0, "epoch in which the ramp begins"),
        Flag("--moco_dim", int, 256, "width of the projections", range=(1, inf)),
        Flag("--moco_mlp_dim", int, 4096, "hidden width of projector and predictor", range=(1, inf)),
        Flag("--moco_m", float, 0.99, "momentum, at the start"),
        Flag("--use_moco_m_cos", int, 1, "0 keeps the momentum; else it rises to 1"),
        Flag("--moco_t", float, 1.0, "temperature of the contrast"),
    ),
    "data": (
        Flag("--image_alone_path", default="", nargs="+", help="LMDB folders; labels are not read"),
        Flag("--aloneimage_num_samples", int, inf, "first so many of each LMDB", range=(1, inf)),
        Flag("--exclude", default="", help="list of pictures not to train on, from `strlab doctor --against`"),
        Flag("--num_view", int, 1, "views of an image; must be 2"),
        Flag("--input_h", int, 32, "height of both views", range=(1, inf)),
        Flag("--input_w", int, 128, "width of both views", range=(1, inf)),
        Flag("--batch_size", int, 64, "of one process", range=(1, inf)),
        Flag("--epochs", int, 300, "passes over the data", range=(1, inf)),
        Flag("--save_ckpt_freq", int, 1, "epochs between checkpoints", range=(1, inf), free=True),
        Flag("--eval_freq", int, 500, "a tenth of the steps between checkpoints in an epoch", range=(1, inf),
             free=True),
    ),
    "optimisation": flags.optimisation(lr=1.5e-4, min_lr=1e-5, warmup_epochs=40, betas=per(M=[0.9, 0.999])),
    "nodes": (
        Flag("--init_method", default="tcp://127.0.0.1:23456", help="tcp://HOST:PORT of the first node",
             variants=NODES),
        Flag("--rank", int, 0, "number of this node", variants=NODES),
        Flag("--dataset_dir", default="", help="parent folder of --remote_folders", variants=NODES),
        Flag("--remote_folders", default="openimagev5text_nolabel__googlecc", variants=NODES,
             help="LMDB folders below --dataset_dir, separated by __; used where --image_alone_path is not given"),
    ),
    "run": flags.run(workers=10),
    "": (
        no_effect("--encoder_type", str, "vit"), no_effect("--text_mask_ratio", float, 0.15),
        no_effect("--use_multiscale_mask"), no_effect("--aug_ratio", float, 0.0), no_effect("--use_corner_mask"),
        no_effect("--corner_ratio", float, 0.0), no_effect("--corner_prob", float, 0.0),
        no_effect("--mask_scales", int, 1), no_effect("--mask_ratios", float, 0.75), no_effect("--use_abi_aug"),
        no_effect("--use_color_aug"), no_effect("--use_hard_sample"), no_effect("--input_size", int, 224),
        no_effect("--num_mem_slots", int, 0), no_effect("--use_mem_in_decoder"), no_effect("--use_ema"),
        no_effect("--momentum_teacher", float, 0.996), no_effect("--momentum_teacher_end", float, 1.0),
        no_effect("--loss_feat_type", str, "cossim"), no_effect("--loss_feat_beta", float, 2),
        no_effect("--fix_mask_token"), no_effect("--warmup_lr", float, 1e-06), no_effect("--loss_win_size", int, 3),
        no_effect("--use_loss_weight"), no_effect("--loss_weight_feat_align", float, 0.0),
        no_effect("--contrast_temperature", float, 1), no_effect("--loss_weight_consist", float, 0.0),
        no_effect("--relation_window_size", str, "8_32"), no_effect("--num_relation_heads", int, 1),
        no_effect("--relation_T", float, 1.0), no_effect("--soft_label_type", str, "none"),
        no_effect("--loss_weight_distill", float, 0.0), no_effect("--num_distribution", int, 100000),
        no_effect("--queue_size", int, 65536), no_effect("--loss_weight_semgroup", float, 0.0),
        no_effect("--distill_start_epoch", int, 1), no_effect("--cluster_update_interval", str, "step"),
        no_effect("--moco_m_cos"), no_effect("--use_patch_transformer"), no_effect("--use_image_slice"),
        no_effect("--alternately_training"), no_effect("--alternately_epoch_training"),
        no_effect("--first_train_mim"), no_effect("--use_mim"), no_effect("--use_moco"),
        no_effect("--attn_map_type", str, "none"), no_effect("--recon_patch_scales", str, "1"),
        no_effect("--num_target_layers", int, 1), no_effect("--corrupt_ops_ratios", str, "1._0._0."),
        no_effect("--loss_weight_pos", float, 0.0), no_effect("--color_jitter", float, 0.0),
        no_effect("--train_interpolation", str, "bicubic"),
        no_effect("--data_path", str, flags.PLACEHOLDER, nargs="+"),
        no_effect("--imagenet_default_mean_and_std", bool, True), no_effect("--train_url", str, ""),
        no_effect("--voc_type", str, "ALLCASES_SYMBOLS"), no_effect("--max_len", int, 25),
        no_effect("--num_samples", int, inf), no_effect("--mix_train_with_ctx"), no_effect("--ctx_path", str, ""),
        no_effect("--ctx_min_len", int, 2), no_effect("--ctx_max_len", int, 25),
        no_effect("--ctx_num_samples", int, inf), no_effect("--ctx_nb_classes", int, 97),
        no_effect("--image_to_ctx_ratio", int, 50), no_effect("--mix_train_with_aloneimage"),
        no_effect("--only_real_data_for_pretrain"), no_effect("--text_loss_weight", float, 1.0),
        no_effect("--vis_loss_weight", float, 1.0),
    ),
})  # fmt: skip


@dataclass(frozen=True)
class Options(flags.RunOptions):
    """The flags of pre-training that act."""

    model: str
    mask_ratio: float
    normlize_target: bool
    only_mim_on_ori_img: bool
    num_windows: int
    patchnet_name: str
    loss_weight_pixel: float
    loss_weight_contrast: float
    contrast_warmup_steps: int
    contrast_start_epoch: int
    moco_dim: int
    moco_mlp_dim: int
    moco_m: float
    use_moco_m_cos: int
    moco_t: float
    image_alone_path: list[str]
    aloneimage_num_samples: float
    exclude: str

    def build_options(self) -> dict[str, Any]:
        """Arguments of the model's constructor; also kept in the checkpoints' metadata."""
        return {
            "dim": self.moco_dim,
            "mlp_dim": self.moco_mlp_dim,
            "temperature": self.moco_t,
            "windows": self.num_windows,
            "patchnet_name": self.patchnet_name,
            "drop_path": self.drop_path,
            "image_size": self.image_size,
        }


def parse(argv: Sequence[str] | None = None) -> tuple[Options, dict[str, Any]]:
    """The options, and the value of every flag as the published checkpoints keep them.

    Raises `UserError` for combinations that cannot run.
    """
    values, given = TABLE.parse(argv, SCRIPT, DESCRIPTION)
    check(values)
    values["device"] = device_of(values["device"], "device" in given)
    return fill(Options, values), values


def check(values: Mapping[str, Any]) -> None:
    """Refuse early, in words; say where windows overlap."""
    flags.check_run(values)
    if values["model"] not in MODELS:
        raise UserError(f"--model: {values['model']!r} is unknown; use one of {', '.join(MODELS)}")
    if values["num_view"] != 2:
        raise UserError(f"--num_view: {values['num_view']}: pre-training compares two views; give --num_view 2")
    if values["patchnet_name"] not in NAMES:
        raise UserError(f"--patchnet_name: {values['patchnet_name']!r} is none of {', '.join(NAMES)}")
    if not values["image_alone_path"]:
        raise UserError("--image_alone_path: it is needed: one or more LMDB folders")
    if not 0 < values["mask_ratio"] < 1:
        raise UserError(f"--mask_ratio: {values['mask_ratio']} must lie between 0 and 1")
    if not values["moco_t"] > 0:
        raise UserError(f"--moco_t: {values['moco_t']} must be above 0")
    height, width, windows = values["input_h"], values["input_w"], values["num_windows"]
    size = SIZES[MODELS[values["model"]][1]]
    rows, columns = size.grid((height, width))
    if height % size.patch or width % size.patch:
        raise UserError(f"--input_h, --input_w: both must be multiples of the patch size {size.patch}")
    if not 1 <= windows <= columns:
        raise UserError(f"--num_windows: {windows} must be 1 to {columns}, the columns of patches")
    if columns % windows:
        print(f"--num_windows {windows} does not divide the {columns} columns of patches: windows overlap")
    if values["patchnet_name"] == "conv" and min(rows, columns) < 8:
        raise UserError("--patchnet_name: conv halves the patches three times; it needs at least 8 x 8 of them")
