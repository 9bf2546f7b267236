"""The command line of `run_class_finetuning.py` and the options that the script reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.flags import Flag, Table, device_of, fill
from common.text.charset import NAMED, described, read_charset
from common.text.coverage import DEFAULT_SHARE
from projects.dig import flags, text
from projects.dig.flags import no_effect
from projects.dig.model.decoder import SIZES as DECODERS
from projects.dig.model.recogniser import ENCODERS

SCRIPT, DESCRIPTION = "run_class_finetuning.py", "Fine-tune, train or evaluate a DiG recogniser."
NOT_OFFERED = "not available, see the README"
SETS = [
    "svt_647", "ic03_867", "ic13_1015", "IC13_857", "ic15_1811", "svt_p_645", "cute80_288", "cocotextval_9896",
    "ctw_1572", "totaltext_2201", "ost_heavy", "ost_weak",
]  # fmt: skip


TABLE = Table({
    "model": (
        Flag("--model", default="deit_base_patch16_224", help=f"one of {', '.join(ENCODERS)}"),
        Flag("--decoder_name", default="tf_decoder", help=f"one of {', '.join(DECODERS)}"),
        Flag("--decoder_type", default="tf_decoder", help="tf_decoder, or attention for the GRU"),
        Flag("--text_cond_vis", bool, help="modulate the image tokens by each query"),
        Flag("--use_1d_attdec", bool, help="average the rows of patches before the decoder"),
        Flag("--drop", float, 0.0, "dropout of the encoder; the decoder's is 0.1"),
        Flag("--attn_drop_rate", float, 0.0, "dropout of the encoder's attention"),
        Flag("--drop_path", float, 0.1, "stochastic depth of the encoder"),
        Flag("--nb_classes", int, 1000, f"size of the charset: {text.sizes()}"),
        Flag("--voc_type", default="ALLCASES_SYMBOLS", choices=text.VOCABULARIES, help="charset"),
        Flag("--charset_file", default="", help="another charset, one character a line; --nb_classes follows from it"),
        Flag("--max_len", int, 100, "steps of the decoder; words have up to max_len - 2"),
        Flag("--use_seq_cls_token", flags.switch, False, NOT_OFFERED),
        Flag("--use_contrastive_center_loss", bool, help=NOT_OFFERED),
        Flag("--w2v_path", int, help=NOT_OFFERED),
        Flag("--enable_deepspeed", bool, help=NOT_OFFERED),
    ),
    "weights": (
        Flag("--finetune", default="", help="a pre-trained or fine-tuned checkpoint to start from", free=True),
        Flag("--init", default="",
             help="a fine-tuned checkpoint to start from; rows of another charset move by character", free=True),
        Flag("--model_key", default="model|module", help="entry of the checkpoint that holds the weights", free=True),
        Flag("--model_prefix", default="", help="put in front of the checkpoint's names", free=True),
        Flag("--fixed_encoder_layers", int, 0, "freeze the embedding and k - 1 blocks"),
    ),
    "data": (
        Flag("--data_path", default=flags.PLACEHOLDER, nargs="+", help="LMDB folders to train on"),
        Flag("--eval_data_path", help="LMDB folder to validate on, the first set of --eval", free=True),
        Flag("--other_test_data_folders", nargs="+", default=SETS, help="further sets next to it, for --eval",
             free=True),
        Flag("--data_set", default="IMNET", choices=["CIFAR", "IMNET", "image_folder", "image_lmdb"],
             help="must be image_lmdb"),
        Flag("--num_samples", float, inf, "of each LMDB: a number, or a share <= 1"),
        Flag("--exclude", default="", help="list of words not to train on, from `strlab doctor --against`"),
        Flag("--num_view", int, 1, "above 1: augment"),
        Flag("--unsupported_share", float, DEFAULT_SHARE, "largest share of labels with characters outside the "
             "charset, which are trained as UNKNOWN; above it the run stops", range=(0, 1), free=True),
        Flag("--use_abi_aug", bool, help="ABINet's augmentation instead of SeqCLR's"),
        Flag("--input_h", int, 32, "height of the input", range=(1, inf)),
        Flag("--input_w", int, 128, "width of the input", range=(1, inf)),
    ),
    "training and evaluation": (
        Flag("--batch_size", int, 64, "of one process and one micro-batch", range=(1, inf)),
        Flag("--epochs", int, 30, "passes over the data", range=(1, inf)),
        Flag("--update_freq", int, 1, "micro-batches of a step", range=(1, inf)),
        Flag("--save_ckpt_freq", int, 1, "epochs between checkpoints; 20 above 100 epochs", range=(1, inf), free=True),
        Flag("--save_ckpt", bool, True, "write checkpoints", free=True),
        Flag("--no_save_ckpt", bool, True, "write none", const=False, dest="save_ckpt", free=True),
        Flag("--eval_freq", int, 1000, "steps between validations", range=(1, inf), free=True),
        Flag("--disable_eval_during_finetuning", bool, help="no validation while training", free=True),
        Flag("--layer_decay", float, 0.75, "learning rate from layer to layer; 1: off"),
        Flag("--smoothing", float, 0.1, "label smoothing"),
        Flag("--model_ema", bool, help="keep an averaged copy in the checkpoints"),
        Flag("--model_ema_decay", float, 0.9999, "of the averaged copy"),
        Flag("--model_ema_force_cpu", bool, help="keep it in the host's memory", free=True),
        Flag("--eval", bool, help="only evaluate", free=True),
        Flag("--dist_eval", bool, help="share the evaluation among the processes", free=True),
        Flag("--beam_width", int, 0, "beam search when evaluating; 0: greedy", free=True),
    ),
    "faults of the published code": (
        Flag("--legacy-items", bool, help="replace unusable samples by their neighbours"),
        Flag("--legacy-smoothing", bool, help="label smoothing with its broadcast fault"),
        Flag("--legacy-beam-search", bool, help="beams that take over foreign histories", free=True),
        Flag("--legacy-frozen-augment", bool, help="draw the kind of distortion once a run"),
        Flag("--legacy-empty", bool, help="labels without letters and digits count: read where nothing is read",
             free=True),
        Flag("--legacy-percent", bool, help="print shares of words with a percent sign", free=True),
    ),
    "optimisation": flags.optimisation(lr=1e-3, min_lr=1e-6, warmup_epochs=5),
    "run": flags.run(workers=5),
    "": (
        no_effect("--insert_sem"), no_effect("--input_size", int, 224), no_effect("--num_mem_slots", int, 0),
        no_effect("--use_mem_in_decoder"), no_effect("--warmup_lr", float, 1e-6), no_effect("--use_multi_label_loss"),
        no_effect("--color_jitter", float, 0.4), no_effect("--aa", str, "rand-m9-mstd0.5-inc1"),
        no_effect("--train_interpolation", str, "bicubic"), no_effect("--crop_pct", float),
        no_effect("--reprob", float, 0.25), no_effect("--remode", str, "pixel"), no_effect("--recount", int, 1),
        no_effect("--resplit"), no_effect("--mixup", float, 0.8), no_effect("--cutmix", float, 1.0),
        no_effect("--cutmix_minmax", float, nargs="+"), no_effect("--mixup_prob", float, 1.0),
        no_effect("--mixup_switch_prob", float, 0.5), no_effect("--mixup_mode", str, "batch"),
        no_effect("--init_scale", float, 0.001), no_effect("--use_mean_pooling"),
        no_effect("--use_cls", const=False, dest="use_mean_pooling"),
        no_effect("--imagenet_default_mean_and_std", bool, True), no_effect("--train_url", str, ""),
        no_effect("--num_parts", int, 1),
    ),
})  # fmt: skip


@dataclass(frozen=True)
class Options(flags.RunOptions):
    """The flags of fine-tuning and evaluation that act."""

    model: str
    decoder_name: str
    decoder_type: str
    text_cond_vis: bool
    use_1d_attdec: bool
    drop: float
    attn_drop_rate: float
    nb_classes: int
    voc_type: str
    charset_file: str
    charset: str
    max_len: int
    finetune: str
    init: str
    model_key: str
    model_prefix: str
    fixed_encoder_layers: int
    data_path: list[str]
    eval_data_path: str | None
    other_test_data_folders: list[str]
    num_samples: float
    exclude: str
    num_view: int
    unsupported_share: float
    use_abi_aug: bool
    update_freq: int
    save_ckpt: bool
    disable_eval_during_finetuning: bool
    layer_decay: float
    smoothing: float
    model_ema: bool
    model_ema_decay: float
    model_ema_force_cpu: bool
    eval: bool
    dist_eval: bool
    beam_width: int
    legacy_items: bool
    legacy_smoothing: bool
    legacy_beam_search: bool
    legacy_frozen_augment: bool
    legacy_empty: bool
    legacy_percent: bool

    def build_options(self) -> dict[str, Any]:
        """What decides the form of the weights; also kept in the checkpoints' metadata."""
        return {
            "decoder_type": self.decoder_type,
            "decoder_name": self.decoder_name,
            "classes": self.nb_classes,
            "max_len": self.max_len,
            "conditioned": self.text_cond_vis,
            "one_row": self.use_1d_attdec,
            "image_size": self.image_size,
        }


def parse(argv: Sequence[str] | None = None) -> tuple[Options, dict[str, Any]]:
    """The options, and the value of every flag as the published checkpoints keep them.

    Raises `UserError` for combinations that cannot run.
    """
    values, given = TABLE.parse(argv, SCRIPT, DESCRIPTION)
    if isinstance(values["data_path"], str):
        values["data_path"] = [values["data_path"]]
    if values["epochs"] > 100:
        values["save_ckpt_freq"] = max(values["save_ckpt_freq"], 20)  # as published: long runs keep fewer checkpoints
    charset = NAMED[values["voc_type"]]
    if values["charset_file"]:
        charset = read_charset(values["charset_file"])
        print(f"{values['charset_file']}: {described(charset)}")
        if "nb_classes" not in given:
            values["nb_classes"] = len(charset) + text.SPECIALS
    check(values, charset)
    values["device"] = device_of(values["device"], "device" in given)
    return fill(Options, values, charset=charset), values


def check(values: Mapping[str, Any], charset: str) -> None:
    """Raise `UserError` for values that cannot be meant, before anything is read."""
    flags.check_run(values)
    check_model(values, charset)
    if values["data_set"] != "image_lmdb":
        raise UserError(f"--data_set: {values['data_set']}: words come from LMDBs; give --data_set image_lmdb")
    if not values["eval_data_path"] and (values["eval"] or not values["disable_eval_during_finetuning"]):
        raise UserError("--eval_data_path: it is needed; or give --disable_eval_during_finetuning to train without")
    if values["eval"] and not (values["resume"] or values["finetune"] or values["auto_resume"]):
        raise UserError("--resume: --eval needs a checkpoint")
    missing = [] if values["eval"] else [path for path in values["data_path"] if not Path(path).is_dir()]
    if missing:
        raise UserError(f"--data_path: {missing[0]}: no such LMDB folder")
    if values["init"] and values["finetune"]:
        raise UserError("--init: it cannot be given together with --finetune; both say what to start from")
    if values["num_samples"] <= 0:
        raise UserError(f"--num_samples: {values['num_samples']} must be above 0")
    if not 0 <= values["smoothing"] < 1:
        raise UserError(f"--smoothing: {values['smoothing']} must lie in [0, 1)")


def check_model(values: Mapping[str, Any], charset: str) -> None:
    """Model, decoder and charset fit each other."""
    model, classes, beams = values["model"], values["nb_classes"], values["beam_width"]
    if model not in ENCODERS:
        raise UserError(f"--model: {model!r} is unknown; use one of {', '.join(ENCODERS)}")
    if values["decoder_type"] not in ("tf_decoder", "attention"):
        raise UserError(f"--decoder_type: {values['decoder_type']!r} is neither tf_decoder nor attention")
    if values["decoder_name"] not in DECODERS:
        raise UserError(f"--decoder_name: {values['decoder_name']!r} is unknown; use one of {', '.join(DECODERS)}")
    text.check_classes(classes, charset, values["charset_file"] or f"--voc_type {values['voc_type']}")
    if not 3 <= values["max_len"] <= 200:
        raise UserError(f"--max_len: {values['max_len']} must be 3 to 200, the length of the decoder's position table")
    recurrent = values["decoder_type"] == "attention"
    if recurrent and beams:
        raise UserError("--beam_width: the GRU decoder reads greedily only; give --beam_width 0")
    if recurrent and (values["text_cond_vis"] or values["use_1d_attdec"]):
        raise UserError("--decoder_type: --text_cond_vis and --use_1d_attdec belong to tf_decoder")
    if not 0 <= beams <= classes:
        raise UserError(f"--beam_width: {beams} must be 0 to {classes}")
    for name in ("use_seq_cls_token", "use_contrastive_center_loss", "w2v_path", "enable_deepspeed"):
        if values[name]:
            raise UserError(
                f"--{name}: the published path behind it cannot run and is not offered; leave the flag out (README, "
                "section Deviations)"
            )
