#!/usr/bin/env python
"""Evaluate a recogniser on the benchmarks and print the published tables.

./test.py outputs/…/checkpoints/last.ckpt --data_root DATA [--cased --punctuation --new --union] [name:type=value …]
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.text.charset import DIGITS, LOWER, UPPER
from common.train.published_flags import new_parser

if TYPE_CHECKING:
    from projects.ssm.finetune.evaluation import SetReading
    from projects.ssm.finetune.reader import SSMReader


def parser() -> argparse.ArgumentParser:
    """The published flags; further words are `name:type=value`."""
    parser = new_parser("test.py", "Word accuracy of a recogniser on the benchmarks.")
    parser.add_argument("checkpoint", help="a checkpoint file, or pretrained=FILE")
    parser.add_argument("--data_root", default="data", help="folder that holds test (or evaluation)")
    parser.add_argument("--batch_size", type=int, default=512, help="images a forward pass")
    parser.add_argument("--num_workers", type=int, default=4, help="loader processes")
    parser.add_argument("--cased", action="store_true", default=False, help="case-sensitive comparison")
    parser.add_argument("--punctuation", action="store_true", default=False, help="check punctuation")
    parser.add_argument("--union", action="store_true", default=False, help="Union14M's benchmarks too")
    parser.add_argument("--new", action="store_true", default=False, help="the newer benchmarks too")
    parser.add_argument("--rotation", type=int, default=0, help="turn images counter-clockwise by so many degrees")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--standard", action="store_true", default=False, help="force the standard encoder; the "
                        "checkpoint's names decide otherwise")  # fmt: skip
    return parser


def charset_of(options: argparse.Namespace) -> str:
    """What is compared: digits and small letters, with --cased capitals, with --punctuation marks."""
    return DIGITS + LOWER + (UPPER if options.cased else "") + (string.punctuation if options.punctuation else "")


def opened(options: argparse.Namespace, words: Sequence[str]) -> tuple[SSMReader, int]:
    """The checkpoint's reader with the arguments `name:type=value`, and its longest word."""
    from projects.ssm.finetune.checkpoint import open_model, parse_model_args, to_device
    from projects.ssm.finetune.reader import SSMReader

    if options.batch_size < 1 or options.num_workers < 0:
        raise UserError("--batch_size, --num_workers: at least 1 image and at least 0 processes")
    arguments = parse_model_args(words)
    arguments["charset_test"] = charset_of(options)
    print(f"Additional keyword arguments: {arguments}")
    device = to_device(options.device)
    model, used = open_model(options.checkpoint, arguments, options.standard)
    reader = SSMReader(model.to(device).eval(), used["charset_train"], tuple(used["img_size"]), device)
    return reader, used["max_label_length"]


def read_groups(
    options: argparse.Namespace, reader: SSMReader, longest: int, chosen: Mapping[str, Sequence[str]]
) -> dict[str, SetReading]:
    """Every set of the groups, read once. Raises `UserError` where none of them is there."""
    from projects.ssm.finetune.evaluation import read_set, test_root

    root = Path(options.data_root)
    names = sorted({name for members in chosen.values() for name in members})
    places = {name: test_root(root, name) for name in names}
    missing = [name for name, place in places.items() if place is None]
    if len(missing) == len(names):
        raise UserError(f"--data_root: {root} holds no test/{names[0]}, test/{names[1]} …; give the data's root")
    if missing:
        print(f"not there, left out: {', '.join(missing)}")
    readings = {}
    for name, place in places.items():
        if place is not None:
            readings[name] = read_set(
                reader, place, charset_of(options), max_length=longest, batch_size=options.batch_size,
                workers=options.num_workers, degrees=options.rotation,
            )  # fmt: skip
            print(f"{name}: {readings[name].figures.accuracy:.2f} %", flush=True)
    return readings


def checkpoint_file(options: argparse.Namespace) -> str:
    """The path of the checkpoint, beside which the tables are written."""
    return options.checkpoint.removeprefix("pretrained=")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read every set once, print and write the tables."""
    from common.files import write_text
    from projects.ssm.finetune.evaluation import write_json
    from projects.ssm.finetune.table import groups, report

    options, words = parser().parse_known_args(argv)
    chosen = groups(options.new, options.union)
    readings = read_groups(options, *opened(options, words), chosen)
    text = report({name: reading.figures for name, reading in readings.items()}, chosen)
    print(text, end="")
    write_text(Path(f"{checkpoint_file(options)}.log.txt"), text)
    write_json(Path(f"{checkpoint_file(options)}.log.json"), readings)


if __name__ == "__main__":
    sys.exit(main())
