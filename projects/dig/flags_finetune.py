"""The command line of `run_class_finetuning.py`: flags that act, flags of the original that never did."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.flags import add_no_effect, new_parser, note_no_effect, settle_device
from projects.dig import flags as shared
from projects.dig import text
from projects.dig.model.decoder import SIZES as DECODERS
from projects.dig.model.recogniser import ENCODERS

SWITCH = ("switch", False)
NO_EFFECT: dict[str, tuple] = {
    "insert_sem": SWITCH, "input_size": (int, 224), "num_mem_slots": (int, 0), "use_mem_in_decoder": SWITCH,
    "warmup_lr": (float, 1e-6), "use_multi_label_loss": SWITCH, "color_jitter": (float, 0.4),
    "aa": (str, "rand-m9-mstd0.5-inc1"), "train_interpolation": (str, "bicubic"), "crop_pct": (float, None),
    "reprob": (float, 0.25), "remode": (str, "pixel"), "recount": (int, 1), "resplit": SWITCH, "mixup": (float, 0.8),
    "cutmix": (float, 1.0), "cutmix_minmax": (float, None, "+"), "mixup_prob": (float, 1.0),
    "mixup_switch_prob": (float, 0.5), "mixup_mode": (str, "batch"), "init_scale": (float, 0.001),
    "use_mean_pooling": SWITCH, "imagenet_default_mean_and_std": ("switch", True), "train_url": (str, ""),
    "num_parts": (int, 1),
}  # fmt: skip
SETS = [
    "svt_647", "ic03_867", "ic13_1015", "IC13_857", "ic15_1811", "svt_p_645", "cute80_288", "cocotextval_9896",
    "ctw_1572", "totaltext_2201", "ost_heavy", "ost_weak",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All flags of the script."""
    parser = new_parser("run_class_finetuning.py", "Fine-tune, train or evaluate a DiG recogniser.")
    add_model(parser)
    add_weights(parser)
    add_data(parser)
    add_loop(parser)
    add_legacy(parser)
    shared.add_optimisation(parser, lr=1e-3, min_lr=1e-6, warmup_epochs=5)
    shared.add_run(parser, workers=5)
    add_no_effect(parser, NO_EFFECT)
    parser.add_argument("--use_cls", action="store_false", dest="use_mean_pooling", help="no effect")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Encoder and decoder."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="deit_base_patch16_224", help=f"one of {', '.join(ENCODERS)}")
    group.add_argument("--decoder_name", default="tf_decoder", help=f"one of {', '.join(DECODERS)}")
    group.add_argument("--decoder_type", default="tf_decoder", help="tf_decoder, or attention for the GRU")
    group.add_argument("--text_cond_vis", action="store_true", help="modulate the image tokens by each query")
    group.add_argument("--use_1d_attdec", action="store_true", help="average the rows of patches before the decoder")
    group.add_argument("--drop", type=float, default=0.0, help="dropout of the encoder; the decoder's is 0.1")
    group.add_argument("--attn_drop_rate", type=float, default=0.0, help="dropout of the encoder's attention")
    group.add_argument("--drop_path", type=float, default=0.1, help="stochastic depth of the encoder")
    group.add_argument("--nb_classes", type=int, default=1000, help=f"size of the charset: {text.sizes()}")
    group.add_argument("--voc_type", default="ALLCASES_SYMBOLS", choices=text.VOCABULARIES, help="charset")
    group.add_argument("--max_len", type=int, default=100, help="steps of the decoder; words have up to max_len - 2")
    group.add_argument("--use_seq_cls_token", type=bool, default=False, help="not available, see the README")
    group.add_argument("--use_contrastive_center_loss", action="store_true", help="not available, see the README")
    group.add_argument("--w2v_path", type=int, help="not available, see the README")
    group.add_argument("--enable_deepspeed", action="store_true", help="not available, see the README")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from."""
    group = parser.add_argument_group("weights")
    group.add_argument("--finetune", default="", help="a pre-trained or fine-tuned checkpoint to start from")
    group.add_argument("--model_key", default="model|module", help="where in the checkpoint the weights are")
    group.add_argument("--model_prefix", default="", help="put in front of the checkpoint's names")
    group.add_argument("--fixed_encoder_layers", type=int, default=0, help="freeze the embedding and k - 1 blocks")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Data."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default=shared.PLACEHOLDER, nargs="+", help="LMDB folders to train on")
    group.add_argument("--eval_data_path", help="LMDB folder to validate on, the first set of --eval")
    group.add_argument(
        "--other_test_data_folders", nargs="+", default=SETS, help="further sets beside that, for --eval"
    )
    group.add_argument("--data_set", default="IMNET", choices=["CIFAR", "IMNET", "image_folder", "image_lmdb"],
                       help="must be image_lmdb")  # fmt: skip
    group.add_argument("--num_samples", type=float, default=math.inf, help="of each LMDB: a number, or a share <= 1")
    group.add_argument(
        "--unsupported_share", type=float, default=0.05,
        help="share of labels that lose more than marks to --voc_type that stops the run",
    )  # fmt: skip
    group.add_argument("--exclude", default="", help="list of words not to train on, from `strlab doctor --against`")
    group.add_argument("--num_view", type=int, default=1, help="above 1: augment")
    group.add_argument("--use_abi_aug", action="store_true", help="ABINet's augmentation instead of SeqCLR's")
    group.add_argument("--input_h", type=int, default=32, help="height of the input")
    group.add_argument("--input_w", type=int, default=128, help="width of the input")


def add_loop(parser: argparse.ArgumentParser) -> None:
    """Length of the run, losses, evaluation."""
    group = parser.add_argument_group("training and evaluation")
    group.add_argument("--batch_size", type=int, default=64, help="of one process and one micro-batch")
    group.add_argument("--epochs", type=int, default=30, help="passes over the data")
    group.add_argument("--update_freq", type=int, default=1, help="micro-batches of a step")
    group.add_argument("--save_ckpt_freq", type=int, default=1, help="epochs between checkpoints; 20 above 100 epochs")
    group.add_argument("--save_ckpt", action="store_true", default=True, help="write checkpoints")
    group.add_argument("--no_save_ckpt", action="store_false", dest="save_ckpt", help="write none")
    group.add_argument("--eval_freq", type=int, default=1000, help="steps between validations")
    group.add_argument("--disable_eval_during_finetuning", action="store_true", help="no validation while training")
    group.add_argument("--layer_decay", type=float, default=0.75, help="learning rate from layer to layer; 1: off")
    group.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    group.add_argument("--model_ema", action="store_true", help="keep an averaged copy in the checkpoints")
    group.add_argument("--model_ema_decay", type=float, default=0.9999, help="of the averaged copy")
    group.add_argument("--model_ema_force_cpu", action="store_true", help="keep it in the host's memory")
    group.add_argument("--eval", action="store_true", help="only evaluate")
    group.add_argument("--dist_eval", action="store_true", help="share the evaluation among the processes")
    group.add_argument("--beam_width", type=int, default=0, help="beam search when evaluating; 0: greedy")


def add_legacy(parser: argparse.ArgumentParser) -> None:
    """Published behaviour that was mended here, see the README."""
    group = parser.add_argument_group("faults of the published code")
    group.add_argument("--legacy-items", action="store_true", help="replace unusable samples by their neighbours")
    group.add_argument("--legacy-smoothing", action="store_true", help="label smoothing with its broadcast fault")
    group.add_argument("--legacy-beam-search", action="store_true", help="beams that take over foreign histories")
    group.add_argument("--legacy-frozen-augment", action="store_true", help="draw the kind of distortion once a run")
    group.add_argument("--legacy-percent", action="store_true", help="print shares of words with a percent sign")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check. Raises `UserError` for combinations that cannot run."""
    options = parser().parse_args(argv)
    check(options)
    note_no_effect(options, NO_EFFECT)
    settle_device(options, argv)
    if options.epochs > 100 and options.save_ckpt_freq < 20:
        options.save_ckpt_freq = 20  # as published: long runs keep fewer checkpoints
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse early, in words."""
    shared.check_common(options)
    check_model(options)
    if options.data_set != "image_lmdb":
        raise UserError(f"--data_set: {options.data_set}: words come from LMDBs; give --data_set image_lmdb")
    needs_validation = options.eval or not options.disable_eval_during_finetuning
    if needs_validation and not options.eval_data_path:
        raise UserError("--eval_data_path: it is needed; or give --disable_eval_during_finetuning to train without")
    if options.eval and not (options.resume or options.finetune or options.auto_resume):
        raise UserError("--resume: --eval needs a checkpoint")
    if isinstance(options.data_path, str):
        options.data_path = [options.data_path]
    if not options.eval:
        missing = [path for path in options.data_path if not Path(path).is_dir()]
        if missing:
            raise UserError(f"--data_path: {missing[0]}: no such LMDB folder")
    if options.num_samples <= 0:
        raise UserError(f"--num_samples: {options.num_samples} must be above 0")
    if options.update_freq < 1:
        raise UserError(f"--update_freq: {options.update_freq} must be at least 1")
    if not 0 <= options.smoothing < 1:
        raise UserError(f"--smoothing: {options.smoothing} must lie in [0, 1)")


def check_model(options: argparse.Namespace) -> None:
    """Model, decoder and charset fit each other."""
    if options.model not in ENCODERS:
        raise UserError(f"--model: {options.model!r} is unknown; use one of {', '.join(ENCODERS)}")
    if options.decoder_type not in ("tf_decoder", "attention"):
        raise UserError(f"--decoder_type: {options.decoder_type!r} is neither tf_decoder nor attention")
    if options.decoder_name not in DECODERS:
        raise UserError(f"--decoder_name: {options.decoder_name!r} is unknown; use one of {', '.join(DECODERS)}")
    text.check_classes(options.nb_classes, options.voc_type)
    if not 3 <= options.max_len <= 200:
        raise UserError(f"--max_len: {options.max_len} must be 3 to 200, the length of the decoder's position table")
    recurrent = options.decoder_type == "attention"
    if recurrent and options.beam_width:
        raise UserError("--beam_width: the GRU decoder reads greedily only; give --beam_width 0")
    if recurrent and (options.text_cond_vis or options.use_1d_attdec):
        raise UserError("--decoder_type: --text_cond_vis and --use_1d_attdec belong to tf_decoder")
    if not 0 <= options.beam_width <= options.nb_classes:
        raise UserError(f"--beam_width: {options.beam_width} must be 0 to {options.nb_classes}")
    cure = "leave it out (README, section Deviations)"
    for name in ("use_seq_cls_token", "use_contrastive_center_loss", "w2v_path", "enable_deepspeed"):
        if getattr(options, name):
            raise UserError(f"--{name}: the published path behind it cannot run and is not offered; {cure}")
