"""Evaluate MGP-STR, char-str and ACDS-STR checkpoints: the papers' test script.

    python projects/mgpstr/test_final.py --eval_data data/evaluation --benchmark_all_eval --Transformer mgp-str --rgb \\
        --data_filtering_off --fast_acc --TransformerModel mgp_str_base_patch4_3_32_128 --model_dir best_accuracy.pth

`--model_dir` may also be a folder: every `iter_N.pth` in it, the newest first, within `--range`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.data.bad import FILE_NAME, BadSample, BadSamples
from common.data.decode import BadImage, decode_rgb
from common.data.loader import Batch
from common.errors import UserError, command
from common.files import write_text
from common.infer.recognizer import pick_device, read_card
from common.train.checkpoint import write_json
from common.train.log import append, sources_block
from common.train.run import check_writable, precision_note
from projects.mgpstr import files
from projects.mgpstr.data import benchmark, evaluation_loader, evaluation_sets, make_dataset
from projects.mgpstr.evaluate import COLUMNS, Evaluation, evaluate
from projects.mgpstr.flags import get_args
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.preprocess import SIZE, fit
from projects.mgpstr.reader import build_row, load_weights
from projects.mgpstr.train_final_dist import build_options

# option of a card -> flag
FROM_CARD = {name: name for name in ("character", "batch_max_length", "granularities", "sensitive")} | {"pad": "PAD"}


def checkpoints(options: argparse.Namespace) -> list[Path]:
    """The files to evaluate. Raises `UserError` for a missing file and a folder without `iter_N.pth` in the range."""
    if not options.model_dir:
        raise UserError("--model_dir: not given; name a checkpoint, or a folder with iter_N.pth files")
    given = Path(options.model_dir)
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UserError(f"--model_dir: {given} does not exist")
    low, high = bounds(options.range)
    steps = {int(found[1]): path for path in given.iterdir() if (found := re.fullmatch(r"iter_(\d+)\.\w+", path.name))}
    chosen = [steps[step] for step in sorted(steps, reverse=True) if low <= step <= high]
    if not chosen:
        raise UserError(f"--model_dir: {given}: no iter_N.pth file with {low} <= N <= {high}; name a checkpoint file")
    return chosen


def bounds(text: str | None) -> tuple[int, int]:
    """`--range a-b` as numbers. Raises `UserError`."""
    if text is None:
        return 0, 10**12
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"--range: {text!r}: give the first and the last step as 100000-300000")
    return int(parts[0]), int(parts[1])


def adopt_card(options: argparse.Namespace, checkpoint: Path) -> None:
    """Charset, case, lengths and heads that the command line leaves open, from the card beside our own checkpoints."""
    card, adopted = read_card(checkpoint).get("options") or {}, []
    for key, flag in FROM_CARD.items():
        taken = flag in options.given or (flag == "character" and "sensitive" in options.given)
        if key in card and not taken and card[key] != getattr(options, flag):
            setattr(options, flag, card[key])
            adopted.append(f"--{flag}={card[key]}")
    if adopted:
        print(f"from the card of {checkpoint}: {' '.join(adopted)}")


class ListedBatches:
    """`--eval_img`: batches of a list, whose lines are `label path`; unreadable files are said and stand in `bad`.

    Labels are lower-cased unless sensitive and not reduced to the charset, as published. Raises `UserError` for a line
    of another form.
    """

    def __init__(self, path: Path, options: argparse.Namespace, size: int) -> None:
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        self.path, self.options, self.size = path, options, size
        self.rows = [(number, *line.split(" ", 1)) for number, line in lines if line.strip()]
        wrong = next((row[0] for row in self.rows if len(row) != 3), None)
        if wrong:
            raise UserError(f"{path}: line {wrong}: give a label, a blank and the path of its image")
        self.bad = BadSamples(len(self.rows), 1.0)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.size):
            pictures, labels = [], []
            for number, label, file in self.rows[start : start + self.size]:
                try:
                    data = (self.path.parent / file).read_bytes()
                    pictures.append(fit(decode_rgb(data), SIZE, self.options.PAD))
                except (OSError, BadImage) as error:
                    print(f"{file}: left out ({error})")
                    self.bad.add([BadSample(str(self.path), number, f"{file}: {error}")])
                    continue
                labels.append(label if self.options.sensitive else label.lower())
            if labels:
                yield Batch(torch.from_numpy(np.stack(pictures)), labels, torch.arange(len(labels)))


def lists(options: argparse.Namespace) -> list[str]:
    """Names of the lists below `--eval_data` that `--eval_img` reads."""
    if not options.eval_data:
        raise UserError("--eval_data: not given; name the folder of the lists <name>.txt for --eval_img")
    root = Path(options.eval_data)
    found = sorted(path.stem for path in root.glob("*.txt"))
    wanted = [name for entry in benchmark(options) for name in ([entry] if isinstance(entry, str) else entry)]
    chosen = [name for name in wanted if name in found] if options.benchmark_all_eval else found
    if not chosen:
        raise UserError(f"--eval_data: {root}: no list <name>.txt for --eval_img; lines are `label path`")
    return chosen


def evaluate_all(
    model: torch.nn.Module, codes: LabelCodes, options: argparse.Namespace, device: torch.device
) -> dict[str, Evaluation]:
    """Every set of the options by name."""
    size = 1 if options.calculate_infer_time else options.batch_size
    results = {}
    if options.eval_img:
        for name in lists(options):
            path = Path(options.eval_data) / f"{name}.txt"
            results[name] = evaluate(model, codes, ListedBatches(path, options, size), device, options.amp)
            results[name].source = f"dataset_root:    {path}\t dataset: {name}\n"
        return results
    length = None if options.data_filtering_off or options.sensitive else options.batch_max_length
    for name, paths in evaluation_sets(options).items():
        dataset = make_dataset(paths, options, length=length)
        batches = evaluation_loader(dataset, size, options.workers)
        results[name] = evaluate(model, codes, batches, device, options.amp)
        root = paths[0] if options.benchmark_all_eval else Path(options.eval_data)
        folders = {str(path.relative_to(root)): count for path, count in zip(paths, dataset.sizes)}
        results[name].source = "".join(f"{line}\n" for line in sources_block(root, [("/", folders)], [])[1])
    return results


def total(results: dict[str, Evaluation]) -> Evaluation:
    """All sets together (each word counts once: the published average)."""
    together = Evaluation()
    for result in results.values():
        together.add(result)
    return together


def write_results(
    folder: Path, results: dict[str, Evaluation], model: torch.nn.Module, options: argparse.Namespace
) -> str:
    """The published log file, evaluation.json, errors.tsv and, if need be, bad_samples.csv; returns what is printed."""
    together = total(results)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    pace = 1000 * together.seconds / max(together.words, 1)
    cost = f"averaged_infer_time: {pace:.3f}\t# parameters: {millions:.3f}"
    if options.benchmark_all_eval:
        file, text = files.evaluation_log(results, together, cost)
        append(folder / "log_all_evaluation.txt", file)
    else:
        [source] = [result.source for result in results.values()] if len(results) == 1 else [""]
        text = f"{source}{together.accuracy('char'):0.3f}\n"
        append(folder / "log_evaluation.txt", text)
        text += "\n".join([files.set_line(together), cost, *files.additional(results)])
    heads = {
        name: {"words": one.words, "unreadable": len(one.bad), **one.accuracies, "won": dict(one.won)}
        for name, one in results.items()
    }
    summary = {"checkpoint": options.model_dir, "sets": heads, "total": together.accuracies}
    write_json(folder / "evaluation.json", summary)
    listed = folder / FILE_NAME
    listed.unlink(missing_ok=True)
    BadSamples(len(together.bad), 1.0, listed).add(together.bad)
    header = "\t".join(["label", *COLUMNS, "confidence"])
    write_text(folder / "errors.tsv", "\n".join([header, *("\t".join(row) for row in together.errors)]) + "\n")
    return text


def table(rows: list[tuple[Evaluation, Path]]) -> str:
    """Accuracies of several checkpoints, the best fused first."""
    ordered = sorted(rows, key=lambda row: -row[0].accuracy("fused"))
    head = "  ".join(f"{column + '_acc':>10s}" for column in COLUMNS)
    lines = ["  ".join(f"{one.accuracy(column):10.3f}" for column in COLUMNS) + f"  {path}" for one, path in ordered]
    return "\n".join([f"{head}  model", *lines])


def flops(model: torch.nn.Module, device: torch.device) -> str:
    """`--flops`: operations of a forward pass of one image, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *SIZE, device=device))
    return f"{counter.get_total_flops() / 1e9:.3f} GFLOP for one image (a multiply-add counts as two)"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, open, read all sets."""
    options = get_args(argv, is_train=False, prog="test_final.py")
    device = pick_device(options.device)
    files = checkpoints(options)
    adopt_card(options, files[0])
    model = build_row(options.Transformer, options.TransformerModel, **build_options(options)).to(device).eval()
    codes = LabelCodes(options.character, options.batch_max_length, model.granularities)
    print(precision_note(options.amp, False, options.tf32, device))
    if codes.collision():
        print(codes.collision())
    if options.flops:
        print(flops(model, device))
    rows = []
    for file in files:
        load_weights(model, file)
        # the published folder name: the path without its first part, joined by underscores
        folder = check_writable(Path(options.result_path) / ("_".join(file.parts[1:]) or file.name), "--result_path")
        shutil.copy(file, folder)
        results = evaluate_all(model, codes, options, device)
        print(f"{file}\n{write_results(folder, results, model, options)}", flush=True)
        rows.append((total(results), file))
    if len(files) > 1:
        print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
