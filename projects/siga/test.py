"""Evaluate trained SIGA checkpoints: the paper's test script for R, S and T.

    python projects/siga/test.py --eval_data ROOT --select_data CUTE80 --model_name TRBA --saved_model best_accuracy.pth
    python projects/siga/test.py --eval_data ROOT --benchmark_all_eval --Transformer char-str --rgb \\
        --TransformerModel char_str_base_patch4_3_32_128 --data_filtering_off --model_dir best_accuracy.pth
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from common.data.words import WordDataset, discover
from common.errors import UserError, command
from common.infer.recognizer import autocast, read_card
from common.train.checkpoint import load, write_json
from common.train.distributed import Dist, process_group
from common.train.log import DASHES, append
from common.train.session import check_writable, precision_note
from projects.siga.building import build_model
from projects.siga.data import BENCHMARK, FAST, RELEASED_T, evaluation_sets
from projects.siga.evaluate import T_HEADS, Evaluation, SetResult, evaluate
from projects.siga.evaluate_flags import TEST
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec, load_weights, make_codec
from projects.siga.options import check_ranges, note_dead, parse


def checkpoints(options: argparse.Namespace) -> list[Path]:
    """The files to evaluate: one, or all `iter_*` of `--model_dir` within `--range`, by their number."""
    given = Path((options.family == "T" and options.model_dir) or options.saved_model)
    if not given.is_dir():
        return [given]
    numbered = {
        path: int(found[1]) for path in given.glob("iter_*.pth") if (found := re.fullmatch(r"iter_(\d+)", path.stem))
    }
    low, high = _bounds(getattr(options, "range", None))
    chosen = sorted((path for path, n in numbered.items() if low <= n <= high), key=numbered.get)
    if not chosen:
        raise UserError(f"--model_dir: {given}: no iter_N.pth with {low} <= N <= {high}; name a checkpoint file")
    return chosen


def _bounds(text: str | None) -> tuple[float, float]:
    """`a-b` as two numbers; everything without it."""
    if not text:
        return 0, float("inf")
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found:
        raise UserError(f"--range: {text!r}: give two step numbers as 100000-300000")
    return int(found[1]), int(found[2])


def adopt_card(options: argparse.Namespace, argv: Sequence[str] | None, path: Path) -> argparse.Namespace:
    """Options that the command line leaves open, from the card beside our own checkpoints.

    Raises:
        UserError: the card names another model than the command line.
    """
    card = read_card(path)
    name = str(card.get("model", "")).removeprefix("siga/")
    if not name:
        return options
    if name != options.model_name:
        if {"model_name", "TransformerModel", "Transformer"} & options.given:
            raise UserError(f"{path}: it holds {name}, not {options.model_name}; give --model_name {name}")
        options = parse_test(argv, name)
    stored = dict(card.get("options") or {})
    if "image_size" in stored:
        stored["imgH"], stored["imgW"] = stored.pop("image_size")
    for key, value in stored.items():
        if key not in options.given and not (key == "character" and options.sensitive):
            setattr(options, key, value)
    return options


def parse_test(argv: Sequence[str] | None, model_name: str = "TRBA") -> argparse.Namespace:
    """The test script's options; `model_name` where the command line names none."""
    return parse(argv, TEST, prog="test.py", description=__doc__.splitlines()[0], model_name=model_name)


def chosen_sets(options: argparse.Namespace) -> dict[str, WordDataset]:
    """The sets that the flags ask for; see `--select_data` (R, S), `--benchmark_all_eval` and `--fast_acc` (T)."""
    if not options.eval_data:
        raise UserError("--eval_data: not given; name the root of the evaluation LMDBs")
    if options.all_ten:
        return evaluation_sets(options.eval_data, BENCHMARK, options)
    if options.family == "T":
        names = FAST if options.fast_acc else None
        if names is None and options.benchmark_all_eval:
            there = {path.name for path in discover(options.eval_data)}
            names = RELEASED_T if there & set(RELEASED_T) else BENCHMARK  # the ten where the released list is not there
        return evaluation_sets(options.eval_data, names, options)
    if options.select_data == "/":
        return evaluation_sets(options.eval_data, None, options)
    folder = Path(options.eval_data) / options.select_data
    return evaluation_sets(
        folder if folder.is_dir() else options.eval_data, None if folder.is_dir() else [options.select_data], options
    )


def rows(evaluation: Evaluation) -> list[dict[str, object]]:
    """One plain dict a set: the published keys (see `published_row`), confidence, T's heads, milliseconds a word."""
    table = []
    for name, result in evaluation.sets.items():
        words = max(result.words, 1)
        row = {
            "dataset": name,
            "samples": result.words,
            **published_row(result),
            "confidence": round(result.confidence / words, 5),
            "ms_per_image": round(1000 * result.seconds / words, 3),
        }
        if result.bad:
            row["unreadable"] = result.bad
        if result.heads:
            row |= {head: round(result.head(head), 3) for head in (*T_HEADS, "out")}
        table.append(row)
    return table


def published_row(result: SetResult) -> dict[str, object]:
    """The keys that the published script prints: `norm_ED` is the sum of 1-NED over the words, `norm_ED_value` its
    mean."""
    return {
        "name": "Share_pred1",
        "n_correct": result.correct,
        "norm_ED": result.ned,
        "accuracy": result.accuracy,
        "norm_ED_value": result.ned / max(result.words, 1),
    }


def totals(evaluation: Evaluation) -> dict[str, float]:
    """The total over all sets (each word counts once a set), and the paper's average of six where all are there."""
    sums = {"all": round(evaluation.accuracy, 3)}
    if set(FAST) <= set(evaluation.sets):
        six = Evaluation({name: evaluation.sets[name] for name in FAST})
        sums["six sets (IIIT3000 SVT IC13_857 IC15_1811 SVTP CUTE)"] = round(six.accuracy, 3)
    return sums


def log_text(path: Path, evaluation: Evaluation, parameters: float) -> str:
    """Result block: a line a set with the heads (T) or Share (R, S), totals, time and size."""
    lines = [DASHES, f"model: {path}"]
    for row in rows(evaluation):
        heads = "\t".join(f"{head}: {row[head]:0.3f}" for head in (*T_HEADS, "out") if head in row)
        lines.append(
            f"Acc {row['accuracy']:0.3f}\tdataset: {row['dataset']}\tsamples: {row['samples']}\t"
            f"normalized_ED {row['norm_ED_value']:0.3f}" + (f"\t{heads}" if heads else "")
        )
    total = evaluation.total
    if total.heads:
        lines.append("total: " + "\t".join(f"{name}: {value:0.3f}" for name, value in evaluation.heads.items()))
    spent = 1000 * total.seconds / max(total.words, 1)
    lines.append(
        f"total_accuracy: {total.accuracy:0.3f}\taveraged_infer_time: {spent:0.3f}\t# parameters: {parameters:0.3f}"
    )
    return "\n".join([*lines, ""])


def log_text_t(evaluation: Evaluation, parameters: float) -> str:
    """T's block as published: the columns char, bpe, wp and fused hold the heads glyph, Iter, final and out."""
    columns = dict(zip(("char", "bpe", "wp", "fused"), T_HEADS[1:] + ("out",)))
    lines = [DASHES]
    for result in evaluation.sets.values():
        accuracies = "".join(f"\t {column}_Acc {result.head(head):0.3f}" for column, head in columns.items())
        lines.append(f"data {result.words}{accuracies}{DASHES}")  # no line feed between them, as published
    total = evaluation.total
    lines += ["accuracy: ", *(f"{column}_total_Acc:{round(total.head(head), 3)}" for column, head in columns.items())]
    spent = 1000 * total.seconds / max(total.words, 1)
    return "\n".join([*lines, f"averaged_infer_time: {spent:0.3f}\t# parameters: {parameters:0.3f}", ""])


def result_folder(options: argparse.Namespace, path: Path) -> Path:
    """`./result/{exp_name}`; without a name the checkpoint's path less its first part, joined by underscores."""
    parts = [part for part in path.parts if part not in (".", "..", path.anchor)]
    name = options.exp_name or "_".join(parts[1:] or parts)
    return Path(options.output) / "result" / name


def evaluate_one(
    path: Path, model: SigaModel, codec: Codec, sets: dict[str, WordDataset], options: argparse.Namespace, dist: Dist
) -> Evaluation:
    """Load a checkpoint, read all sets, write and print the figures."""
    with dist.failing_together():
        load_weights(model, load(path), str(path))
        folder = check_writable(result_folder(options, path)) if dist.is_main else None
    single = options.family == "T" and options.calculate_infer_time
    with autocast(dist.device, options.amp):
        evaluation = evaluate(
            model.to(dist.device),
            codec,
            sets,
            batch_size=1 if single else options.batch_size,
            workers=options.workers,
            dist=dist,
            glyph="iter2",
        )
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    text = log_text(path, evaluation, parameters)
    if folder is not None:
        published = log_text_t(evaluation, parameters) if options.family == "T" else text
        append(folder / "log_all_evaluation.txt", published)
        if options.json:
            write_json(
                Path(options.json), {"checkpoint": str(path), "sets": rows(evaluation), "totals": totals(evaluation)}
            )
    print(text, end="")
    print([published_row(evaluation.total)])
    protocol = "exact match of the filtered label" if options.family == "T" else "lower case, letters and digits only"
    print(f"protocol: {protocol}; " + "; ".join(f"{name}: {value:0.3f}" for name, value in totals(evaluation).items()))
    return evaluation


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, evaluate."""
    options = parse_test(argv)
    device = "auto" if options.device == "cuda" and "device" not in options.given else options.device
    with process_group(device, options.dist_url, options.local_rank) as dist:
        with dist.failing_together():
            check_ranges(options)
            files = checkpoints(options)
            options = adopt_card(options, argv, files[0])
            note_dead(options, TEST)
            sets = chosen_sets(options)
            codec = make_codec(options.family, options.character, options.batch_max_length)
            model = build_model(options, codec)
        print(precision_note(options.amp, False, options.tf32, dist.device))
        for path in files:
            evaluate_one(path, model, codec, sets, options, dist)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
