"""Evaluate MGP-STR, char-str and ACDS-STR checkpoints: the papers' test script.

    python projects/mgpstr/test_final.py --eval_data data/evaluation --benchmark_all_eval --Transformer mgp-str --rgb \\
        --data_filtering_off --fast_acc --TransformerModel mgp_str_base_patch4_3_32_128 --model_dir best_accuracy.pth

`--model_dir` may also be a folder: every `iter_N.pth` in it, the newest first, within `--range`.
"""

from __future__ import annotations

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
from common.infer.recognizer import pick_device
from common.train.checkpoint import write_json
from common.train.log import append, sources_block
from common.train.run import check_writable, precision_note
from projects.mgpstr import files
from projects.mgpstr.data import benchmark, evaluation_loader, evaluation_sets, make_dataset
from projects.mgpstr.evaluate import COLUMNS, Evaluation, evaluate
from projects.mgpstr.flags import Network, ReadOptions, read_options
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.preprocess import SIZE, fit
from projects.mgpstr.reader import adopt_card, build_row, load_weights


def checkpoints(model_dir: str, wanted: str | None) -> list[Path]:
    """The files to evaluate. Raises `UserError` for a missing file and a folder without `iter_N.pth` in the range."""
    if not model_dir:
        raise UserError("--model_dir: not given; name a checkpoint, or a folder with iter_N.pth files")
    given = Path(model_dir)
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UserError(f"--model_dir: {given} does not exist")
    low, high = bounds(wanted)
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


class ListedBatches:
    """`--eval_img`: batches of a list, whose lines are `label path`; unreadable files are said and stand in `bad`.

    Labels are lower-cased unless sensitive and not reduced to the charset, as published. Raises `UserError` for a line
    of another form.
    """

    def __init__(self, path: Path, network: Network, size: int) -> None:
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        self.path, self.network, self.size = path, network, size
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
                    pictures.append(fit(decode_rgb(data), SIZE, self.network.pad))
                except (OSError, BadImage) as error:
                    print(f"{file}: left out ({error})")
                    self.bad.add([BadSample(str(self.path), number, f"{file}: {error}")])
                    continue
                labels.append(label if self.network.sensitive else label.lower())
            if labels:
                yield Batch(torch.from_numpy(np.stack(pictures)), labels, torch.arange(len(labels)))


def lists(root: str | None, wanted: Sequence[str | tuple[str, ...]] | None) -> list[Path]:
    """The lists `<name>.txt` below `--eval_data` that `--eval_img` reads: those of the benchmark, or (None) all."""
    if not root:
        raise UserError("--eval_data: not given; name the folder of the lists <name>.txt for --eval_img")
    found = {path.stem: path for path in sorted(Path(root).glob("*.txt"))}
    names = [name for entry in wanted or found for name in ([entry] if isinstance(entry, str) else entry)]
    chosen = [found[name] for name in names if name in found]
    if not chosen:
        raise UserError(f"--eval_data: {root}: no list <name>.txt for --eval_img; lines are `label path`")
    return chosen


def evaluate_all(
    model: torch.nn.Module, codes: LabelCodes, o: ReadOptions, network: Network, device: torch.device
) -> dict[str, Evaluation]:
    """Every set of the options by name."""
    wanted = benchmark(network.transformer.startswith("ACDS"), o.fast_acc) if o.benchmark_all_eval else None
    size, results = 1 if o.calculate_infer_time else o.batch_size, {}
    if o.eval_img:
        for path in lists(o.eval_data, wanted):
            result = evaluate(model, codes, ListedBatches(path, network, size), device, o.amp)
            result.source = f"dataset_root:    {path}\t dataset: {path.stem}\n"
            results[path.stem] = result
        return results
    length = None if o.data_filtering_off or network.sensitive else network.batch_max_length
    for name, paths in evaluation_sets(o.eval_data, wanted).items():
        dataset = make_dataset(paths, network, length=length)
        batches = evaluation_loader(dataset, size, o.workers)
        result = results[name] = evaluate(model, codes, batches, device, o.amp)
        root = paths[0] if o.benchmark_all_eval else Path(o.eval_data)
        folders = {str(path.relative_to(root)): count for path, count in zip(paths, dataset.sizes)}
        result.source = "".join(f"{line}\n" for line in sources_block(root, [("/", folders)], [])[1])
    return results


def total(results: dict[str, Evaluation]) -> Evaluation:
    """All sets together (each word counts once: the published average)."""
    together = Evaluation()
    for result in results.values():
        together.add(result)
    return together


def write_results(folder: Path, results: dict[str, Evaluation], checkpoint: Path, millions: float, each: bool) -> str:
    """The published log file, evaluation.json, errors.tsv and, if need be, bad_samples.csv; returns what is printed.

    `millions` of parameters; `each`: the sets stand for themselves (`--benchmark_all_eval`).
    """
    together = total(results)
    pace = 1000 * together.seconds / max(together.words, 1)
    cost = f"averaged_infer_time: {pace:.3f}\t# parameters: {millions:.3f}"
    if each:
        file, text = files.evaluation_log(results, together, cost)
        append(folder / "log_all_evaluation.txt", file)
    else:
        source = "".join(result.source for result in results.values())
        text = f"{source}{together.accuracy('char'):0.3f}\n"
        append(folder / "log_evaluation.txt", text)
        text += "\n".join([files.set_line(together), cost, *files.additional(results)])
    heads = {
        name: {"words": one.words, "unreadable": len(one.bad), **one.accuracies, "won": dict(one.won)}
        for name, one in results.items()
    }
    summary = {"checkpoint": str(checkpoint), "sets": heads, "total": together.accuracies}
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
    o = read_options(argv, "test_final.py")
    device = pick_device(o.device)
    chosen = checkpoints(o.model_dir, o.range)
    network = adopt_card(o.network, o.given, chosen[0])
    model = build_row(network.transformer, network.model, **network.build_options).to(device).eval()
    codes = LabelCodes(network.character, network.batch_max_length, model.granularities)
    print(precision_note(o.amp, False, o.tf32, device))
    if codes.collision():
        print(codes.collision())
    if o.flops:
        print(flops(model, device))
    rows, millions = [], sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for path in chosen:
        load_weights(model, path)
        # the published folder name: the path without its first part, joined by underscores
        folder = check_writable(Path(o.result_path) / ("_".join(path.parts[1:]) or path.name), "--result_path")
        shutil.copy(path, folder)
        results = evaluate_all(model, codes, o, network, device)
        print(f"{path}\n{write_results(folder, results, path, millions, o.benchmark_all_eval)}", flush=True)
        rows.append((total(results), path))
    if len(chosen) > 1:
        print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
