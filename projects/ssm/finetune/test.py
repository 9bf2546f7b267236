#!/usr/bin/env python
"""Evaluate a recogniser on the benchmarks and print the published tables.

./test.py outputs/…/checkpoints/last.ckpt --data_root DATA [--cased --punctuation --new --union] [name:type=value …]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import command
from projects.ssm.finetune.flags import evaluation_parser, parse_evaluation


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read every set once, print and write the tables."""
    o = parse_evaluation(argv, evaluation_parser())
    # torch, which --help does without
    from common.data.bad import FILE_NAME
    from common.files import write_text
    from projects.ssm.finetune.evaluate import list_unreadable, open_for_test, read_groups, write_json
    from projects.ssm.finetune.table import groups, report

    chosen = groups(o.new, o.union, o.chinese)
    readings = read_groups(open_for_test(o), Path(o.data_root), chosen, o)
    text = report({name: reading.figures for name, reading in readings.items()}, chosen)
    text += list_unreadable(Path(f"{o.file}.{FILE_NAME}"), readings.values())
    print(text, end="")
    write_text(Path(f"{o.file}.log.txt"), text)
    write_json(Path(f"{o.file}.log.json"), readings)


if __name__ == "__main__":
    sys.exit(main())
