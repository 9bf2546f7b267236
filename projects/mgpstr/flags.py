"""The command line of MGP-STR and ACDS-STR: one parser for train, test and demo, as published, and ours beside it.

Both code bases share the flags; ACDS adds three and has another default batch. Flags that the original parses and never
uses are accepted, listed by `--help` under their own heading, and said when given another value.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.text.charset import CHARSET_36, CHARSET_94
from common.train.distributed import add_launch_arguments
from projects.mgpstr.model.names import ACDS, MICRO, MODELS, TRANSFORMERS

# name: (type, default, help)
VALUES: dict[str, tuple[type, Any, str]] = {
    "exp_name": (str, None, "name of the run; default: the model; -Seed<manualSeed> is added"),
    "manualSeed": (int, 1111, "seed of python, numpy, torch and the data (plus rank)"),
    "workers": (int, 4, "loader processes"),
    "batch_size": (int, 192, "images a step of each process; ACDS-STR's default is 1"),
    "num_iter": (int, 300000, "steps; the README trains 2000000"),
    "valInterval": (int, 2000, "steps between validations; the README uses 5000"),
    "saved_model": (str, "", "checkpoint whose weights training goes on from"),
    "saved_path": (str, "./saved_models", "folder of the runs"),
    "lr": (float, 1, "learning rate; the published ACDS run had 0.38328, the cosine's value at step 575000"),
    "beta1": (float, 0.9, "of --adam"),
    "rho": (float, 0.95, "of Adadelta"),
    "eps": (float, 1e-8, "of Adadelta"),
    "grad_clip": (float, 5, "largest global norm of the gradient"),
    "select_data": (str, "MJ-ST", "folders below --train_data joined by -, each a source of the batch; / takes all"),
    "batch_ratio": (str, "0.5-0.5", "share of each source in a batch"),
    "total_data_usage_ratio": (str, "1.0", "share of each source that is used, from its beginning"),
    "batch_max_length": (int, 25, "longest label; the model has two positions more"),
    "imgH": (int, 32, "height of the input; the models have 32"),
    "imgW": (int, 128, "width of the input; the models have 128"),
    "character": (str, CHARSET_36, "characters that are read, in index order"),
    "TransformerModel": (str, "", f"one of {', '.join((*MODELS, *MICRO))}"),
    "intact_prob": (float, 0.5, "share of images that no augmentation touches"),
    "augs_num": (int, 3, "groups that --isrand_aug draws"),
    "augs_mag": (int, None, "magnitude 0, 1 or 2; drawn for each operation if not given"),
    "device": (str, "cuda", "auto, cpu, cuda or cuda:N; the published default cuda means auto"),
    "range": (str, None, "a-b: of a folder given as --model_dir, only iter_N with a <= N <= b"),
    "model_dir": (str, "", "test, demo: checkpoint, or (test) folder of iter_*.pth"),
    "demo_imgs": (str, "", "demo: image or folder"),
}
SWITCHES = {
    "benchmark_all_eval": "test over the paper's list of sets, one by one",
    "calculate_infer_time": "test with batches of one image",
    "flops": "test: print the multiply-adds of a forward pass",
    "adam": "Adam(lr, (beta1, beta2)) instead of Adadelta",
    "sensitive": "94 characters, case kept",
    "PAD": "keep the aspect ratio, black to the right",
    "data_filtering_off": "keep labels longer than --batch_max_length",
    "issel_aug": "augment with the groups that the next eight switches name",
    "scheduler": "cosine learning rate with restarts each 1,000,000 steps; constant without",
    "isrand_aug": "random augmentation",
    "issemantic_aug": "noise, motion blur and geometry only",
    "isrotation_aug": "rotation only (with --augs_num 1)",
    "islearning_aug": "distortion, noise, motion blur, rotation and perspective only",
    "fast_acc": "the short list of sets",
    "eval_img": "test: the sets are lists <name>.txt of `label path` lines below --eval_data",
    "freeze": "ACDS: freeze the CNN below layer5",
    "close_aug": "no augmentation at all",
    "is_mask_supervision": "ACDS: train the map with the character boxes of the training LMDBs",
}
GROUPS = ("pattern", "warp", "geometry", "weather", "noise", "blur", "camera", "process")
# parsed by the original and never used; rgb because every model needs colour, so images are always decoded so
DEAD_VALUES: dict[str, tuple[type, Any]] = {
    "Transformation": (str, ""),
    "FeatureExtraction": (str, ""),
    "SequenceModeling": (str, ""),
    "Prediction": (str, ""),
    "num_fiducial": (int, 20),
    "input_channel": (int, 3),
    "output_channel": (int, 512),
    "hidden_size": (int, 256),
    "sel_prob": (float, 1.0),
    "world_size": (int, 1),
    "mask_ratio": (float, 0.5),
    "patch_size": (int, 4),
}
DEAD_SWITCHES = ("FT", "sgd", "rgb", "isscatter_aug")
SILENT = ("rgb",)  # stands in every published command
OURS: dict[str, tuple[type, Any, str]] = {
    "resume": (str, "", "auto (newest state of this run, or a fresh start) or a training state: go on exactly"),
    "pretrained": (
        str,
        "auto",
        "encoder weights to start from: auto looks for the published DeiT or MAE file in the caches of torch.hub, timm "
        "and Hugging Face and warns where there is none; none starts from random weights; or a file",
    ),
    "granularities": (str, "char-bpe-wp", "heads of mgp-str, char first"),
    "aug_preset": (str, "original", "strengths of the augmentation: original or straug"),
    "amp": (str, "no", "no, bf16 or fp16; the paper trains in fp32"),
    "lr_period": (int, 1_000_000, "steps of a cycle of --scheduler"),
    "lr_warmup": (int, 0, "steps over which the rate rises from 0, before the cycle counts"),
    "beta2": (float, 0.999, "of --adam"),
    "subword_weight": (float, 1.0, "factor of the BPE and WordPiece losses; the paper adds them as they are"),
    "print_interval": (int, 50, "steps between console lines"),
    "checkpoint_interval": (int, 5000, "steps between iter_N.pth files"),
    "save_interval": (int, 0, "steps between training states for --resume; 0: as --valInterval"),
    "keep_states": (int, 2, "training states that are kept; 0: all"),
    "disk_full": (str, "stop", "stop or continue when a training state cannot be written"),
    "result_path": (str, "./result", "test: folder of the results"),
    "bad_share": (float, 0.01, "share of unreadable samples that stops the run"),
}
OUR_SWITCHES = {
    "sheets": "demo: also draw every head with a line for each token, as <name>_<reading>_heads.png",
    "download": "fetch the start weights of --pretrained auto into torch.hub's cache if they are not on this machine",
    "compile": "torch.compile the encoder",
    "tf32": "TF32 matrix products on CUDA",
    "fast_aug": "compose the geometric operations of the augmentation into one warp",
    "mask_logits": "ACDS: take the map as logits in the mask loss, not clamped as published",
    "freeze_statistics": "ACDS with --freeze: keep the frozen batch norms' statistics too",
}


LEAST: dict[str, float] = {
    **dict.fromkeys(("batch_size", "num_iter", "valInterval", "batch_max_length"), 1),
    **dict.fromkeys(("lr_period", "print_interval", "checkpoint_interval"), 1),
    **dict.fromkeys(("workers", "lr_warmup", "save_interval", "keep_states", "bad_share", "subword_weight"), 0),
    **dict.fromkeys(("lr", "beta1", "rho", "eps", "grad_clip", "manualSeed"), 0),
}


def build_parser(is_train: bool, prog: str, suppress: bool = False) -> argparse.ArgumentParser:
    """The parser; with `suppress` no defaults, so that its result holds only what was given."""
    epilog = f"--Transformer is one of {', '.join(TRANSFORMERS)}"
    parser = argparse.ArgumentParser(prog=prog, description="STR", allow_abbrev=False, epilog=epilog)
    parser.add_argument("--Transformer", required=not suppress, help="method: " + ", ".join(TRANSFORMERS))
    for name in ("train_data", "valid_data"):
        parser.add_argument(f"--{name}", required=is_train and not suppress, help="root of LMDB folders")
    parser.add_argument("--eval_data", help="root of the evaluation sets")
    add_launch_arguments(parser, default_rank=-1)
    dead = parser.add_argument_group("accepted for compatibility, no effect")
    for table in (VALUES, OURS):
        for name, (kind, default, text) in table.items():
            shown = "" if default in ("", None) else " (default: %(default)s)"
            parser.add_argument(f"--{name}", type=kind, default=default, help=text.replace("%", "%%") + shown)
    for name, text in {**SWITCHES, **dict.fromkeys(GROUPS, "group of --issel_aug"), **OUR_SWITCHES}.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    for name, (kind, default) in DEAD_VALUES.items():
        dead.add_argument(f"--{name}", type=kind, default=default)
    for name in DEAD_SWITCHES:
        dead.add_argument(f"--{name}", action="store_true")
    if suppress:
        for action in parser._actions:
            action.default = argparse.SUPPRESS
    return parser


def get_args(argv: Sequence[str] | None = None, is_train: bool = True, prog: str | None = None) -> argparse.Namespace:
    """Parse and check a command line.

    The result has every flag, and `given`: the names of those on the command line. `--sensitive` sets the charset and
    ACDS-STR the default batch. Raises `UserError` for values that cannot be.
    """
    name = prog or ("train_final_dist.py" if is_train else "test_final.py")
    options = build_parser(is_train, name).parse_args(argv)  # first: it knows the defaults that --help shows
    options.given = sorted(vars(build_parser(is_train, name, suppress=True).parse_args(argv)))
    if options.Transformer in ACDS and "batch_size" not in options.given:
        options.batch_size = 1
    if options.sensitive and "character" not in options.given:
        options.character = CHARSET_94
    if options.device == "cuda" and "device" not in options.given:
        options.device = "auto"
    note_dead(options, name)
    check(options)
    return options


def note_dead(options: argparse.Namespace, script: str) -> None:
    """Say which given flags have no effect, at all or in this command."""
    dead = [name for name in (*DEAD_VALUES, *DEAD_SWITCHES) if name in options.given and name not in SILENT]
    if dead:
        print(f"no effect (accepted for compatibility): {' '.join(f'--{name}' for name in dead)}")
    idle = {
        "compile": f"by {script}" if script != "train_final_dist.py" else "",
        "tf32": f"by {script}" if script == "demo.py" else "",
        "sheets": f"by {script}" if script != "demo.py" else "",
        "pretrained": "beside --saved_model" if options.saved_model else "",
        "download": "with --saved_model" if options.saved_model else "",
        "freeze_statistics": "without --freeze" if not options.freeze else "",
    }
    for name, why in idle.items():
        if why and name in options.given:
            print(f"--{name}: not used {why}")


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be before anything is built."""
    if options.Transformer not in TRANSFORMERS:
        known = ", ".join(TRANSFORMERS)
        raise UserError(f"--Transformer: no method is called {options.Transformer!r}; there are {known}")
    if options.TransformerModel and options.TransformerModel not in (*MODELS, *MICRO):
        known = ", ".join((*MODELS, *MICRO))
        raise UserError(f"--TransformerModel: no model is called {options.TransformerModel!r}; there are {known}")
    if (options.imgH, options.imgW) != (32, 128):
        raise UserError(f"--imgH, --imgW: {options.imgH}x{options.imgW}: the models are made for 32x128")
    for name, least in LEAST.items():
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) >= least):
            raise UserError(f"--{name}: {getattr(options, name)} must be a number of at least {least}")
    if options.lr <= 0:
        raise UserError(f"--lr: {options.lr} must be positive")
    if not 0 <= options.intact_prob <= 1:
        raise UserError(f"--intact_prob: {options.intact_prob} must be between 0 and 1")
    if not options.character or len(set(options.character)) != len(options.character):
        raise UserError("--character: empty, or a character stands in it twice")
    if options.amp not in ("no", "fp16", "bf16"):
        raise UserError(f"--amp: {options.amp!r} is none of no, fp16, bf16")
    if options.disk_full not in ("stop", "continue"):
        raise UserError(f"--disk_full: {options.disk_full!r} is neither stop nor continue")
    if options.is_mask_supervision and options.Transformer not in ACDS:
        raise UserError(f"--is_mask_supervision: {options.Transformer} predicts no map; only {', '.join(ACDS)} do")
    if options.is_mask_supervision and options.PAD:
        raise UserError("--PAD: boxes are scaled to pictures that fill the input; not with --is_mask_supervision")
    if options.freeze and options.Transformer not in ACDS:
        raise UserError(f"--freeze: {options.Transformer} has no CNN to freeze")
    if options.train_data:
        shares(options)
    usage(options)


def source_list(options: argparse.Namespace) -> list[str]:
    """The sources that `--select_data` names; folders with a hyphen in their name stay whole."""
    from common.data.words import source_names

    return source_names(options.train_data, options.select_data) if options.train_data else ["/"]


def shares(options: argparse.Namespace) -> list[float]:
    """`--batch_ratio` as numbers, one for each source of `--select_data`. Raises `UserError`."""
    sources = source_list(options)
    try:
        values = [float(value) for value in options.batch_ratio.split("-")]
    except ValueError:
        raise UserError(f"--batch_ratio: {options.batch_ratio!r}: give numbers joined by -, as 0.5-0.5") from None
    if len(sources) == 1 and "batch_ratio" not in options.given:
        return [1.0]
    if len(values) != len(sources) or min(values) <= 0:
        raise UserError(
            f"--batch_ratio: {options.batch_ratio} has {len(values)} shares and --select_data {options.select_data} "
            f"{len(sources)} sources; give each source a positive share"
        )
    return values


def usage(options: argparse.Namespace) -> float:
    """`--total_data_usage_ratio` as a number in (0, 1]. Raises `UserError`."""
    try:
        value = float(options.total_data_usage_ratio)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        given = options.total_data_usage_ratio
        raise UserError(f"--total_data_usage_ratio: {given!r} must be a number above 0, at most 1")
    return value
