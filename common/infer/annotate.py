"""Pictures -> a scene file: the words that an installed text detector finds and a reader reads.

    strlab data annotate photos scenes.json

The detector is that of `strlab read --detect` (PP-OCR's DBNet); --reader names who reads the words. Every word becomes
an annotation with its four corners, text and confidence; words that the reader is less sure of than --min-score are
kept with `"valid": false`, so that nothing is painted over them. The form of the file is described in `strlab data
convert labelme --help`; look over it before training on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.data.convert.scene_files import Word, annotation, write_scene_file
from common.data.decode import BadImage
from common.errors import UserError
from common.infer import pages, shipped
from common.infer.images import as_array, find_images
from common.infer.peers import PEERS, open_peer
from common.infer.recognizer import Prediction, open_recognizer

Read = Callable[[Sequence[np.ndarray]], list[Prediction]]


def annotated(
    detector: pages.Detector, read: Read, files: list[Path], min_score: float, skipped: list[tuple[str, str]]
) -> Iterator[Word]:
    """The words of every picture; pictures that cannot be read, and those without text, are listed in `skipped`."""
    for file in tqdm(files, desc="Pictures", unit="img", disable=None):
        try:
            picture = as_array(file)
        except BadImage as error:
            skipped.append((str(file), str(error)))
            continue
        boxes, crops = detector.words(picture)
        if not len(boxes):
            skipped.append((str(file), "no text was found"))
            continue
        for polygon, prediction in zip(boxes, read(crops)):
            sure = prediction.confidence >= min_score
            made = annotation(polygon.tolist(), prediction.text.strip(), legible=sure)
            yield file.parent, file.name, made | {"score": round(float(prediction.confidence), 4)}


def open_reader(name: str) -> Read:
    """A peer by its name, a shipped reader by its name ("default": the default one), or a checkpoint."""
    if name in PEERS:
        return open_peer(name)
    if Path(name).expanduser().exists():
        return open_recognizer(name)
    one = shipped.default() if name == "default" else shipped.find(name)
    one.check()
    return open_recognizer(one.path)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "annotate", help="find and read the words of pictures", description=__doc__,
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="pictures, searched for in folders below it too")
    parser.add_argument("out", type=Path, metavar="OUT.json", help="the scene file to write")
    parser.add_argument(
        "--reader",
        default="rapidocr",
        help="rapidocr (PP-OCR, the default), default (the shipped reader), a checkpoint",
    )
    parser.add_argument("--min-score", type=float, default=0.8, help="less sure words are marked invalid (0.8)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if not 0 <= args.min_score <= 1:
        raise UserError(f"--min-score {args.min_score}: give 0 to 1")
    files = find_images([args.folder])
    if not files:
        raise UserError(f"{args.folder}: no picture in it")
    detector, read, skipped = pages.detector(), open_reader(args.reader), []
    write_scene_file(args.out, annotated(detector, read, files, args.min_score, skipped), skipped)
