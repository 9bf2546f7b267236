"""The options of SIGA's scripts as data: published names, types and defaults for R, S and T, and ours beside them.

Families: R (TRBA, RBA), S (TSBA), T (char_str…). A default that differs between families is a `per(...)`. `dead` names
the families whose published code parses the flag and never uses it; it is then accepted without effect, and said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.text.charset import CHARSET_36, SIGA_36

FAMILIES = "RST"


def per(**values: Any) -> dict[str, Any]:
    """Values by family: per(RS=1, T=2)."""
    return {family: value for families, value in values.items() for family in families}


@dataclass(frozen=True)
class Flag:
    """One option.

    Attributes:
        names: spellings, the published ones of all families first.
        kind: int, float or str; bool is a switch.
        default: a value, or values by family.
        help: one line.
        dead: families in which it has no effect.
        families: where it is defined.
        nargs, choices, const: as argparse has them.
    """

    names: str
    kind: type = str
    default: Any = None
    help: str = ""
    dead: str = ""
    families: str = FAMILIES
    nargs: str | None = None
    choices: tuple[str, ...] | None = None
    const: Any = None

    def value(self, family: str) -> Any:
        """The default in a family."""
        return self.default.get(family) if isinstance(self.default, dict) else self.default

    @property
    def dest(self) -> str:
        """Attribute of the parsed options: the first spelling."""
        return self.names.split()[0].removeprefix("--")


MODEL = (
    Flag("--model_name", help="TRBA (R), RBA (R without TPS), TSBA (S), char_str_base_patch4_3_32_128 (T), …_small"),
    Flag("--TransformerModel", default="", families="T", help="T's spelling of --model_name"),
    Flag("--Transformer", families="T", help="char-str, the one transformer of this paper"),
    Flag("--num_fiducial", int, 20, "fiducial points of the TPS", dead="T"),
    Flag("--input_channel", int, 3, "channels of the image"),
    Flag("--output_channel", int, per(RT=512, S=384), "width of the visual columns", dead="T"),
    Flag("--hidden_size", int, 256, "width of the LSTMs; only 256 fits the published models", dead="T"),
    Flag("--batch_max_length", int, 25, "longest label; the decoders run one step more"),
    Flag("--imgH", int, per(RT=32, S=48), "height of the input image"),
    Flag("--imgW", int, per(RT=128, S=160), "width of the input image"),
    Flag("--character", str, per(RS=SIGA_36, T=CHARSET_36), "characters that are read, in index order"),
    Flag("--sensitive", bool, help="94 characters with upper case and punctuation"),
    Flag("--rgb", bool, families="T", help="T's colour switch; images are always read in colour", dead="T"),
    Flag("--PAD", bool, families="T", help="keep the aspect ratio and pad on the right"),
    Flag("--Transformation", default="", families="T", dead="T"),
    Flag("--FeatureExtraction", default="", families="T", dead="T"),
    Flag("--SequenceModeling", default="", families="T", dead="T"),
    Flag("--Prediction", default="", families="T", dead="T"),
    Flag("--mask_ratio", float, 0.5, families="T", dead="T"),
    Flag("--patch_size", int, 4, families="T", dead="T"),
)
DATA = (
    Flag("--train_data", help="root of the training LMDBs (every folder below it with a data.mdb)"),
    Flag("--eval_data --valid_data", help="root of the evaluation LMDBs; without it training evaluates nothing"),
    Flag("--mask_path", help="root of the mask LMDBs of mask_create; '' makes masks on the fly (k-means)", dead="T"),
    Flag("--workers", int, per(R=8, S=12, T=1), "loader processes"),
    Flag("--batch_size", int, per(R=384, S=288, T=8), "images a step: of each process (R, T), of all together (S)"),
    Flag("--test_batch_size", int, per(R=256, S=192, T=0), "images a step in evaluation; 0: as --batch_size"),
    Flag(
        "--select_data",
        str,
        per(RS="label", T="MJ-ST"),
        "synth (MJ, ST), synth_SA, label (11 real sets), mix, mix_SA, SD, / (all), or folder names joined by -",
    ),
    Flag("--batch_ratio", str, per(RS=None, T="0.5-0.5"), "share of each source in a batch (T); R, S check its length"),
    Flag("--total_data_usage_ratio", str, "1.0", "T: share of each source that is used, from its beginning", dead="RS"),
    Flag("--data_filtering_off", bool, families="T", help="evaluate labels longer than --batch_max_length too"),
    Flag("--Aug", bool, help="augment (geometry, deterioration, colour)", dead="T"),
    Flag("--isrand_aug", bool, families="T", help="random augmentation of T"),
    Flag("--intact_prob", float, 0.5, "share of images left as they are", families="T"),
    Flag("--augs_num", int, 3, "operations on one image, of as many groups", families="T"),
    Flag("--augs_mag", int, None, "strength 0, 1 or 2; drawn for each operation if not given", families="T"),
    Flag("--issel_aug", bool, families="T", help="augment with the groups that the next eight switches name"),
    Flag("--sel_prob", float, 1.0, families="T", dead="T"),
    *(
        Flag(f"--{group}", bool, families="T", help=f"group of --issel_aug: {group}")
        for group in ("pattern", "warp", "geometry", "weather", "noise", "blur", "camera", "process")
    ),
    Flag("--issemantic_aug", bool, families="T", help="noise, motion blur and geometry only"),
    Flag("--isrotation_aug", bool, families="T", help="rotation only"),
    Flag("--isscatter_aug", bool, families="T", help="sets nothing in the published code", dead="T"),
    Flag("--islearning_aug", bool, families="T", help="distortion, noise, motion blur, rotation and perspective only"),
)
STEPS = (
    Flag("--data_ratio", int, 1, "multiplies the steps; intervals and file names count in units of it", dead="T"),
    Flag("--num_iter", int, per(RT=300000, S=550000), "steps; S with adamw trains 10 epochs unless this is given"),
    Flag("--val_interval --valInterval", int, per(R=1000, ST=2000), "steps between evaluations"),
    Flag("--log_interval --showInterval", int, per(RT=500, S=100), "steps between tensorboard points"),
    Flag("--grad_clip", float, per(RT=5.0, S=None), "largest global gradient norm"),
    Flag("--optimizer", str, per(R="adam", S="adamw", T="adadelta"), "adam, adamw or adadelta"),
    Flag("--adam", bool, families="T", help="Adam instead of Adadelta"),
    Flag("--sgd", bool, families="T", dead="T"),
    Flag("--beta1", float, 0.9, "first beta of --adam", families="T"),
    Flag("--lr", float, per(R=0.00045, S=0.0005, T=1.0), "peak learning rate"),
    Flag("--rho", float, 0.95, "of Adadelta"),
    Flag("--eps", float, 1e-8, "of Adadelta"),
    Flag("--lr_adadelta", float, 1.0, families="RS", dead="RS"),
    Flag("--sgd_momentum", float, 0.9, families="RS", dead="RS"),
    Flag("--sgd_weight_decay", float, 1e-6, families="RS", dead="RS"),
    Flag(
        "--schedule",
        str,
        "super",
        "super (R one-cycle, S warm-up and cosine), 1 (constant) or fractions of the steps to decay at",
        dead="T",
        nargs="*",
    ),
    Flag("--lr_drop_rate", float, 0.1, "factor at each fraction of --schedule", dead="T"),
    Flag("--scheduler", bool, families="T", help="cosine schedule; constant without"),
    Flag("--manual_seed --manualSeed", int, per(RS=111, T=1111), "seed of python, numpy, torch and the data"),
)
FILES = (
    Flag("--exp_name", help="name of the run; default Seed{seed}-{model} (R, S), {model} (T, which adds -Seed{seed})"),
    Flag("--saved_model", default="", help="checkpoint to go on from: weights, and optimizer and step if it has them"),
    Flag("--saved_path", default="./saved_models", help="folder of the runs"),
    Flag(
        "--resume --retrain",
        default=False,
        nargs="?",
        const="auto",
        help="auto (newest state of this run, or a fresh start), a training state, or yes (needs --saved_model)",
    ),
    Flag("--benchmark_all_eval", bool, help="evaluate the paper's ten sets and total, not every set under --eval_data"),
    Flag("--fast_acc", bool, families="T", help="evaluate IC13_857 SVT IIIT5k_3000 IC15_1811 SVTP CUTE80 only"),
    Flag("--log_multiple_test", bool, families="RS", dead="RS"),
    Flag("--FT", str, "init", families="RS", dead="RS"),
    Flag("--FT", bool, families="T", dead="T"),
    Flag("--NED", bool, families="RS", dead="RS", help="1-NED is always reported"),
    Flag("--saved_model_language", default="", families="RS", dead="RS"),
    Flag("--semi", default="None", families="S", dead="S"),
    Flag("--MT_C", float, 1.0, families="S", dead="S"),
    Flag("--MT_alpha", float, 0.999, families="S", dead="S"),
    Flag("--model_for_PseudoLabel", default="", families="S", dead="S"),
    Flag("--self_pre", default="RotNet", families="S", dead="S"),
    Flag("--Iterable_Correct", bool, families="S", dead="S"),
    Flag("--calculate_infer_time", bool, families="T", dead="T", help="used by test.py"),
    Flag("--flops", bool, families="T", dead="T"),
    Flag("--eval_img", bool, families="T", dead="T"),
    Flag("--range", families="T", dead="T", help="used by test.py"),
    Flag("--model_dir", default="", families="T", dead="T", help="used by test.py"),
    Flag("--demo_imgs", default="", families="T", dead="T", help="the demo is `strlab read`"),
)
LAUNCH = (
    Flag("--dist_url", default="env://", help="rendezvous of the processes"),
    Flag("--local_rank --local-rank", int, per(RS=0, T=-1), "given by torch.distributed.launch"),
    Flag("--world_size", int, 1, families="T", dead="T", help="the launcher says it"),
    Flag("--device", default=per(RS="auto", T="cuda"), help="auto, cpu, cuda or cuda:N; T's default cuda means auto"),
)
OURS = (
    Flag("--amp", default="no", choices=("no", "fp16", "bf16"), help="mixed precision; the paper trains in fp32"),
    Flag("--compile", bool, help="torch.compile the model"),
    Flag("--tf32", bool, help="TF32 matrix products on CUDA"),
    Flag(
        "--aug_resample", bool, dead="T", help="draw R's and S's geometry for every image, not once a run as published"
    ),
    Flag(
        "--fast_aug",
        bool,
        dead="RS",
        help="T: compose the geometric operations into one warp (other pixels, same draws)",
    ),
    Flag(
        "--rectify_masks", choices=("yes", "no"), dead="T", help="send masks through the TPS too; published R yes, S no"
    ),
    Flag(
        "--tps",
        default="auto",
        dead="T",
        help="TPS.pth, or a checkpoint of R or S (SIGA_R.pth): weights of the TPS, which is then frozen; auto: "
        "./TPS.pth as published, and where there is none the TPS is trained; none: it is trained",
    ),
    Flag(
        "--pretrained",
        default=per(RS="", T="auto"),
        help="T: ViT weights to start from: a file, auto (DeiT-base from the usual caches) or none (random)",
    ),
    Flag("--download", bool, families="T", help="fetch the file of --pretrained auto if it is not on this machine"),
    Flag("--accumulate", int, 1, "batches a step"),
    Flag("--output", default="", help="folder for saved_models/ and tensorboard/; default: here"),
    Flag("--tensorboard", default="./tensorboard", help="folder of the tensorboard runs; '' writes none"),
    Flag("--save_interval", int, 0, "steps between training states for --resume; 0: as --val_interval"),
    Flag("--keep_states", int, 2, "training states that are kept; 0: all"),
    Flag("--disk_full", default="stop", choices=("stop", "continue"), help="what to do when a state cannot be written"),
    Flag("--check_data", int, 16, "samples that are read and decoded before the first step; 0: none"),
    Flag(
        "--foreign",
        default="delete",
        choices=("delete", "skip", "error"),
        help="labels with characters outside the charset: delete these characters (published), skip the label, stop",
    ),
    Flag("--bad_share", float, 0.01, "share of unreadable samples that stops the run"),
    Flag(
        "--unsupported_share",
        float,
        0.05,
        "share of labels that lose more than marks to --character that stops the run",
    ),
    Flag("--keep_empty_labels", bool, help="train on labels of which --character leaves nothing, as published"),
    Flag("--exclude", default="", help="words that are not trained on: a list that `strlab doctor --against` wrote"),
    Flag("--print_interval", int, 20, "steps between console lines"),
)
TRAIN = MODEL + DATA + STEPS + FILES + LAUNCH + OURS
