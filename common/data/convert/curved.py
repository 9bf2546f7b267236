"""Curved scene text whose releases give polygons of words: Total-Text and SCUT-CTW1500; words are cut by their
bounds.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from common.data.convert.records import each
from common.data.convert.release import find, need, numbered_lines, split_of
from common.data.convert.samples import Source
from common.data.convert.scenes import polygon_box, word
from common.errors import UserError
from common.files import read_regular

PICTURES = (".jpg", ".jpeg", ".png")
_FIELD = re.compile(r"(x|y|ornt|transcriptions):\s*\[+(.*?)\]+(?:,|$)", re.DOTALL)


def totaltext(root: Path, split: str) -> Iterator[Source]:
    """Total-Text: `poly_gt_img1.txt` of `x: [[…]], y: [[…]], ornt: [u'c'], transcriptions: [u'word']`; `#` is
    illegible.
    """
    files = [file for file in need(root, "poly_gt_img*.txt", "gt_img*.txt") if _of_split(file.relative_to(root), split)]
    if not files:
        raise UserError(
            f"{root}: no {split} annotations (poly_gt_img1.txt …) in it; give the unpacked data set's folder"
        )
    pictures = _pictures(root)
    for file in files:
        stem = file.stem.split("gt_")[-1]
        picture = pictures.get((stem.lower(), split)) or pictures.get((stem.lower(), None)) or Path(f"{stem}.jpg")
        yield from each(numbered_lines(file, "cp1252"), partial(_polygon_line, root, picture), Source.bad)


def _polygon_line(root: Path, picture: Path, line: str) -> Iterator[Source]:
    fields = dict(_FIELD.findall(line))
    label = re.sub(r"^u?['\"](.*)['\"]$", r"\1", fields["transcriptions"].strip())
    if label == "#":
        return
    xs, ys = (np.array(fields[axis].replace(",", " ").split(), dtype=float) for axis in "xy")
    if len(xs) != len(ys) or len(xs) < 3:
        raise ValueError(f"{len(xs)} x and {len(ys)} y of the polygon")
    points = np.stack([xs, ys], axis=1).ravel().tolist()
    yield word(root, str(picture), polygon_box(points), label, polygon=points)


def ctw1500(root: Path, split: str) -> Iterator[Source]:
    """SCUT-CTW1500: training XML files of `<box …><label>`, test `0001001.txt` of x1,y1,…,x14,y14,####text."""
    pictures = _pictures(root)
    if split == "train":
        for file in [file for file in need(root, "*.xml") if _of_split(file.relative_to(root), split)]:
            picture = pictures.get((file.stem.lower(), split)) or pictures.get((file.stem.lower(), None))
            boxes = ((f"{file}: box {i}:", box) for i, box in enumerate(_xml_boxes(file), 1))
            yield from each(boxes, partial(_xml_box, root, picture or Path(f"{file.stem}.jpg")), Source.bad)
        return
    for file in [file for file in need(root, "[0-9]*.txt") if split_of(file.relative_to(root)) in (split, None)]:
        # The test lists are named 0001001.txt for the picture 1001.jpg.
        keys = ((stem, own) for stem in (file.stem, file.stem.lstrip("0"), file.stem[-4:]) for own in (split, None))
        picture = next((pictures[key] for key in keys if key in pictures), Path(f"{file.stem}.jpg"))
        yield from each(numbered_lines(file), partial(_hash_line, root, picture), Source.bad)


def _xml_boxes(file: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.fromstring(read_regular(file)).iter("box"))
    except (ElementTree.ParseError, OSError):
        return []


def _xml_box(root: Path, picture: Path, box: ElementTree.Element) -> Iterator[Source]:
    label = (box.findtext("label") or "").strip()
    if label and label != "###":
        points = [float(value) for value in (box.findtext("segs") or box.findtext("pts") or "").split(",")]
        yield word(root, str(picture), polygon_box(points), label, polygon=whole_polygon(points))


def _hash_line(root: Path, picture: Path, line: str) -> Iterator[Source]:
    numbers, _, label = line.partition("####")
    if label.strip() and label.strip() != "#":
        points = [float(value) for value in numbers.strip().strip(",").split(",")]
        yield word(root, str(picture), polygon_box(points), label.strip(), polygon=whole_polygon(points))


def whole_polygon(points: list[float]) -> list[float] | None:
    """The points of a polygon; None where there are fewer than three, or half a point: then the bounds are taken."""
    return points if len(points) >= 6 and len(points) % 2 == 0 else None


def _of_split(path: Path, split: str) -> bool:
    return split_of(path) == split


def _pictures(root: Path) -> dict[tuple[str, str | None], Path]:
    """(lower-case stem, split or None) -> path below `root`."""
    files = find(root, *(f"*{suffix}" for suffix in PICTURES))
    return {(file.stem.lower(), split_of(file.relative_to(root))): file.relative_to(root) for file in files}
