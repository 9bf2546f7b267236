"""`strlab read`: the text in images, one line for each: file, text, confidence, separated by tabs.

A file that cannot be decoded gives a line on stderr and the exit status 1; the others are read all the same.
The readers are made for one horizontal word; a crop that is far from that is read with a warning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import write_bytes
from common.infer.recognizer import LONGEST_ASPECT, Prediction, Recognizer, find_images, open_recognizer


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that opens a checkpoint."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a trained reader")
    parser.add_argument("--model", metavar="NAME", help="model row, where no card stands beside the checkpoint")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="build option, overrides the card"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (default 64)")
    parser.add_argument("--amp", default="no", choices=["no", "fp16", "bf16"], help="precision (default no: fp32)")


def open_from(args: argparse.Namespace) -> Recognizer:
    """The recognizer that the arguments of `add_checkpoint_arguments` name."""
    options = {}
    for text in args.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option: {text!r} is not KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return open_recognizer(args.checkpoint, args.model, args.device, options, args.batch_size, args.amp)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab read`."""
    parser = subparsers.add_parser("read", help="read the text in images", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns in quotes")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line, with confidences of the characters"
    )
    parser.add_argument(
        "--attention", type=Path, metavar="FOLDER", help="draw where each character was seen, one sheet an image"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    paths = find_images(args.images)
    recognizer = open_from(args)
    predictions = recognizer.stream(_checked(paths), attention=args.attention is not None)
    failed = 0
    for path, prediction in zip(paths, predictions):
        if prediction.error:
            failed += 1
            print(f"{path}: skipped: {prediction.error}", file=sys.stderr)
            continue
        print(line(path, prediction, args.json), flush=True)
        if args.attention is not None and prediction.attention is not None:
            _draw(recognizer, path, prediction, args.attention)
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def line(path: Path, prediction: Prediction, as_json: bool) -> str:
    """One line of output; control characters and tabs in the text cannot break it."""
    if not as_json:
        text = prediction.text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
        return f"{path}\t{text}\t{prediction.confidence:.4f}"
    entry = {"file": str(path), "text": prediction.text, "confidence": round(float(prediction.confidence), 6)}
    entry["char_confidences"] = [round(float(value), 6) for value in prediction.char_confidences]
    if prediction.extra:
        entry["extra"] = dict(prediction.extra)
    return json.dumps(entry, ensure_ascii=False, default=str)


def _checked(paths: list[Path]) -> Iterator[Path]:
    """The paths, with a warning for images whose shape no word has."""
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            width = height = 1  # the reader will say what is wrong with it
        if width > LONGEST_ASPECT * height:
            print(
                f"warning: {path}: {width}x{height} is very wide for one word; cut lines into words first",
                file=sys.stderr,
            )
        elif height > 2 * width and height > 8:
            print(f"warning: {path}: {width}x{height} is upright; turn it or expect nonsense", file=sys.stderr)
        yield path


def _draw(recognizer: Recognizer, path: Path, prediction: Prediction, folder: Path) -> None:
    """Write the attention sheet of one image."""
    from common.infer.pictures import attention_sheet
    from common.infer.report import png

    sheet = attention_sheet(recognizer.prepare(path), np.asarray(prediction.attention), prediction.text)
    write_bytes(folder / f"{path.stem}_attention.png", png(sheet))
