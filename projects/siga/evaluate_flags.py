"""The options of SIGA's test script; see `flags` for their form."""

from __future__ import annotations

from projects.siga.flags import DATA, FILES, LAUNCH, MODEL, OURS, STEPS, Flag, per

OWN = (
    Flag("--eval_data", help="root of the evaluation LMDBs"),
    Flag(
        "--select_data",
        str,
        per(R="CUTE80", S="ArbitText", T="MJ-ST"),
        "R, S: set (or folder of sets) below --eval_data; / for all",
        dead="T",
    ),
    Flag("--mask_path", default="", help="masks play no part in reading", dead="RST"),
    Flag("--workers", int, per(RS=8, T=1), "loader processes"),
    Flag("--batch_size", int, per(R=1, S=64, T=8), "images a step"),
    Flag("--test_batch_size", int, 64, families="S", dead="S"),
    Flag("--exp_name", str, per(R="test", ST=None), "name of the result folder; default from the checkpoint's path"),
    Flag("--manual_seed --manualSeed", int, per(RS=111, T=1111), "seed; reading draws nothing", dead="RST"),
    Flag("--saved_model", str, per(RS="./saved_models/best_score.pth", T=""), "checkpoint"),
    Flag("--model_dir", default="", families="T", help="checkpoint, or a folder: all its iter_*.pth"),
    Flag("--range", families="T", help="a-b: of a folder only iter_N with a <= N <= b"),
    Flag(
        "--benchmark_all_eval", bool, help="T: the released list of sets, or the paper's ten with --all_ten", dead="RS"
    ),
    Flag("--fast_acc", bool, families="T", help="IC13_857 SVT IIIT5k_3000 IC15_1811 SVTP CUTE80"),
    Flag("--all_ten", bool, help="evaluate the paper's ten sets and total"),
    Flag("--calculate_infer_time", bool, families="T", help="batches of one image"),
    Flag("--data_filtering_off", bool, families="T", help="evaluate labels longer than --batch_max_length too"),
    Flag("--FT", str, "init", families="RS", dead="RS"),
    Flag("--grad_clip", float, 5.0, families="RS", dead="RS"),
    Flag("--NED", bool, families="RS", dead="RS", help="1-NED is always reported"),
    Flag("--Aug", bool, families="RS", dead="RS"),
    Flag("--Iterable_Correct", bool, families="RS", dead="RS"),
    Flag("--language", bool, families="RS", dead="RS"),
    Flag("--saved_model_language", default="", families="RS", dead="RS"),
    *(
        flag
        for flag in FILES
        if flag.names.split()[0] in ("--semi", "--MT_C", "--MT_alpha", "--model_for_PseudoLabel", "--self_pre")
    ),
    *(flag for flag in LAUNCH),
    *(flag for flag in OURS if flag.dest in ("amp", "tf32", "output")),
    Flag("--json", default="", help="write the figures to this file too"),
)
_HERE = {(flag.dest, family) for flag in MODEL + OWN for family in flag.families}


def _training_only() -> list[Flag]:
    """T's one parser serves training and testing, so its test script takes every training flag, unused."""
    rest = [flag for flag in DATA + STEPS + FILES if "T" in flag.families and (flag.dest, "T") not in _HERE]
    return [
        Flag(flag.names, flag.kind, flag.value("T"), flag.help, "T", "T", flag.nargs, flag.choices, flag.const)
        for flag in rest
    ]


NAME = Flag("--model_name", str, per(R="TRBA"), "as in training; default: the checkpoint's card, else TRBA")
TEST = (NAME, *(flag for flag in MODEL if flag.dest != NAME.dest), *OWN, *_training_only())
