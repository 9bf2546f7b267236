"""Evaluate MGP-STR, char-str and ACDS-STR checkpoints: the papers' test script.

    python projects/mgpstr/test_final.py --eval_data data/evaluation --benchmark_all_eval --Transformer mgp-str --rgb \\
        --data_filtering_off --fast_acc --TransformerModel mgp_str_base_patch4_3_32_128 --model_dir best_accuracy.pth

`--model_dir` may also be a folder: every `iter_N.pth` in it, the newest first, within `--range`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.data.loader import reading_loader
from common.errors import command
from common.infer.recognizer import pick_device
from common.text.coverage import empty_line
from common.train.log import sources_block
from common.train.session import check_writable, precision_note
from projects.mgpstr import files
from projects.mgpstr.data import (
    ListedBatches,
    benchmark,
    evaluation_sets,
    lists,
    make_dataset,
)  # fmt: skip
from projects.mgpstr.evaluate import Evaluation, evaluate, total
from projects.mgpstr.flags import Network, ReadOptions, parse_reading
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.build import build_row, load_weights
from projects.mgpstr.reader import adopt_card


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
        if empty := dataset.counts["empty"]:
            print(empty_line(name, empty))
        batches = reading_loader(dataset, size, o.workers, pin_memory=False)
        result = results[name] = evaluate(model, codes, batches, device, o.amp)
        root = paths[0] if o.benchmark_all_eval else Path(o.eval_data)
        folders = {str(path.relative_to(root)): count for path, count in zip(paths, dataset.sizes)}
        result.source = "".join(f"{line}\n" for line in sources_block(root, [("/", folders)], [])[1])
    return results


def flops(model: torch.nn.Module, device: torch.device, size: tuple[int, int]) -> str:
    """`--flops`: operations of a forward pass of one image, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size, device=device))
    return f"{counter.get_total_flops() / 1e9:.3f} GFLOP for one image (a multiply-add counts as two)"


@command
def main(argv: Sequence[str] | None = None) -> int:
    o = parse_reading(argv, "test_final.py")
    device = pick_device(o.device)
    chosen = files.checkpoints(o.model_dir, o.range)
    network = adopt_card(o.network, o.given, chosen[0])
    model = build_row(network.transformer, network.model, **network.build_options).to(device).eval()
    codes = LabelCodes(network.character, network.batch_max_length, model.granularities)
    print(precision_note(o.amp, False, o.tf32, device))
    if codes.collision():
        print(codes.collision())
    if o.flops:
        print(flops(model, device, network.size))
    rows, millions = [], sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for path in chosen:
        load_weights(model, path)
        # the published folder name: the path without its first part, joined by underscores
        folder = check_writable(Path(o.result_path) / ("_".join(path.parts[1:]) or path.name), "--result_path")
        shutil.copy(path, folder)
        results = evaluate_all(model, codes, o, network, device)
        print(f"{path}\n{files.write_results(folder, results, path, millions, o.benchmark_all_eval)}", flush=True)
        rows.append((total(results), path))
    if len(chosen) > 1:
        print(files.table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
