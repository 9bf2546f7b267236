"""The command line of MGP-STR and ACDS-STR: one table for train, test and demo, as published, and additional flags.

Both code bases share the flags; ACDS-STR adds three and has another default batch. Flags that the published code parses
and never uses are accepted and listed by `--help` under their own heading.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any

from common.data.words import source_names
from common.errors import UserError
from common.flags import LAUNCH, Flag, Parser, Table, device_of, fill, per, share
from common.text.charset import CHARSET_36, CHARSET_94
from projects.mgpstr.model.names import ACDS, ACDS_SMALL, MICRO, MODELS, TRANSFORMERS

if TYPE_CHECKING:
    from common.augment.randaugment import RandAugment

ANY, POSITIVE = (0, inf), (1, inf)
AUGMENTATION_GROUPS = ("pattern", "warp", "geometry", "weather", "noise", "blur", "camera", "process")


def table(prog: str) -> Table:
    """The flags of a script; the variants are M (MGP-STR, char-str) and A (ACDS-STR).

    All three scripts take all flags, as published. Those that a script does not read are listed by its `--help` under
    their own heading.
    """
    training = prog == TRAIN
    groups = {
        "model": MODEL,
        "data": (
            Flag("--train_data", help="root of the training LMDBs", required=training),
            Flag("--valid_data", help="root of the validation LMDBs", required=training, free=True),
            *DATA,
        ),
        "training": TRAINING,
        "augmentation": AUGMENTATION,
        "start and resume": START,
        "test and demo": READING,
        "device": DEVICE,
        "unused": UNUSED,
    }
    if training:
        read = {flag.name for group in groups.values() if group is not READING for flag in group}
    else:
        read = DEMO if prog == "demo.py" else {field.name for field in fields(ReadOptions)} - {"demo_imgs", "sheets"}
        read |= {flag.name for flag in MODEL}
    shown = {
        title: [flag if flag.name in read else replace(flag, dead=True) for flag in group]
        for title, group in groups.items()
    }
    return Table(shown, epilog=f"--Transformer is one of {', '.join(TRANSFORMERS)}")


MODEL = (
    Flag("--Transformer", help="method: " + ", ".join(TRANSFORMERS), required=True),
    Flag("--TransformerModel", default="", help=f"one of {', '.join((*MODELS, *MICRO))}"),
    Flag("--character", default=CHARSET_36, help="characters that are read, in index order"),
    Flag("--sensitive", bool, help="94 characters, case kept"),
    Flag("--batch_max_length", int, 25, "longest label; the model has two positions more", range=POSITIVE),
    Flag("--granularities", default="char-bpe-wp", help="heads of mgp-str, char first"),
    Flag("--imgH", int, 32, "height of the input; the models have 32"),
    Flag("--imgW", int, 128, "width of the input; the published models have 128, the small ones take others"),
    Flag("--PAD", bool, help="keep the aspect ratio, black to the right"),
)
DATA = (
    Flag("--select_data", default="MJ-ST", help="folders below --train_data joined by -, each a source; / takes all"),
    Flag("--batch_ratio", default="0.5-0.5", help="share of each source in a batch"),
    Flag("--total_data_usage_ratio", default="1.0", help="share of each source that is used, from its beginning"),
    Flag("--data_filtering_off", bool, help="keep labels longer than --batch_max_length"),
    Flag("--is_mask_supervision", bool, help="ACDS: train the map with the character boxes of the training LMDBs"),
    Flag("--workers", int, 4, "loader processes", range=ANY, free=True),
    Flag("--bad_share", float, 0.01, "share of unreadable samples that stops the run", range=ANY, free=True),
    Flag("--unsupported_share", float, 0.05, "share of labels that lose letters to --character that stops", range=ANY),
    Flag("--keep_empty_labels", bool, help="train on labels of which --character leaves nothing, as published"),
    Flag("--exclude", default="", help="words that are not trained on: a list that `strlab doctor --against` wrote"),
)
TRAINING = (
    Flag("--manualSeed", int, 1111, "seed of python, numpy, torch and the data (plus rank)", range=ANY),
    Flag("--batch_size", int, per(M=192, A=1), "images a step of each process; ACDS-STR: 1", range=POSITIVE),
    Flag("--num_iter", int, 300000, "steps; the README trains 2000000", range=POSITIVE, free=True),
    Flag("--valInterval", int, 2000, "steps between validations; the README uses 5000", range=POSITIVE, free=True),
    Flag("--adam", bool, help="Adam(lr, (beta1, beta2)) instead of Adadelta"),
    Flag("--lr", float, 1, "learning rate; ACDS's run had 0.38328, the cosine's value at step 575000", range=ANY),
    Flag("--beta1", float, 0.9, "of --adam", range=(0, 1)),
    Flag("--beta2", float, 0.999, "of --adam", range=(0, 1)),
    Flag("--rho", float, 0.95, "of Adadelta", range=(0, 1)),
    Flag("--eps", float, 1e-8, "of Adadelta", range=ANY),
    Flag("--grad_clip", float, 5, "largest global norm of the gradient", range=ANY),
    Flag("--scheduler", bool, help="cosine learning rate with restarts each --lr_period steps; constant without"),
    Flag("--lr_period", int, 1_000_000, "steps of a cycle of --scheduler", range=POSITIVE),
    Flag("--lr_warmup", int, 0, "steps over which the rate rises from 0, before the cycle counts", range=ANY),
    Flag("--subword_weight", float, 1.0, "factor of the BPE and WordPiece losses; the paper adds them", range=ANY),
    Flag("--freeze", bool, help="ACDS: freeze the CNN below layer5"),
    Flag("--freeze_statistics", bool, help="ACDS with --freeze: keep the frozen batch norms' statistics too"),
    Flag("--mask_logits", bool, help="ACDS: take the map as logits in the mask loss, not clamped as published"),
)
AUGMENTATION = (
    Flag("--isrand_aug", bool, help="random augmentation"),
    Flag("--issel_aug", bool, help="augment with the groups that the next eight switches name"),
    *(Flag(f"--{group}", bool, help="group of --issel_aug") for group in AUGMENTATION_GROUPS),
    Flag("--issemantic_aug", bool, help="noise, motion blur and geometry only"),
    Flag("--isrotation_aug", bool, help="rotation only (with --augs_num 1)"),
    Flag("--islearning_aug", bool, help="distortion, noise, motion blur, rotation and perspective only"),
    Flag("--intact_prob", float, 0.5, "share of images that no augmentation touches", range=(0, 1)),
    Flag("--augs_num", int, 3, "groups that --isrand_aug draws"),
    Flag("--augs_mag", int, None, "magnitude 0, 1 or 2; drawn for each operation if not given"),
    Flag("--close_aug", bool, help="no augmentation at all"),
    Flag("--aug_preset", default="original", help="strengths of the augmentation: original or straug"),
    Flag("--fast_aug", bool, help="compose the geometric operations of the augmentation into one warp"),
)
START = (
    Flag("--saved_path", default="./saved_models", help="folder of the runs", free=True),
    Flag("--exp_name", help="name of the run; default: the model; -Seed<manualSeed> is added", free=True),
    Flag("--saved_model", default="", help="checkpoint from whose weights training continues", free=True),
    Flag(
        "--init",
        default="",
        help="checkpoint to fine-tune, also to another --character or --batch_max_length: rows of the classifier move "
        "by character, and what is kept, new and dropped is printed",
        free=True,
    ),
    Flag(
        "--resume",
        default="",
        help="auto (newest state of this run, or a fresh start) or a training state: continue exactly",
        free=True,
    ),
    Flag(
        "--pretrained",
        default="auto",
        help="encoder weights to start from: auto looks for the published DeiT or MAE file in the caches of torch.hub, "
        "timm and Hugging Face and warns where there is none; none starts from random weights; or a file",
        free=True,
    ),
    Flag(
        "--download",
        bool,
        help="fetch the file of --pretrained auto into torch.hub's cache",
        free=True,
    ),
    Flag("--allow_changes", bool, help="resume with other options than those of the training state", free=True),
    Flag("--print_interval", int, 50, "steps between console lines", range=POSITIVE, free=True),
    Flag("--checkpoint_interval", int, 5000, "steps between iter_N.pth files", range=POSITIVE, free=True),
    Flag(
        "--save_interval",
        int,
        0,
        "steps between training states; 0: as --valInterval",
        range=ANY,
        free=True,
    ),
    Flag("--keep_states", int, 2, "training states that are kept; 0: all", range=ANY, free=True),
    Flag("--disk_full", default="stop", help="stop or continue when a training state cannot be written", free=True),
)
READING = (
    Flag("--eval_data", help="root of the evaluation sets", free=True),
    Flag("--benchmark_all_eval", bool, help="test over the paper's list of sets, one by one", free=True),
    Flag("--fast_acc", bool, help="the short list of sets", free=True),
    Flag("--eval_img", bool, help="the sets are lists <name>.txt of `label path` lines below --eval_data", free=True),
    Flag("--calculate_infer_time", bool, help="test with batches of one image", free=True),
    Flag("--flops", bool, help="print the multiply-adds of a forward pass", free=True),
    Flag("--model_dir", default="", help="checkpoint, or (test) folder of iter_*.pth", free=True),
    Flag("--range", help="a-b: of a folder given as --model_dir, only iter_N with a <= N <= b", free=True),
    Flag("--result_path", default="./result", help="test: folder of the results", free=True),
    Flag("--demo_imgs", default="", help="demo: image or folder", free=True),
    Flag(
        "--sheets",
        bool,
        help="demo: also draw every head, a line for each token (…_heads.png)",
        free=True,
    ),
)
DEVICE = (
    Flag(
        "--device", default="cuda", help="auto, cpu, cuda or cuda:N; without the flag CUDA if there is any", free=True
    ),
    *LAUNCH,
    Flag("--amp", default="no", help="no, bf16 or fp16; the paper trains in fp32"),
    Flag("--tf32", bool, help="TF32 matrix products on CUDA"),
    Flag("--compile", bool, help="torch.compile the encoder"),
)
# parsed by the published code and never used; rgb because every model needs colour, so images are always decoded so
UNUSED = (
    *(Flag(f"--{name}", default="", dead=True) for name in ("Transformation", "FeatureExtraction")),
    *(Flag(f"--{name}", default="", dead=True) for name in ("SequenceModeling", "Prediction")),
    *(Flag(f"--{name}", int, size, dead=True) for name, size in (("num_fiducial", 20), ("input_channel", 3))),
    *(Flag(f"--{name}", int, size, dead=True) for name, size in (("output_channel", 512), ("hidden_size", 256))),
    *(Flag(f"--{name}", float, value, dead=True) for name, value in (("sel_prob", 1.0), ("mask_ratio", 0.5))),
    *(Flag(f"--{name}", int, value, dead=True) for name, value in (("world_size", 1), ("patch_size", 4))),
    *(Flag(f"--{name}", bool, dead=True) for name in ("FT", "sgd", "isscatter_aug", "rgb")),
)
TRAIN = "train_final_dist.py"
DEMO = {"model_dir", "demo_imgs", "sheets", "device", "amp"}  # what demo.py reads in addition to the model's flags


@dataclass(frozen=True)
class Network:
    """What fixes a network and how its words are read; stands in the metadata file of a checkpoint."""

    transformer: str
    model: str
    character: str = CHARSET_36
    batch_max_length: int = 25
    granularities: str = "char-bpe-wp"
    sensitive: bool = False
    pad: bool = False
    imgW: int = 128

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return 32, self.imgW

    @property
    def name(self) -> str:
        """The registry's name without the project: ACDS-STR is named by its method."""
        return self.model if self.transformer in ("mgp-str", "char-str") else self.transformer

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.granularities.split("-")) if self.transformer == "mgp-str" else ("char",)

    @property
    def build_options(self) -> dict[str, Any]:
        """What, in addition to the registry entry's own options, builds the network and its reader."""
        names = ["character", "batch_max_length", "pad", "sensitive"]
        names += ["granularities"] if self.transformer == "mgp-str" else []
        names += ["imgW"] if self.imgW != 128 else []
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TrainOptions:
    """What train_final_dist.py reads of its command line, under the flags' names."""

    network: Network
    sources: tuple[str, ...]
    ratios: tuple[float, ...]
    usage: float
    augment: RandAugment | None
    train_data: str
    batch_ratio: str
    total_data_usage_ratio: str
    valid_data: str
    data_filtering_off: bool
    is_mask_supervision: bool
    workers: int
    bad_share: float
    unsupported_share: float
    keep_empty_labels: bool
    exclude: str
    manualSeed: int
    batch_size: int
    num_iter: int
    valInterval: int
    adam: bool
    lr: float
    beta1: float
    beta2: float
    rho: float
    eps: float
    grad_clip: float
    scheduler: bool
    lr_period: int
    lr_warmup: int
    subword_weight: float
    freeze: bool
    freeze_statistics: bool
    mask_logits: bool
    saved_path: str
    exp_name: str | None
    saved_model: str
    init: str
    resume: str
    allow_changes: bool
    pretrained: str
    download: bool
    print_interval: int
    checkpoint_interval: int
    save_interval: int
    keep_states: int
    disk_full: str
    device: str
    dist_url: str
    local_rank: int
    dist_timeout: float
    amp: str
    tf32: bool
    compile: bool


@dataclass(frozen=True)
class ReadOptions:
    """What test_final.py and demo.py read of their command lines; `given`: names of the flags that stand on it."""

    network: Network
    given: frozenset[str]
    eval_data: str | None
    benchmark_all_eval: bool
    fast_acc: bool
    eval_img: bool
    calculate_infer_time: bool
    flops: bool
    model_dir: str
    range: str | None
    result_path: str
    demo_imgs: str
    sheets: bool
    data_filtering_off: bool
    batch_size: int
    workers: int
    device: str
    amp: str
    tf32: bool


def parse_training(argv: Sequence[str] | None = None) -> tuple[TrainOptions, dict[str, Any]]:
    """The options of train_final_dist.py, and the value of every flag for opt.txt and the training state.

    Raises `UserError` for values that cannot be.
    """
    values, given = parse(argv, TRAIN)
    sources = tuple(source_names(values["train_data"], values["select_data"]))
    ratios = batch_ratios(values, sources, "batch_ratio" in given)
    usage = share(values, "total_data_usage_ratio")
    more = {"sources": sources, "ratios": ratios, "usage": usage, "augment": augmentation(values)}
    return fill(TrainOptions, values, network=network_of(values), **more), values


def parse_reading(argv: Sequence[str] | None, prog: str) -> ReadOptions:
    """The options of test_final.py or demo.py. Raises `UserError` for values that cannot be."""
    values, given = parse(argv, prog)
    return fill(ReadOptions, values, network=network_of(values), given=frozenset(given))


def parse(argv: Sequence[str] | None, prog: str) -> tuple[dict[str, Any], set[str]]:
    """Parse and check: (value of every flag, names of those on the command line).

    `--sensitive` sets the charset, and `--device cuda` by default means CUDA if there is any.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--Transformer")
    method = first.parse_known_args(sys.argv[1:] if argv is None else argv)[0].Transformer
    doing = {TRAIN: "Train", "demo.py": "Read pictures and draw the attention of"}.get(prog, "Evaluate")
    values, given = table(prog).parse(
        argv, prog, f"{doing} MGP-STR, char-str or ACDS-STR.", "A" if method in ACDS else "M"
    )
    if values["sensitive"] and "character" not in given:
        values["character"] = CHARSET_94
    values["device"] = device_of(values["device"], "device" in given)
    if prog == TRAIN:
        note_unused(values, given)
    check(values)
    return values, given


def network_of(values: dict[str, Any]) -> Network:
    """The part of the options that a checkpoint's metadata keeps."""
    return fill(Network, values, transformer=values["Transformer"], model=values["TransformerModel"], pad=values["PAD"])


def note_unused(values: dict[str, Any], given: set[str]) -> None:
    """Report flags of training that were given and have no effect next to the others."""
    why = {}
    if values["init"]:
        why |= dict.fromkeys(("pretrained", "download"), "with --init")
    if values["saved_model"]:
        why |= dict.fromkeys(("pretrained", "download"), "with --saved_model")
    if not values["freeze"]:
        why["freeze_statistics"] = "without --freeze"
    for name in sorted(set(why) & given):
        print(f"--{name}: not used {why[name]}")


def check(values: dict[str, Any]) -> None:
    """Refuse what cannot be meant, before anything is built. Raises `UserError` with the flag and the fix."""
    method, model, amp = values["Transformer"], values["TransformerModel"], values["amp"]
    character, size, boxes = values["character"], (values["imgH"], values["imgW"]), values["is_mask_supervision"]
    models, methods = (*MODELS, *MICRO), ", ".join(TRANSFORMERS)
    small = model in MICRO or method in ACDS_SMALL
    refusals = (
        (method not in TRANSFORMERS, f"--Transformer: no method is called {method!r}; there are {methods}"),
        (
            model and model not in models,
            f"--TransformerModel: no model is called {model!r}; there are {', '.join(models)}",
        ),
        (
            size != (32, 128) and not (small and size[0] == 32 and 32 <= size[1] <= 512 and size[1] % 16 == 0),
            f"--imgH, --imgW: {size[0]}x{size[1]}: the models are made for 32x128; the micro and nano ones also take "
            "widths from 32 to 512 that 16 divides",
        ),
        (values["lr"] <= 0, f"--lr: {values['lr']} must be positive"),
        (
            not character or len(set(character)) != len(character),
            "--character: empty, or a character stands in it twice",
        ),
        (amp not in ("no", "fp16", "bf16"), f"--amp: {amp!r} is none of no, fp16, bf16"),
        (
            values["disk_full"] not in ("stop", "continue"),
            f"--disk_full: {values['disk_full']!r} is neither stop nor continue",
        ),
        (
            boxes and method not in ACDS,
            f"--is_mask_supervision: {method} predicts no map; only {', '.join(ACDS)} do",
        ),
        (
            boxes and values["PAD"],
            "--PAD: boxes are scaled to pictures that fill the input; not with --is_mask_supervision",
        ),
        (values["init"] and values["saved_model"], "--init, --saved_model: both give the start weights; leave one out"),
        (values["freeze"] and method not in ACDS, f"--freeze: {method} has no CNN to freeze"),
    )
    for wrong, words in refusals:
        if wrong:
            raise UserError(words)


def augmentation(values: dict[str, Any]) -> RandAugment | None:
    """The augmenter of the flags, None for none; with box masks only what moves no pixel is drawn."""
    from common.augment import recipes  # operations that only the flags of augmentation need

    if values["close_aug"]:
        return None
    if values["is_mask_supervision"] and not values["isrand_aug"]:
        names = ("issel_aug", "issemantic_aug", "isrotation_aug", "islearning_aug")
        moving = [name for name in names if values[name]]
        if moving:
            raise UserError(f"--{moving[0]}: it moves pixels away from their boxes; use --isrand_aug or --close_aug")
    groups = recipes.STILL_GROUPS if values["is_mask_supervision"] else recipes.ALL_GROUPS
    return recipes.from_flags(values, preset=values["aug_preset"], groups=groups)


def batch_ratios(values: dict[str, Any], sources: Sequence[str], given: bool) -> tuple[float, ...]:
    """`--batch_ratio` as numbers, one for each source; 1 for a single source where the flag is not given."""
    text = values["batch_ratio"]
    try:
        ratios = tuple(float(value) for value in text.split("-"))
    except ValueError:
        raise UserError(f"--batch_ratio: {text!r}: give numbers joined by -, as 0.5-0.5") from None
    if len(sources) == 1 and not given:
        return (1.0,)
    if len(ratios) != len(sources) or min(ratios) <= 0:
        raise UserError(
            f"--batch_ratio: {text} has {len(ratios)} shares and --select_data {values['select_data']} "
            f"{len(sources)} sources; give each source a positive share"
        )
    return ratios
