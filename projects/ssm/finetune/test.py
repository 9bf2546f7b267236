#!/usr/bin/env python
"""Evaluate a recogniser on the benchmarks and print the published tables.

./test.py outputs/…/checkpoints/last.ckpt --data_root DATA [--cased --punctuation --new --union] [name:type=value …]
"""

from __future__ import annotations

import argparse
import string
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.data.bad import FILE_NAME
from common.errors import UserError, command
from common.flags import new_parser
from common.text.charset import DIGITS, LOWER, UPPER

if TYPE_CHECKING:
    from projects.ssm.finetune.evaluate import SetReading
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
    parser.add_argument("--chinese", action="store_true", help="scene_test, web_test and document_test too")
    parser.add_argument("--rotation", type=int, default=0, help="turn images counter-clockwise by so many degrees")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--standard", action="store_true", default=False, help="force the standard encoder; the "
                        "checkpoint's names decide otherwise")  # fmt: skip
    return parser


class Opened(NamedTuple):
    """A checkpoint's reader, its longest word, and the characters that are compared."""

    reader: SSMReader
    longest: int
    charset: str


def charset_of(options: argparse.Namespace, trained: str) -> str:
    """What is compared: digits and small letters, with --cased capitals, with --punctuation marks; of the charset
    `trained` also the characters outside ASCII, by the same switches."""
    ascii_part = DIGITS + LOWER + (UPPER if options.cased else "") + (string.punctuation if options.punctuation else "")

    def asked(character: str) -> bool:
        mark = unicodedata.category(character)[0] in "PS"
        return (options.punctuation or not mark) and (options.cased or character == character.lower())

    return ascii_part + "".join(one for one in trained if not one.isascii() and asked(one))


def opened(options: argparse.Namespace, words: Sequence[str]) -> Opened:
    """The checkpoint's reader with the arguments `name:type=value`; `charset_test` among them says what is compared."""
    from projects.ssm.finetune.files import open_model, parse_model_args, to_device
    from projects.ssm.finetune.reader import SSMReader

    if options.batch_size < 1 or options.num_workers < 0:
        raise UserError("--batch_size, --num_workers: at least 1 image and at least 0 processes")
    arguments = parse_model_args(words)
    given = arguments.get("charset_test")
    if given is not None and (options.cased or options.punctuation or not (given and isinstance(given, str))):
        raise UserError("charset_test:str=…: give the characters to compare, without --cased and --punctuation")
    arguments.setdefault("charset_test", charset_of(options, ""))
    print(f"Additional keyword arguments: {arguments}")
    device = to_device(options.device)
    model, used = open_model(options.checkpoint, arguments, options.standard)
    average = Path(checkpoint_file(options)).with_name("swa.ckpt")
    if average.is_file() and not average.samefile(checkpoint_file(options)):
        print(f"{average} holds the averaged weights of this run's last epochs; give it to measure them")
    charset = given or charset_of(options, used["charset_train"])
    if not (charset + used["charset_train"]).isascii():
        print(f"{len(charset)} characters are compared; labels are not folded to ASCII")
    reader = SSMReader(model.to(device).eval(), used["charset_train"], tuple(used["img_size"]), device)
    return Opened(reader, used["max_label_length"], charset)


def read_groups(
    options: argparse.Namespace, model: Opened, chosen: Mapping[str, Sequence[str]]
) -> dict[str, SetReading]:
    """Every set of the groups, read once. Raises `UserError` where none of them is there."""
    from projects.ssm.finetune.evaluate import read_set, test_root

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
            found = readings[name] = read_set(
                model.reader, place, model.charset, max_length=model.longest, batch_size=options.batch_size,
                workers=options.num_workers, degrees=options.rotation,
            )  # fmt: skip
            missed = f", {len(found.unreadable)} unreadable" if found.unreadable else ""
            print(f"{name}: {found.figures.accuracy:.2f} %{missed}", flush=True)
    return readings


def checkpoint_file(options: argparse.Namespace) -> str:
    """The path of the checkpoint, beside which the tables are written."""
    return options.checkpoint.removeprefix("pretrained=")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read every set once, print and write the tables."""
    from common.files import write_text
    from projects.ssm.finetune.evaluate import list_unreadable, write_json
    from projects.ssm.finetune.table import groups, report

    options, words = parser().parse_known_args(argv)
    chosen = groups(options.new, options.union, options.chinese)
    readings = read_groups(options, opened(options, words), chosen)
    file = checkpoint_file(options)
    text = report({name: reading.figures for name, reading in readings.items()}, chosen)
    text += list_unreadable(Path(f"{file}.{FILE_NAME}"), readings.values())
    print(text, end="")
    write_text(Path(f"{file}.log.txt"), text)
    write_json(Path(f"{file}.log.json"), readings)


if __name__ == "__main__":
    sys.exit(main())
