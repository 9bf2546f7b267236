"""The options of SIGA's scripts: published names, types and defaults for R, S and T, and the additional ones.

Variants of the tables: R (TRBA, RBA), S (TSBA), T (char_str…). `dead` names those whose published code parses a flag
and never uses it; it is then accepted without effect, and a line says so. `Options` is what
train.py reads, with the values that the flags mean for the chosen model; test.py has its own in `flags_test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from common.data.words import source_names
from common.errors import UserError
from common.flags import LAUNCH as common_launch
from common.flags import Flag, Parser, Table, device_of, fill, per, share
from common.text.charset import CHARSET_36, SIGA_36, SIGA_94
from common.text.coverage import DEFAULT_SHARE
from projects.siga.model.variants import Variant, variant

SELECTIONS = {
    "synth": ["MJ", "ST"],
    "synth_SA": ["MJ", "ST", "SA"],
    "SD": ["train"],
    "label": [
        *("1.SVT", "2.IIIT", "3.IC13", "4.IC15", "5.COCO", "6.RCTW17", "7.Uber", "8.ArT", "9.LSVT", "10.MLT19"),
        "11.ReCTS",
    ],
}
"""Names of folders that a word of `--select_data` means."""
SELECTIONS["mix"] = [*SELECTIONS["label"], "MJ", "ST"]
SELECTIONS["mix_SA"] = [*SELECTIONS["mix"], "SA"]
SHARES = {"synth_SA": "0.4-0.4-0.2"}
GROUPS = ("pattern", "warp", "geometry", "weather", "noise", "blur", "camera", "process")
RECIPE = (
    *("isrand_aug", "issel_aug", "issemantic_aug", "isrotation_aug", "isscatter_aug", "islearning_aug"),
    *("intact_prob", "augs_num", "augs_mag", "fast_aug"),
    *GROUPS,
)
"""T's flags of augmentation, see `common.augment.recipes.from_flags`."""

MODEL = (
    Flag("--model_name", help="TRBA (R), RBA (R without TPS), TSBA (S), char_str_base_patch4_3_32_128 (T), …_small"),
    Flag("--TransformerModel", default="", variants="T", help="T's spelling of --model_name", free=True),
    Flag("--Transformer", variants="T", help="char-str, the one transformer of this paper", free=True),
    Flag("--num_fiducial", int, 20, "fiducial points of the TPS", dead="T"),
    Flag("--input_channel", int, 3, "channels of the image"),
    Flag("--output_channel", int, per(RT=512, S=384), "width of the visual columns", dead="T"),
    Flag("--hidden_size", int, 256, "width of the LSTMs; only 256 fits the published models", dead="T"),
    Flag("--batch_max_length", int, 25, "longest label; the decoders run one step more", range=(1, inf)),
    Flag("--imgH", int, per(RT=32, S=48), "height of the input image"),
    Flag("--imgW", int, per(RT=128, S=160), "width of the input image"),
    Flag("--character", str, per(RS=SIGA_36, T=CHARSET_36), "characters that are read, in index order"),
    Flag("--sensitive", bool, help="94 characters with upper case and punctuation"),
    Flag("--rgb", bool, variants="T", help="T's colour switch; images are always read in colour", dead="T"),
    Flag("--PAD", bool, variants="T", help="keep the aspect ratio and pad on the right"),
    Flag("--Transformation", default="", variants="T", dead="T"),
    Flag("--FeatureExtraction", default="", variants="T", dead="T"),
    Flag("--SequenceModeling", default="", variants="T", dead="T"),
    Flag("--Prediction", default="", variants="T", dead="T"),
    Flag("--mask_ratio", float, 0.5, variants="T", dead="T"),
    Flag("--patch_size", int, 4, variants="T", dead="T"),
)  # fmt: skip
DATA = (
    Flag("--train_data", help="root of the training LMDBs (every folder below it with a data.mdb)"),
    Flag("--eval_data --valid_data", help="root of the evaluation LMDBs; without it training evaluates nothing",
         free=True),
    Flag("--mask_path", help="root of the mask LMDBs of mask_create; '' makes masks on the fly (k-means)", dead="T"),
    Flag("--workers", int, per(R=8, S=12, T=1), "loader processes", range=(0, inf), free=True),
    Flag("--batch_size", int, per(R=384, S=288, T=8), "images a step: of each process (R, T), of all together (S)",
         range=(1, inf)),
    Flag("--test_batch_size", int, per(R=256, S=192, T=0), "images a step in evaluation; 0: as --batch_size",
         range=(0, inf), free=True),
    Flag("--select_data", str, per(RS="label", T="MJ-ST"),
         "synth (MJ, ST), synth_SA, label (11 real sets), mix, mix_SA, SD, / (all), or folder names joined by -"),
    Flag("--batch_ratio", str, per(RS=None, T="0.5-0.5"), "share of each source in a batch (T); R, S check its length"),
    Flag("--total_data_usage_ratio", str, "1.0", "T: share of each source that is used, from its beginning", dead="RS"),
    Flag("--data_filtering_off", bool, variants="T", help="evaluate labels longer than --batch_max_length too",
         free=True),
    Flag("--Aug", bool, help="augment (geometry, deterioration, colour)", dead="T"),
    Flag("--isrand_aug", bool, variants="T", help="random augmentation of T"),
    Flag("--intact_prob", float, 0.5, "share of images left as they are", variants="T", range=(0, 1)),
    Flag("--augs_num", int, 3, "operations on one image, of as many groups", variants="T", range=(1, inf)),
    Flag("--augs_mag", int, None, "strength 0, 1 or 2; drawn for each operation if not given", variants="T",
         range=(0, 2)),
    Flag("--issel_aug", bool, variants="T", help="augment with the groups that the next eight switches name"),
    Flag("--sel_prob", float, 1.0, variants="T", dead="T"),
    *(Flag(f"--{group}", bool, variants="T", help=f"group of --issel_aug: {group}") for group in GROUPS),
    Flag("--issemantic_aug", bool, variants="T", help="noise, motion blur and geometry only"),
    Flag("--isrotation_aug", bool, variants="T", help="rotation only"),
    Flag("--isscatter_aug", bool, variants="T", help="sets nothing in the published code", dead="T"),
    Flag("--islearning_aug", bool, variants="T", help="distortion, noise, motion blur, rotation and perspective only"),
)  # fmt: skip
STEPS = (
    Flag("--data_ratio", int, 1, "multiplies the steps; intervals and file names count in units of it", dead="T",
         range=(1, inf)),
    Flag("--num_iter", int, per(RT=300000, S=550000), "steps; S with adamw trains 10 epochs unless this is given",
         range=(1, inf)),
    Flag("--val_interval --valInterval", int, per(R=1000, ST=2000), "steps between evaluations", range=(1, inf),
         free=True),
    Flag("--log_interval --showInterval", int, per(RT=500, S=100), "steps between tensorboard points", range=(1, inf),
         free=True),
    Flag("--grad_clip", float, per(RT=5.0, S=None), "largest global gradient norm", range=(1e-12, inf)),
    Flag("--optimizer", str, per(R="adam", S="adamw", T="adadelta"), "adam, adamw or adadelta"),
    Flag("--adam", bool, variants="T", help="Adam instead of Adadelta"),
    Flag("--sgd", bool, variants="T", dead="T"),
    Flag("--beta1", float, 0.9, "first beta of --adam", variants="T"),
    Flag("--lr", float, per(R=0.00045, S=0.0005, T=1.0), "peak learning rate", range=(1e-12, inf)),
    Flag("--rho", float, 0.95, "of Adadelta"),
    Flag("--eps", float, 1e-8, "of Adadelta"),
    Flag("--lr_adadelta", float, 1.0, variants="RS", dead="RS"),
    Flag("--sgd_momentum", float, 0.9, variants="RS", dead="RS"),
    Flag("--sgd_weight_decay", float, 1e-6, variants="RS", dead="RS"),
    Flag("--schedule", str, "super",
         "super (R one-cycle, S warm-up and cosine), 1 (constant) or fractions of the steps to decay at", dead="T",
         nargs="*"),
    Flag("--lr_drop_rate", float, 0.1, "factor at each fraction of --schedule", dead="T", range=(0, 1)),
    Flag("--scheduler", bool, variants="T", help="cosine schedule; constant without"),
    Flag("--manual_seed --manualSeed", int, per(RS=111, T=1111), "seed of python, numpy, torch and the data",
         range=(0, 2**32 - 1)),
)  # fmt: skip
FILES = (
    Flag("--exp_name", help="name of the run; default Seed{seed}-{model} (R, S), {model} (T, which adds -Seed{seed})",
         free=True),
    Flag("--saved_model", default="", help="checkpoint to resume from: weights, and optimizer and step if it has them",
         free=True),
    Flag("--saved_path", default="./saved_models", help="folder of the runs", free=True),
    Flag("--resume --retrain", default=False, nargs="?", const="auto",
         help="auto (newest state of this run, or a fresh start), a training state, or yes (needs --saved_model)",
         free=True),
    Flag("--benchmark_all_eval", bool, help="evaluate the paper's ten sets and total, not every set under --eval_data",
         free=True),
    Flag("--fast_acc", bool, variants="T", help="evaluate IC13_857 SVT IIIT5k_3000 IC15_1811 SVTP CUTE80 only",
         free=True),
    Flag("--log_multiple_test", bool, variants="RS", dead="RS"),
    Flag("--FT", str, "init", variants="RS", dead="RS"),
    Flag("--FT", bool, variants="T", dead="T"),
    Flag("--NED", bool, variants="RS", dead="RS", help="1-NED is always reported"),
    Flag("--saved_model_language", default="", variants="RS", dead="RS"),
    Flag("--semi", default="None", variants="S", dead="S"),
    Flag("--MT_C", float, 1.0, variants="S", dead="S"),
    Flag("--MT_alpha", float, 0.999, variants="S", dead="S"),
    Flag("--model_for_PseudoLabel", default="", variants="S", dead="S"),
    Flag("--self_pre", default="RotNet", variants="S", dead="S"),
    Flag("--Iterable_Correct", bool, variants="S", dead="S"),
    Flag("--calculate_infer_time", bool, variants="T", dead="T", help="used by test.py"),
    Flag("--flops", bool, variants="T", dead="T"),
    Flag("--eval_img", bool, variants="T", dead="T"),
    Flag("--range", variants="T", dead="T", help="used by test.py"),
    Flag("--model_dir", default="", variants="T", dead="T", help="used by test.py"),
    Flag("--demo_imgs", default="", variants="T", dead="T", help="the demo is `strlab read`"),
)  # fmt: skip
LAUNCH = (
    Flag("--dist_url", default="env://", help="rendezvous of the processes", free=True),
    Flag("--local_rank --local-rank", int, per(RS=0, T=-1), "given by torch.distributed.launch", free=True),
    Flag("--world_size", int, 1, variants="T", dead="T", help="the launcher says it"),
    Flag("--device", default=per(RS="auto", T="cuda"), help="auto, cpu, cuda or cuda:N; T's default cuda means auto",
         free=True),
    *(flag for flag in common_launch if flag.name == "dist_timeout"),
)  # fmt: skip
OURS = (
    Flag("--amp", default="no", choices=("no", "fp16", "bf16"), help="mixed precision; the paper trains in fp32"),
    Flag("--compile", bool, help="torch.compile the model"),
    Flag("--tf32", bool, help="TF32 matrix products on CUDA"),
    Flag("--aug_resample", bool, dead="T",
         help="draw R's and S's geometry for every image, not once a run as published"),
    Flag("--fast_aug", bool, dead="RS",
         help="T: compose the geometric operations into one warp (other pixels, same draws)"),
    Flag("--rectify_masks", choices=("yes", "no"), dead="T",
         help="send masks through the TPS too; published R yes, S no"),
    Flag("--tps", default="auto", dead="T",
         help="TPS.pth, or a checkpoint of R or S (SIGA_R.pth): weights of the TPS, which is then frozen; auto: "
              "./TPS.pth as published, and where there is none the TPS is trained; none: it is trained", free=True),
    Flag("--pretrained", default=per(RS="", T="auto"),
         help="T: ViT weights to start from: a file, auto (DeiT-base from the usual caches) or none (random)",
         free=True),
    Flag("--init", default="", help="checkpoint to fine-tune, also to another --character: rows of classifiers move "
         "by character, and what is kept, new and dropped is printed", free=True),
    Flag("--download", bool, variants="T", help="fetch the file of --pretrained auto if it is not on this machine",
         free=True),
    Flag("--accumulate", int, 1, "batches a step", range=(1, inf)),
    Flag("--output", default="", help="folder for saved_models/ and tensorboard/; default: here", free=True),
    Flag("--tensorboard", default="./tensorboard", help="folder of the tensorboard runs; '' writes none", free=True),
    Flag("--save_interval", int, 0, "steps between training states for --resume; 0: as --val_interval", range=(0, inf),
         free=True),
    Flag("--keep_states", int, 2, "training states that are kept; 0: all", range=(0, inf), free=True),
    Flag("--disk_full", default="stop", choices=("stop", "continue"), help="what to do when a state cannot be written",
         free=True),
    Flag("--check_data", int, 16, "samples that are read and decoded before the first step; 0: none", range=(0, inf),
         free=True),
    Flag("--foreign", default="delete", choices=("delete", "skip", "error"),
         help="labels with characters outside the charset: delete these characters (published), skip the label, stop"),
    Flag("--unsupported_share", float, DEFAULT_SHARE,
         "share of labels that lose more than marks to --character that stops the run", range=(0, 1), free=True),
    Flag("--keep_empty_labels", bool, help="train on labels of which --character leaves nothing, as published"),
    Flag("--exclude", default="", help="words that are not trained on: a list that `strlab doctor --against` wrote"),
    Flag("--bad_share", float, 0.01, "share of unreadable samples that stops the run", range=(0, 1), free=True),
    Flag("--print_interval", int, 20, "steps between console lines", range=(1, inf), free=True),
    Flag("--allow_changes", bool,
         help="resume although options that decide what is trained differ from those of the state", free=True),
)  # fmt: skip

TRAIN = Table(
    {
        "model": MODEL,
        "data": DATA,
        "steps": STEPS,
        "files": FILES,
        "processes": LAUNCH,
        "additional (not in the original)": OURS,
    }
)


# ---- from the command line to typed options


@dataclass(frozen=True)
class ModelOptions:
    """What says which model it is, in training and in testing. Fields have the names of the flags."""

    variant: Variant
    model_name: str
    character: str
    batch_max_length: int
    imgH: int
    imgW: int
    num_fiducial: int
    output_channel: int
    hidden_size: int

    @property
    def family(self) -> str:
        return self.variant.family

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.imgH, self.imgW

    @property
    def build_options(self) -> dict[str, Any]:
        """What beyond the variant's name fixes the model, as a metadata file keeps it: options of `build_row`."""
        names = ["character", "batch_max_length"]
        if self.family != "T":
            names += ["num_fiducial", "output_channel", "hidden_size"]
        return {**{name: getattr(self, name) for name in names}, "image_size": [self.imgH, self.imgW]}


@dataclass(frozen=True)
class Options(ModelOptions):
    """What train.py reads. Fields have the names of the flags, but for those that are explained here.

    Attributes:
        variant: the architecture that `--model_name` means.
        selected: folder names that `--select_data` means; None: every set.
        shares: of each source in a batch, as given; None: equal ones.
        usage: part of each source that is used, from its beginning (`--total_data_usage_ratio`).
        recipe: the flags of T's augmentation by name.
        steps: `--num_iter` times `--data_ratio`; None: ten epochs (S with AdamW, without `--num_iter`).
        drops: `--schedule` as fractions of the steps; None: the variant's own schedule.
    """

    train_data: str
    select_data: str
    selected: list[str] | None
    shares: list[str] | None
    usage: float
    total_data_usage_ratio: str
    workers: int
    batch_size: int
    manual_seed: int
    steps: int | None
    val_interval: int
    log_interval: int
    optimizer: str
    lr: float
    rho: float
    eps: float
    saved_path: str
    dist_url: str
    local_rank: int
    dist_timeout: float
    device: str
    amp: str
    accumulate: int
    foreign: str
    unsupported_share: float
    keep_empty_labels: bool
    exclude: str
    sensitive: bool = False
    eval_data: str | None = None
    mask_path: str | None = None
    test_batch_size: int = 0
    data_filtering_off: bool = False
    Aug: bool = False
    aug_resample: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rectify_masks: str | None = None
    data_ratio: int = 1
    grad_clip: float | None = None
    beta1: float = 0.9
    drops: list[float] | None = None
    lr_drop_rate: float = 0.1
    scheduler: bool = False
    exp_name: str | None = None
    saved_model: str = ""
    resume: str | bool = False
    benchmark_all_eval: bool = False
    fast_acc: bool = False
    compile: bool = False
    tf32: bool = False
    tps: str = "auto"
    pretrained: str = ""
    init: str = ""
    download: bool = False
    output: str = ""
    tensorboard: str = ""
    save_interval: int = 0
    keep_states: int = 2
    disk_full: str = "stop"
    check_data: int = 16
    bad_share: float = 0.01
    print_interval: int = 20
    allow_changes: bool = False


def parse_training(argv: Sequence[str] | None) -> tuple[Options, dict[str, Any]]:
    """The options of train.py, and the value of every flag, for logs and states.

    Raises:
        UserError: unknown model, or values that cannot be meant.
    """
    chosen = find_variant(argv, None)
    if chosen is None:
        TRAIN.parser("train.py", "Train SIGA.", "R").parse_args(argv)  # --help and unknown flags come first
        raise UserError("--model_name: not given; choose TRBA, RBA, TSBA or char_str_base_patch4_3_32_128")
    values, given = TRAIN.parse(argv, "train.py", f"Train SIGA. Defaults are those of {chosen.name}.", chosen.family)
    settle(values, given, chosen)
    check(values, chosen)
    optimizer = "adam" if values.get("adam") else values["optimizer"].lower()
    ten_epochs = chosen.family == "S" and optimizer == "adamw" and "num_iter" not in given
    shares = values["batch_ratio"]
    if "batch_ratio" not in given:
        shares = SHARES.get(values["select_data"], shares)
    if values["select_data"] == "/":
        selected = None
    else:
        selected = SELECTIONS.get(values["select_data"]) or source_names(values["train_data"], values["select_data"])
        if "batch_ratio" not in given and len(selected) == 1:
            shares = None
    options = fill(
        Options,
        values,
        variant=chosen,
        device=device_of(values["device"], "device" in given),
        optimizer=optimizer,
        selected=selected,
        shares=shares.split("-") if shares else None,
        usage=share(values, "total_data_usage_ratio") if chosen.family == "T" else 1.0,  # R and S use all
        steps=None if ten_epochs else values["num_iter"] * values.get("data_ratio", 1),
        drops=fractions(values["schedule"]) if chosen.family != "T" else None,
        recipe={name: values[name] for name in RECIPE if name in values},
    )
    return options, values


def find_variant(argv: Sequence[str] | None, default: str | None) -> Variant | None:
    """The variant that the command line names, in any of the spellings; None if it names none."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--model_name")
    first.add_argument("--TransformerModel", default="")
    first.add_argument("--Transformer")
    known, _ = first.parse_known_args(argv)
    if known.Transformer not in (None, "char-str"):
        raise UserError(f"--Transformer: {known.Transformer}: SIGA has char-str only; mgp-str is in projects/mgpstr")
    name = known.model_name or known.TransformerModel or default
    if not name and known.Transformer:
        name = "char_str_base_patch4_3_32_128"
    return variant(name) if name else None


def settle(values: dict[str, Any], given: set[str], chosen: Variant) -> None:
    """Fill in what a model's name decides: its own sizes where none were given, and its published charset."""
    own = {
        "model_name": chosen.name,
        "imgH": chosen.image_size[0],
        "imgW": chosen.image_size[1],
        "output_channel": chosen.columns,
        "hidden_size": chosen.hidden,
    }
    values |= {name: value for name, value in own.items() if name == "model_name" or name not in given}
    if values["sensitive"] and "character" not in given:
        values["character"] = SIGA_94


def check(values: Mapping[str, Any], chosen: Variant) -> None:
    """Refuse values that cannot be meant, before anything is built. Raises `UserError` naming the flag."""
    family = chosen.family
    if not values["train_data"]:
        raise UserError("--train_data: not given; name the root of the training LMDBs (`strlab data synth` makes one)")
    if family != "T" and values["hidden_size"] != chosen.hidden:
        raise UserError(f"--hidden_size: {values['hidden_size']}: {chosen.name} has {chosen.hidden} only")
    if family == "R" and values["output_channel"] != chosen.columns:
        raise UserError(f"--output_channel: {values['output_channel']}: {chosen.name} has {chosen.columns} only")
    if values["input_channel"] != 3:
        raise UserError(f"--input_channel: {values['input_channel']}: images are read in colour; give 3")
    character = values["character"]
    if len(set(character)) != len(character) or not character:
        raise UserError("--character: empty, or a character occurs in it twice")
    if values["optimizer"].lower() not in ("adam", "adamw", "adadelta"):
        raise UserError(f"--optimizer: {values['optimizer']!r}: choose adam, adamw or adadelta")
    if values["init"] and values["saved_model"]:
        raise UserError("--init, --saved_model: both give the weights that the run starts from; leave one out")
    if values.get("PAD"):
        raise UserError("--PAD: glyph masks fill the whole input, so padded training never worked; leave it out")


def fractions(schedule: str | list[str]) -> list[float] | None:
    """`--schedule` as fractions of the steps, None for "super". 1 is the end of the run: the rate stays as it is.

    Raises `UserError` for anything else.
    """
    given = schedule if isinstance(schedule, list) else [schedule]
    if given == ["super"]:
        return None
    try:
        values = [float(value) for item in given for value in item.strip("[]").replace(",", " ").split()]
    except ValueError:
        values = [-1.0]
    if not values or not all(0 < value <= 1 for value in values):
        raise UserError(f"--schedule: {' '.join(given)!r}: give super, 1 for a constant rate, or fractions as 0.6 0.8")
    return values


def ratios(shares: Sequence[str] | None, names: Sequence[str]) -> list[float]:
    """Shares of a batch by source, equal ones where none are given.

    Raises:
        UserError: not numbers, or another count than sources.
    """
    if shares is None:
        return [1.0 / len(names)] * len(names)
    try:
        found = [float(share) for share in shares]
    except ValueError:
        raise UserError(f"--batch_ratio: {'-'.join(shares)!r} are no numbers joined by -, as 0.5-0.5") from None
    if len(found) != len(names) or min(found) <= 0:
        raise UserError(
            f"--batch_ratio: {len(found)} shares for {len(names)} sources ({'-'.join(names)}); give each one"
        )
    return found
