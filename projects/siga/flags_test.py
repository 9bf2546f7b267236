"""The options of SIGA's test script; see `flags` for their form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from common.errors import UserError
from common.flags import Flag, Table, device_of, fill, per
from projects.siga.flags import DATA, FILES, LAUNCH, MODEL, OURS, STEPS, ModelOptions, find_variant, settle
from projects.siga.model.variants import Variant, variant

OWN = (
    Flag("--eval_data", help="root of the evaluation LMDBs"),
    Flag("--select_data", str, per(R="CUTE80", S="ArbitText", T="MJ-ST"),
         "R, S: set (or folder of sets) below --eval_data; / for all", dead="T"),
    Flag("--mask_path", default="", help="masks play no part in reading", dead="RST"),
    Flag("--workers", int, per(RS=8, T=1), "loader processes", range=(0, inf)),
    Flag("--batch_size", int, per(R=1, S=64, T=8), "images a step", range=(1, inf)),
    Flag("--test_batch_size", int, 64, variants="S", dead="S", range=(0, inf)),
    Flag("--exp_name", str, per(R="test", ST=None), "name of the result folder; default from the checkpoint's path"),
    Flag("--manual_seed --manualSeed", int, per(RS=111, T=1111), "seed; reading draws nothing", dead="RST",
         range=(0, 2**32 - 1)),
    Flag("--saved_model", str, per(RS="./saved_models/best_score.pth", T=""), "checkpoint"),
    Flag("--model_dir", default="", variants="T", help="checkpoint, or a folder: all its iter_*.pth"),
    Flag("--range", variants="T", help="a-b: of a folder only iter_N with a <= N <= b"),
    Flag("--benchmark_all_eval", bool, help="T: the released list of sets, or the paper's ten with --all_ten",
         dead="RS"),
    Flag("--fast_acc", bool, variants="T", help="IC13_857 SVT IIIT5k_3000 IC15_1811 SVTP CUTE80"),
    Flag("--all_ten", bool, help="evaluate the paper's ten sets and total"),
    Flag("--calculate_infer_time", bool, variants="T", help="batches of one image"),
    Flag("--data_filtering_off", bool, variants="T", help="evaluate labels longer than --batch_max_length too"),
    Flag("--FT", str, "init", variants="RS", dead="RS"),
    Flag("--grad_clip", float, 5.0, variants="RS", dead="RS", range=(1e-12, inf)),
    Flag("--NED", bool, variants="RS", dead="RS", help="1-NED is always reported"),
    Flag("--Aug", bool, variants="RS", dead="RS"),
    Flag("--Iterable_Correct", bool, variants="RS", dead="RS"),
    Flag("--language", bool, variants="RS", dead="RS"),
    Flag("--saved_model_language", default="", variants="RS", dead="RS"),
    *(flag for flag in FILES if flag.name in ("semi", "MT_C", "MT_alpha", "model_for_PseudoLabel", "self_pre")),
    *(flag for flag in LAUNCH),
    *(flag for flag in OURS if flag.name in ("amp", "tf32", "output")),
    Flag("--json", default="", help="write the figures to this file too"),
)  # fmt: skip
NAME = Flag("--model_name", str, per(R="TRBA"), "as in training; default: the checkpoint's metadata, else TRBA")


def _training_only() -> list[Flag]:
    """T's one parser serves training and testing, so its test script takes every training flag, without effect."""
    here = {(flag.name, letter) for flag in MODEL + OWN for letter in flag.variants or "RST"}
    rest = [flag for flag in DATA + STEPS + FILES if "T" in (flag.variants or "T") and (flag.name, "T") not in here]
    return [replace(flag, default=flag.value("T"), dead=True, variants="T") for flag in rest]


TEST = Table(
    {"model": (NAME, *(flag for flag in MODEL if flag.name != NAME.name)), "test": OWN, "unused": _training_only()}
)


@dataclass(frozen=True)
class TestOptions(ModelOptions):
    """What test.py reads. Fields have the names of the flags; `given` holds those of the command line.

    Attributes:
        checkpoint: `--model_dir` (T) or `--saved_model`: a file or a folder.
        select_data: of R and S: a set, a folder of sets, or / for all.
    """

    __test__ = False  # pytest looks for classes of this name

    checkpoint: str
    eval_data: str | None
    select_data: str
    workers: int
    batch_size: int
    dist_url: str
    local_rank: int
    dist_timeout: float
    device: str
    amp: str
    tf32: bool
    output: str
    json: str
    exp_name: str | None = None
    sensitive: bool = False
    range: str | None = None
    benchmark_all_eval: bool = False
    fast_acc: bool = False
    all_ten: bool = False
    calculate_infer_time: bool = False
    data_filtering_off: bool = False
    PAD: bool = False


def parse_test(argv: Sequence[str] | None, card_of: Callable[[str], Mapping[str, Any]]) -> TestOptions:
    """The options of test.py. What the command line leaves open comes from the metadata file of the checkpoint.

    Args:
        argv: arguments; None takes the process's.
        card_of: content of the metadata file of a checkpoint, {} where it has none.

    Raises:
        UserError: the metadata names another model than the command line.
    """
    named = find_variant(argv, None)
    values, given = _parse_test(argv, named or variant("TRBA"), quiet=named is None)
    checkpoint = values.get("model_dir") or values["saved_model"]
    card = card_of(checkpoint)
    stored_name = str(card.get("model", "")).removeprefix("siga/")
    chosen = named or variant(stored_name or "TRBA")
    if stored_name and stored_name != chosen.name:
        raise UserError(f"{checkpoint}: it holds {stored_name}, not {chosen.name}; give --model_name {stored_name}")
    if named is None:
        values, given = _parse_test(argv, chosen)
    settle(values, given, chosen)
    stored = dict(card.get("options") or {})
    if "image_size" in stored:
        stored["imgH"], stored["imgW"] = stored.pop("image_size")
    free = {name: value for name, value in stored.items() if name in values and name not in given}
    if values["sensitive"]:
        free.pop("character", None)
    values |= free
    device = device_of(values["device"], "device" in given)
    return fill(TestOptions, values, variant=chosen, device=device, checkpoint=checkpoint)


def _parse_test(argv: Sequence[str] | None, chosen: Variant, quiet: bool = False) -> tuple[dict[str, Any], set[str]]:
    about = f"Evaluate SIGA. Defaults are those of {chosen.name}."
    return TEST.parse(argv, "test.py", about, chosen.family, quiet)
