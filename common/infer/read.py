"""`strlab read`: the text in images, one line for each: file, text, confidence, separated by tabs.

Without `--checkpoint` the reader that ships with the package is used. A file that cannot be decoded gives a line on
stderr and the exit status 1; the others are read all the same. The readers are made for one horizontal word; a crop
that is far from that is read with a warning. With `--detect` a detector of other people (PP-OCR's DBNet, extra
`detect`) first finds the words of whole pictures, and each line has the word's four corners as a fourth field.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.decode import BadImage, open_picture, orientation
from common.errors import UserError, printable
from common.files import read_regular, write_bytes
from common.infer import pages, shipped
from common.infer.images import as_array, find_images, unlike_a_word
from common.infer.pictures import annotated, attention_sheet, captioned, png
from common.infer.recognizer import ENGINES, Prediction, Recognizer, open_recognizer


def add_checkpoint_arguments(parser: argparse.ArgumentParser, batches: bool = True) -> None:
    """The arguments of every command that opens a checkpoint; `batches`: also those of one that reads many images."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a trained reader (default: the one that ships)",
    )
    parser.add_argument("--weights", metavar="NAME", help="a shipped reader by its name (`strlab models` lists them)")
    parser.add_argument("--model", metavar="NAME", help="registry entry, where the checkpoint has no metadata file")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="build option, overrides the metadata"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    parser.add_argument(
        "--engine", default="auto", choices=ENGINES, help="auto: ONNX Runtime where it is faster; int8: quantised"
    )
    if not batches:
        return
    parser.add_argument(
        "--single-look",
        dest="second_look",
        action="store_false",
        help="the default reader: do not read unsure words in several ways, which is faster and reads fewer",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (default 64)")
    parser.add_argument("--amp", default="no", choices=["no", "fp16", "bf16"], help="precision (default no: fp32)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that decode images (default 2)")


def open_from(args: argparse.Namespace, **how: Any) -> Recognizer:
    """The recognizer that the arguments of `add_checkpoint_arguments` name; `how`: more for `Recognizer`."""
    options = {}
    for text in args.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option: {text!r} is not KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    given = {
        name: getattr(args, name)
        for name in ("batch_size", "amp", "workers", "engine", "second_look")
        if hasattr(args, name)
    }
    how = {**given, **how}
    if args.checkpoint is not None and args.weights is not None:
        raise UserError("--weights: give either --checkpoint FILE or --weights NAME, not both")
    if args.checkpoint is not None:
        return open_recognizer(args.checkpoint, args.model, args.device, options, **how)
    one = shipped.find(args.weights) if args.weights else shipped.default()
    one.check()
    shipped.announce(one.name)
    return open_recognizer(one.path, args.model, args.device, options, **how)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("read", help="read the text in images", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns in quotes")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line, with confidences of the characters"
    )
    parser.add_argument(
        "--attention", type=Path, metavar="FOLDER", help="draw where each character was seen, one sheet an image"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="also draw all images with what was read below each"
    )
    parser.add_argument(
        "--exif", action="store_true", help="turn photographs as their EXIF orientation says (default: as stored)"
    )
    parser.add_argument(
        "--detect", action="store_true", help="whole pictures: find the words first, with another project's detector"
    )
    parser.add_argument(
        "--draw", type=Path, metavar="PATH", help="with --detect: the picture with boxes and text, a folder for several"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    paths = find_images(args.images)
    check_drawing("--sheet", args.sheet, paths)
    check_drawing("--draw", args.draw, paths)
    if args.draw is not None and not args.detect:
        raise UserError("--draw: it shows what --detect found; give both")
    if args.detect:
        return _read_pages(args, paths)
    recognizer = open_from(args, upright=args.exif)
    predictions = recognizer.stream(_checked(paths, args.exif), attention=args.attention is not None)
    failed, mapped, read = 0, True, []
    sheets = paths if args.attention is None else sheet_names(paths)
    for path, sheet, prediction in zip(paths, sheets, predictions):
        if prediction.error:
            failed += 1
            print(f"{printable(path)}: skipped: {printable(prediction.error)}", file=sys.stderr)
            continue
        print(line(path, prediction, args.json), flush=True)
        read.append((path, prediction.text))
        if args.attention is not None and prediction.attention is not None:
            _draw(recognizer, path, prediction, args.attention / sheet)
        elif args.attention is not None and prediction.text and mapped:
            mapped = False
            print(f"warning: --attention: no maps from {type(recognizer.reader).__name__} here", file=sys.stderr)
    if args.sheet is not None and read:
        write_bytes(args.sheet, png(captioned([(as_array(path, args.exif), text) for path, text in read])))
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _read_pages(args: argparse.Namespace, paths: list[Path]) -> int:
    """Find and read the words of whole pictures, and print or draw them as the arguments ask."""
    if args.attention is not None or args.sheet is not None:
        raise UserError("--detect: --attention and --sheet are for pictures of one word; use --draw PATH")
    if args.draw is not None and len(paths) > 1 and args.draw.suffix:
        raise UserError(f"--draw: {args.draw} is one file and there are {len(paths)} pictures; name a folder")
    finder = pages.detector()
    recognizer = open_from(args, upright=args.exif)
    print(f"words found by the {finder.name}, which is not part of strlab", file=sys.stderr)
    failed = 0
    for path, name in zip(paths, sheet_names(paths, "_words.png")):
        try:
            image = as_array(path, args.exif)
        except BadImage as error:
            failed += 1
            print(f"{printable(path)}: skipped: {printable(error)}", file=sys.stderr)
            continue
        words = recognizer.read_page(image, finder)
        if not words:
            print(f"{printable(path)}: no words were found", file=sys.stderr)
        if args.json:
            found = [{**_entry(word.prediction), "box": word.box.round(1).tolist()} for word in words]
            print(json.dumps({"file": str(path), "detector": finder.name, "words": found}, ensure_ascii=False))
        for word in words if not args.json else ():
            corners = ",".join(f"{value:.0f}" for value in word.box.reshape(-1))
            print(f"{line(path, word.prediction, False)}\t{corners}", flush=True)
        if args.draw is not None:
            out = args.draw if args.draw.suffix else args.draw / name
            write_bytes(out, png(annotated(image, [(word.box, word.text) for word in words])))
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def check_drawing(flag: str, out: Path | None, images: Sequence[Path]) -> None:
    """Raise `UserError` for a picture that would take the place of one that is read, or that is no PNG."""
    if out is None or not out.suffix:
        return
    if any(out.resolve() == image.resolve() for image in images):
        raise UserError(f"{flag}: {out} is one of the pictures to read; give another name")
    if out.suffix.lower() != ".png" and not out.is_dir():
        raise UserError(f"{flag}: {out}: a PNG is written; give a name that ends in .png")


def line(path: Path, prediction: Prediction, as_json: bool) -> str:
    """One line of output; control characters and tabs in the text cannot break it."""
    if not as_json:
        text = prediction.text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
        return f"{printable(path)}\t{text}\t{prediction.confidence:.4f}"
    return json.dumps({"file": str(path), **_entry(prediction)}, ensure_ascii=False, default=str)


def _entry(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it stands in a line of `--json`."""
    entry: dict[str, Any] = {"text": prediction.text, "confidence": round(float(prediction.confidence), 6)}
    entry["char_confidences"] = [round(float(value), 6) for value in prediction.char_confidences]
    if prediction.extra:
        entry["extra"] = dict(prediction.extra)
    return entry


def sheet_names(paths: Sequence[Path], ending: str = "_attention.png") -> list[Path]:
    """Where each image's sheet goes: its path from the images' common folder with `ending` after its name.

    An image that is named twice gets `-2` before that, and so on.
    """
    absolute = [Path(os.path.normpath(path.absolute())) for path in paths]  # `..` would lead out
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    seen: Counter[Path] = Counter()
    names = []
    for path in absolute:
        seen[path] += 1
        place, again = path.relative_to(common), f"-{seen[path]}" if seen[path] > 1 else ""
        names.append(place.with_name(f"{place.name}{again}{ending}"))
    return names


def _checked(paths: list[Path], upright: bool) -> Iterator[Path]:
    """The paths, with a warning for images whose shape no word has."""
    for path in paths:
        try:
            data = read_regular(path)
            width, height = open_picture(data).size
            if upright and orientation(data) >= 5:
                width, height = height, width
        except (BadImage, OSError):  # the reader will say what is wrong with it
            width = height = 1
        if odd := unlike_a_word(width, height):
            print(f"warning: {printable(path)}: {odd}", file=sys.stderr)
        yield path


def _draw(recognizer: Recognizer, path: Path, prediction: Prediction, out: Path) -> None:
    """Write the attention sheet of one image."""
    sheet = attention_sheet(recognizer.prepare(path), np.asarray(prediction.attention), prediction.text)
    write_bytes(out, png(sheet))
