#!/usr/bin/env python
"""Accuracy by word length, and on words that never occur in training.

./test_custom.py CHECKPOINT --data_root DATA --common_length --union_length [--only_custom]
./test_custom.py CHECKPOINT --data_root DATA --unseen_union --unseen_syn --unseen_origin

The published script reads one LMDB for each length; here the words of the benchmarks are read once and grouped. The
unseen sets are in DATA/test_custom/{unseen_union,unseen_syn,unseen_origin}; `strlab data convert unseen` makes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from projects.ssm.finetune.flags import parse_evaluation, splits_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read every set once, print and write the tables of the splits."""
    o = parse_evaluation(argv, splits_parser())
    # torch, which --help does without
    from common.data.bad import FILE_NAME
    from common.data.sources import set_or_stand_in
    from common.files import write_text
    from projects.ssm.finetune.evaluate import by_length, list_unreadable, open_for_test, read_groups
    from projects.ssm.finetune.table import BENCHMARK, SUBSET, UNION, groups, report, results_table

    root = Path(o.data_root)
    chosen = {} if o.only_custom else groups(o.new, o.union, o.chinese)
    if o.common_length:
        chosen["common"] = tuple(dict.fromkeys(SUBSET + BENCHMARK))
    if o.union_length:
        chosen["union"] = UNION
    for name in o.unseen:
        if not (root / "test_custom" / name).is_dir():
            place = root / "test_custom" / name
            raise UserError(f"--{name}: {place} does not exist; make it with `strlab data convert unseen`")
        chosen["Unseen"] = o.unseen
    if not chosen:
        raise UserError("--only_custom: it needs a split: --common_length, --union_length, --unseen_union …")
    model = open_for_test(o)
    readings = read_groups(model, root, chosen, o)
    lengths = {}
    for split, log in (("common", "comlen"), ("union", "unilen")):
        sets = (set_or_stand_in(name, readings) for name in chosen.pop(split, ()))
        members = [readings[name] for name in sets if name]
        if members:
            lengths[split] = by_length(members, model.charset)
            accuracies = {name: row.accuracy for name, row in lengths[split].items()}
            write_text(Path(f"{o.file}_{log}.json"), json.dumps(accuracies, indent=1))
    text = report({name: reading.figures for name, reading in readings.items()}, chosen)
    if "common" in lengths:
        text += f"Common, by length:\n{results_table(lengths['common'])}\n\n"
    write_text(Path(f"{o.file}.cus_log.txt"), text)
    if "union" in lengths:
        table = f"Union, by length:\n{results_table(lengths['union'])}\n\n"
        write_text(Path(f"{o.file}.unilen_log.txt"), table)
        text += table
    print(text + list_unreadable(Path(f"{o.file}.cus.{FILE_NAME}"), readings.values()), end="")


if __name__ == "__main__":
    sys.exit(main())
