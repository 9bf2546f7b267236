#!/usr/bin/env python
"""Accuracy by word length, and on words that never occur in training.

./test_custom.py CHECKPOINT --data_root DATA --common_length --union_length [--only_custom]
./test_custom.py CHECKPOINT --data_root DATA --unseen_union --unseen_syn --unseen_origin

The published script reads one LMDB for each length; here the words of the benchmarks are read once and grouped. The
unseen sets stand in DATA/test_custom/{unseen_union,unseen_syn,unseen_origin}; `strlab data convert unseen` makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.data.bad import FILE_NAME
from common.errors import UserError, command
from projects.ssm.finetune import test
from projects.ssm.finetune.table import BENCHMARK, SUBSET, UNION, groups, report, results_table

UNSEEN = ("unseen_union", "unseen_syn", "unseen_origin")


def parser() -> argparse.ArgumentParser:
    """The flags of test.py and the choice of splits."""
    parser = test.parser()
    parser.prog, parser.description = "test_custom.py", "Word accuracy by length and on unseen words."
    group = parser.add_argument_group("splits")
    group.add_argument("--only_custom", action="store_true", help="leave the tables of test.py out")
    group.add_argument("--common_length", action="store_true", help="the common benchmarks by word length")
    group.add_argument("--union_length", action="store_true", help="Union14M's benchmarks by word length")
    for name in UNSEEN:
        group.add_argument(f"--{name}", action="store_true", help=f"words of test_custom/{name}")
    return parser


def unseen_sets(options: argparse.Namespace) -> tuple[str, ...]:
    """The unseen sets that are asked for. Raises `UserError` for one that is not there."""
    chosen = tuple(name for name in UNSEEN if getattr(options, name))
    for name in chosen:
        folder = Path(options.data_root) / "test_custom" / name
        if not folder.is_dir():
            raise UserError(f"--{name}: {folder} does not exist; make it with `strlab data convert unseen`")
    return chosen


def wanted_groups(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Sets to read by group; `--only_custom` keeps those of the splits. Raises `UserError` for none."""
    chosen = {} if options.only_custom else groups(options.new, options.union, options.chinese)
    if options.common_length:
        chosen["common"] = tuple(dict.fromkeys(SUBSET + BENCHMARK))
    if options.union_length:
        chosen["union"] = UNION
    if unseen := unseen_sets(options):
        chosen["Unseen"] = unseen
    if not chosen:
        raise UserError("--only_custom: it needs a split: --common_length, --union_length, --unseen_union …")
    return chosen


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read every set once, print and write the tables of the splits."""
    from common.files import write_text
    from projects.ssm.finetune.evaluate import by_length, list_unreadable

    options, words = parser().parse_known_args(argv)
    chosen = wanted_groups(options)
    model = test.opened(options, words)
    readings = test.read_groups(options, model, chosen)
    file, charset = test.checkpoint_file(options), model.charset
    lengths = {}
    for split, log in (("common", "comlen"), ("union", "unilen")):
        members = [readings[name] for name in chosen.pop(split, ()) if name in readings]
        if members:
            lengths[split] = by_length(members, charset)
            accuracies = {name: row.accuracy for name, row in lengths[split].items()}
            write_text(Path(f"{file}_{log}.json"), json.dumps(accuracies, indent=1))
    text = report({name: reading.figures for name, reading in readings.items()}, chosen)
    if "common" in lengths:
        text += f"Common, by length:\n{results_table(lengths['common'])}\n\n"
    write_text(Path(f"{file}.cus_log.txt"), text)
    if "union" in lengths:
        table = f"Union, by length:\n{results_table(lengths['union'])}\n\n"
        write_text(Path(f"{file}.unilen_log.txt"), table)
        text += table
    print(text + list_unreadable(Path(f"{file}.cus.{FILE_NAME}"), readings.values()), end="")


if __name__ == "__main__":
    sys.exit(main())
