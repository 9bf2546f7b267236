"""Evaluate trained SIGA checkpoints: the paper's test script for R, S and T.

    python projects/siga/test.py --eval_data ROOT --select_data CUTE80 --model_name TRBA --saved_model best_accuracy.pth
    python projects/siga/test.py --eval_data ROOT --benchmark_all_eval --Transformer char-str --rgb \\
        --TransformerModel char_str_base_patch4_3_32_128 --data_filtering_off --model_dir best_accuracy.pth
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.data.words import WordDataset, discover
from common.errors import UserError, command
from common.infer.recognizer import autocast
from common.train.checkpoint import load, read_card, write_json
from common.train.distributed import Dist, process_group
from common.train.log import DASHES, append
from common.train.session import check_writable, precision_note
from projects.siga import data
from projects.siga.evaluate import T_HEADS, Evaluation, SetResult, evaluate
from projects.siga.flags_test import TestOptions, parse_test
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec, build_row, load_weights, make_codec


@command
def main(argv: Sequence[str] | None = None) -> int:
    o = parse_test(argv, lambda path: read_card(numbered(Path(path), None)[0]))
    with process_group(o.device, o.dist_url, o.local_rank, o.dist_timeout) as dist:
        with dist.failing_together():
            paths = numbered(Path(o.checkpoint), o.range)
            sets = chosen_sets(o)
            codec = make_codec(o.family, o.character, o.batch_max_length)
            model = build_row(o.model_name, **o.build_options)
        print(precision_note(o.amp, False, o.tf32, dist.device))
        for path in paths:
            evaluate_one(path, model, codec, sets, o, dist)
    return 0


def numbered(given: Path, steps: str | None) -> list[Path]:
    """The files to evaluate: `given`, or all `iter_*` of that folder by their number, within `steps` (a-b)."""
    if not given.is_dir():
        return [given]
    low, high = 0, float("inf")
    if steps:
        found = re.fullmatch(r"(\d+)-(\d+)", steps)
        if not found:
            raise UserError(f"--range: {steps!r}: give two step numbers as 100000-300000")
        low, high = int(found[1]), int(found[2])
    files = {path: int(path.stem[5:]) for path in given.glob("iter_*.pth") if path.stem[5:].isdigit()}
    chosen = sorted((path for path, number in files.items() if low <= number <= high), key=files.get)
    if not chosen:
        raise UserError(f"--model_dir: {given}: no iter_N.pth with {low} <= N <= {high}; name a checkpoint file")
    return chosen


def chosen_sets(o: TestOptions) -> dict[str, WordDataset]:
    """The sets that the flags ask for; see `--select_data` (R, S), `--benchmark_all_eval` and `--fast_acc` (T)."""
    if not o.eval_data:
        raise UserError("--eval_data: not given; name the root of the evaluation LMDBs")
    root, names = o.eval_data, None
    if o.all_ten:
        names = data.BENCHMARK
    elif o.family == "T":
        names = data.FAST if o.fast_acc else None
        if names is None and o.benchmark_all_eval:
            there = {path.name for path in discover(root)}
            names = data.RELEASED_T if there & set(data.RELEASED_T) else data.BENCHMARK
    elif o.select_data != "/":
        folder = Path(root) / o.select_data
        root, names = (folder, None) if folder.is_dir() else (root, [o.select_data])
    longest = data.longest_label(o.family, o.batch_max_length, o.data_filtering_off, o.sensitive)
    return data.evaluation_sets(
        root,
        names,
        image_size=o.image_size,
        max_length=longest,
        character=o.character,
        sensitive=o.sensitive,
        pad=o.PAD,
    )


def evaluate_one(
    path: Path, model: SigaModel, codec: Codec, sets: dict[str, WordDataset], o: TestOptions, dist: Dist
) -> Evaluation:
    """Load a checkpoint, read all sets, write and print the figures."""
    with dist.failing_together():
        load_weights(model, load(path), str(path))
        folder = check_writable(result_folder(path, o.exp_name, o.output)) if dist.is_main else None
    single = o.family == "T" and o.calculate_infer_time
    with autocast(dist.device, o.amp):
        evaluation = evaluate(
            model.to(dist.device),
            codec,
            sets,
            batch_size=1 if single else o.batch_size,
            workers=o.workers,
            dist=dist,
            glyph="iter2",  # the released test script reports this head in the place of the glyph head
        )
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    text = log_text(path, evaluation, parameters)
    if folder is not None:
        append(folder / "log_all_evaluation.txt", log_text_t(evaluation, parameters) if o.family == "T" else text)
        if o.json:
            figures = {"checkpoint": str(path), "sets": rows(evaluation), "totals": totals(evaluation)}
            write_json(Path(o.json), figures)
    print(text, end="")
    print([published_row(evaluation.total)])
    protocol = "exact match of the filtered label" if o.family == "T" else "lower case, letters and digits only"
    print(f"protocol: {protocol}; " + "; ".join(f"{name}: {value:0.3f}" for name, value in totals(evaluation).items()))
    return evaluation


def result_folder(path: Path, name: str | None, output: str) -> Path:
    """`./result/{exp_name}`; without a name the checkpoint's path less its first part, joined by underscores."""
    parts = [part for part in path.parts if part not in (".", "..", path.anchor)]
    return Path(output) / "result" / (name or "_".join(parts[1:] or parts))


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
    if set(data.FAST) <= set(evaluation.sets):
        six = Evaluation({name: evaluation.sets[name] for name in data.FAST})
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


if __name__ == "__main__":
    raise SystemExit(main())
