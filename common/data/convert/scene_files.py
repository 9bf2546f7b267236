"""Annotated whole pictures -> a scene file: what TextSSR trains on and paints into.

A scene file is AnyWord's JSON:

    {"data_root": "photos",
     "data_list": [
      {"img_name": "street.jpg",
       "annotations": [
        {"polygon": [[40, 60], [210, 62], [209, 120], [39, 117]], "text": "OPEN"},
        {"polygon": [[5, 5], [60, 5], [60, 20], [5, 20]], "text": "###", "valid": false}]}]}

`data_root` is the folder of the pictures, from the working folder or from the file's own. A polygon has three or more
points in pixels, clockwise from the beginning of the word. `language` may be given. Words that cannot be read are kept
with `"valid": false`, whatever the form that they come from; nothing is trained on them or painted over them.

Forms: `labelme` (a JSON file for each picture), `paddleocr` (lines `picture<TAB>[{"transcription", "points"}, …]`),
`icdar` (`gt_img_1.txt` of `x1,y1,…,x4,y4,text`, or `left, top, right, bottom, "text"`). The public sets of whole
pictures are converted with `--scenes`: `strlab data convert textocr SRC OUT.json --scenes`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from common.data.convert.gt import LOG_NAME
from common.data.convert.records import MALFORMED, malformed
from common.data.convert.release import find, need, numbered_lines, read_json
from common.data.convert.samples import Source
from common.errors import UserError
from common.files import write_text

Word = tuple[Path, str, dict]
"""(folder of the pictures, name of the picture below it, annotation)."""
ILLEGIBLE = ("###", "*", "")
"""Texts that stand for words which cannot be read."""
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def annotation(points: Iterable[Iterable[float]], text: str, *, legible: bool = True) -> dict:
    """A word in the scene file's form. Raises ValueError for fewer than three points or values that are no numbers."""
    polygon = [[round(float(x)), round(float(y))] for x, y in points]
    if len(polygon) < 3:
        raise ValueError(f"a polygon of {len(polygon)} points")
    word = {"polygon": polygon, "text": str(text)}
    return word if legible and word["text"].strip() not in ILLEGIBLE else word | {"valid": False}


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """The corners of a box, clockwise from the left top."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def labelme(root: Path, skipped: list) -> Iterator[Word]:
    """labelme's JSON files; rectangles have two points, every shape's label is its text."""
    for file in need(root, "*.json"):
        content = read_json(file)
        if not isinstance(content, dict) or "shapes" not in content:
            continue
        name = Path(str(content.get("imagePath") or f"{file.stem}.jpg").replace("\\", "/")).name
        for number, shape in enumerate(content["shapes"], 1):
            with noted(skipped, f"{file}: shape {number}"):
                points = shape["points"]
                if len(points) == 2:
                    (x1, y1), (x2, y2) = points
                    points = rectangle(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                yield file.parent, name, annotation(points, shape["label"])


def paddleocr(root: Path, skipped: list) -> Iterator[Word]:
    """PaddleOCR's detection lists (PPOCRLabel's Label.txt): `picture<TAB>JSON`; paths from the list's folder or the one
    above."""
    for file in [root] if root.is_file() else need(root, "*.txt"):
        for where, line in numbered_lines(file):
            name, _, rest = line.partition("\t")
            if not rest.lstrip().startswith("["):
                skipped.append((where, "no line of picture, tab, JSON list"))
                continue
            folder = next((at for at in (file.parent, file.parent.parent) if (at / name).is_file()), file.parent)
            with noted(skipped, where):
                words = json.loads(rest)
                for word in words:
                    legible = not word.get("difficult", False)
                    yield folder, name, annotation(word["points"], word["transcription"], legible=legible)


def icdar(root: Path, skipped: list) -> Iterator[Word]:
    """ICDAR's localisation lists `gt_img_1.txt` for img_1.jpg: eight or four numbers, then the text."""
    pictures = {path.stem.lower(): path for path in find(root, *(f"*{suffix}" for suffix in PICTURES))}
    for file in need(root, "gt_*.txt", "*.txt"):
        stem = file.stem.lower()
        picture = pictures.get(stem.removeprefix("gt_")) or pictures.get(stem)
        if picture is None:
            skipped.append((str(file), "no picture of this name"))
            continue
        for where, line in numbered_lines(file, "cp1252"):
            with noted(skipped, where):
                parts = line.split(",") if "," in line else next(csv.reader([line], delimiter=" "))
                count = 8 if len(parts) > 8 and all(is_number(part) for part in parts[:8]) else 4
                numbers = [float(part) for part in parts[:count]]
                text = (",".join(parts[count:]) if "," in line else " ".join(parts[count:])).strip().strip('"')
                points = list(zip(numbers[::2], numbers[1::2])) if count == 8 else rectangle(*numbers)
                yield picture.parent, picture.name, annotation(points, text)


def art(root: Path, skipped: list) -> Iterator[Word]:
    """ArT's whole pictures: train_labels.json, {"gt_0": [{transcription, points, language, illegibility}, …]}."""
    (file, *_) = need(root, "train_labels.json")
    pictures = {path.stem: path for path in find(root, "gt_*.jpg", "gt_*.png")}
    for name, words in read_json(file).items():
        picture = pictures.get(name)
        if picture is None:
            skipped.append((f"{file}: {name}", "no picture of this name"))
            continue
        for number, word in enumerate(words, 1):
            with noted(skipped, f"{file}: {name} word {number}"):
                made = annotation(word["points"], word["transcription"], legible=not word["illegibility"])
                yield picture.parent, picture.name, made | {"language": word["language"]}


def cut_words(sources: Iterable[Source], skipped: list) -> Iterator[Word]:
    """The words of a public set's converter, which skips illegible ones, where they are cut out of whole pictures."""
    for source in sources:
        if source.wrong:
            skipped.append((source.name, source.wrong))
        elif source.place is None:
            raise UserError("--scenes: this release holds words that are cut out already, no whole pictures")
        else:
            with noted(skipped, source.name):
                root, name, points = source.place
                yield root, name, annotation(points, source.label)


class noted:
    """Put a malformed record into the list of skipped ones instead of raising."""

    def __init__(self, skipped: list, where: str) -> None:
        self.skipped, self.where = skipped, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, MALFORMED):
            return False
        self.skipped.append((self.where, malformed(error)))
        return True


FORMS: dict[str, tuple[Callable[[Path, list], Iterator[Word]], str]] = {
    "labelme": (labelme, "labelme's JSON files"),
    "paddleocr": (paddleocr, "PaddleOCR's detection lists"),
    "icdar": (icdar, "ICDAR's localisation lists"),
}


def write_scene_file(out: Path, words: Iterable[Word], skipped: list, say: Callable[[str], None] = print) -> Counter:
    """Write a scene file; counts of pictures, words, and words marked illegible.

    Words of one picture stand together, pictures in the order of their first word. Raises `UserError` for a file that
    exists, an unusable name, and where nothing could be used.
    """
    out = Path(out)
    if out.suffix != ".json":
        raise UserError(f"{out}: give the name of the scene file to write, ending in .json")
    if out.exists():
        raise UserError(f"{out}: exists already; give another name")
    pictures: dict[Path, list[dict]] = {}
    for folder, name, word in words:
        pictures.setdefault(folder / name, []).append(word)
    present = {path: found for path, found in pictures.items() if path.is_file()}
    skipped += [(str(path), "no such picture") for path in pictures if path not in present]
    if not present:
        first = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "no annotation in it"
        raise UserError(f"{out}: nothing can be used ({first})")
    root = Path(os.path.commonpath([path.parent.absolute() for path in present]))
    items = [
        {"img_name": path.absolute().relative_to(root).as_posix(), "annotations": found}
        for path, found in present.items()
    ]
    at = os.path.relpath(root, out.absolute().parent)
    content = {"data_root": at, "data_list": items}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(content, ensure_ascii=False, indent=1))
    everything = [word for found in present.values() for word in found]
    counts = Counter(pictures=len(present), words=len(everything))
    counts["illegible"] = sum(word.get("valid") is False for word in everything)
    marked = f", {counts['illegible']} of them marked illegible" if counts["illegible"] else ""
    say(f"{out}: {counts['pictures']} pictures, {counts['words']} words{marked}")
    if skipped:
        log = write_text(out.with_name(f"{out.stem}.{LOG_NAME}"), "".join(f"{a}\t{b}\n" for a, b in skipped))
        say(f"{len(skipped)} records skipped, listed in {log}")
    return counts


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the forms to `strlab data convert`."""
    for name, (_, title) in FORMS.items():
        parser = subparsers.add_parser(
            name, help=f"{title} into a scene file", description=__doc__,
        )  # fmt: skip
        parser.add_argument("source", type=Path, metavar="SRC", help="folder of the annotations and pictures")
        parser.add_argument("out", type=Path, metavar="OUT.json", help="the scene file to write")
        parser.set_defaults(run=partial(_run, name))


def _run(name: str, args: argparse.Namespace) -> None:
    if not args.source.exists():
        raise UserError(f"{args.source}: no such folder: give the one with the annotations")
    skipped: list[tuple[str, str]] = []
    write_scene_file(args.out, FORMS[name][0](args.source, skipped), skipped)


def is_number(text: str) -> bool:
    """Whether a field is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
