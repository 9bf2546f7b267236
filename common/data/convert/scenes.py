"""Public data sets of whole pictures: their words cut out by the bounding boxes of the annotations."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from PIL import Image

from common.data.convert.records import Unusable, each
from common.data.convert.release import need, numbered_lines, read_json
from common.data.convert.samples import Source
from common.data.decode import decode_rgb
from common.errors import UserError
from common.files import read_below

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
MOST_PIXELS = 2**28  # of a whole scene: 16,384 squared
Box = tuple[float, float, float, float]


@lru_cache(maxsize=2)
def _picture(root: Path, name: str) -> Image.Image:
    return Image.fromarray(decode_rgb(read_below(root, name), MOST_PIXELS))


def cut(root: Path, name: str, box: Box) -> bytes:
    """The part (left, top, right, bottom) of the picture `name` below `root` as PNG, as far as it lies inside.

    Raises OSError, BadImage, and `Unusable` for a box outside the picture.
    """
    picture = _picture(root, name)
    left, top = max(int(box[0]), 0), max(int(box[1]), 0)
    right, bottom = min(round(box[2]), picture.width), min(round(box[3]), picture.height)
    if right <= left or bottom <= top:
        raise Unusable(f"box {box} lies outside the picture")
    stream = io.BytesIO()
    picture.crop((left, top, right, bottom)).save(stream, "PNG")
    return stream.getvalue()


def word(
    root: Path,
    name: str,
    box: Box,
    label: str,
    where: str = "",
    extras: dict | None = None,
    polygon: Sequence[float] | None = None,
) -> Source:
    """One word of the picture `name` below `root`; `polygon` x1, y1, x2, y2, …, where it is known, is for scenes.

    Raises ValueError for a box that is not finite.
    """
    told = f"{where} {name} {tuple(round(side) for side in box)}".strip()
    left, top, right, bottom = box
    flat = polygon or (left, top, right, top, right, bottom, left, bottom)
    points = [[float(x), float(y)] for x, y in zip(flat[::2], flat[1::2])]
    return Source(told, label, partial(cut, root, name, box), extras or {}, place=(root, name, points))


def corner_box(box: Sequence[float], pad: float = 0) -> Box:
    """(x, y, width, height) -> (left, top, right, bottom), padded."""
    x, y, width, height = box
    return x - pad, y - pad, x + width + pad, y + height + pad


def polygon_box(points: Sequence[float]) -> Box:
    """Bounding box of x1, y1, x2, y2, …"""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def textocr(root: Path) -> Iterator[Source]:
    """TextOCR_*.json: `imgs` and `anns`; words written `.` are the illegible ones."""
    for file in need(root, "TextOCR*.json"):
        content = read_json(file)
        pictures = content["imgs"]

        def one(note: dict, pictures: dict = pictures) -> Iterator[Source]:
            if note["utf8_string"] != ".":
                name = _located(root, pictures[str(note["image_id"])]["file_name"])
                yield word(root, name, corner_box(note["bbox"]), note["utf8_string"], polygon=note.get("points"))

        yield from each(((f"{file}: {key}:", note) for key, note in content["anns"].items()), one, Source.bad)


def openvino(root: Path) -> Iterator[Source]:
    """OpenVINO's words of Open Images: text_spotting_openimages_v5_*.json; legible English ones."""
    for file in need(root, "text_spotting_openimages_v5_*.json"):
        content = read_json(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}

        def one(note: dict, names: dict = names) -> Iterator[Source]:
            about = note["attributes"]
            if about.get("legible") and about.get("language") == "english":
                name = _located(root, names[note["image_id"]])
                yield word(root, name, corner_box(note["bbox"]), about["transcription"])

        yield from each(_numbered(file, content["annotations"]), one, Source.bad)


def coco(root: Path) -> Iterator[Source]:
    """COCO-Text v2: machine printed, English, legible; boxes padded by 2 pixels; labels with marks of doubt are not
    used."""
    (file, *_) = need(root, "cocotext.v2.json")
    content = read_json(file)
    wanted = {"class": "machine printed", "language": "english", "legibility": "legible"}

    def one(note: dict) -> Iterator[Source]:
        if any(note.get(key) != value for key, value in wanted.items()):
            return
        label = html.unescape(note["utf8_string"]).strip()
        if ("#" in label and label != "#") or label.startswith("*") or label.endswith("*"):
            return
        image = content["imgs"][str(note["image_id"])]["file_name"]
        yield word(root, _located(root, image), corner_box(note["bbox"], 2), label, polygon=note.get("mask"))

    yield from each(((f"{file}: {key}:", note) for key, note in content["anns"].items()), one, Source.bad)


def lsvt(root: Path) -> Iterator[Source]:
    """LSVT: train_full_labels.json; legible words without Han characters or `#`."""
    (file, *_) = need(root, "train_full_labels.json")

    def one(record: tuple[str, dict]) -> Iterator[Source]:
        name, note = record
        label = note["transcription"]
        if not note["illegibility"] and not HAN.search(label) and "#" not in label:
            points = [value for point in note["points"] for value in point]
            yield word(root, _located(root, f"{name}.jpg"), polygon_box(points), label, polygon=points)

    records = (
        (f"{file}: {name} word {number}:", (name, note))
        for name, notes in read_json(file).items()
        for number, note in enumerate(notes if isinstance(notes, list) else [notes], 1)
    )
    yield from each(records, one, Source.bad)


def rctw17(root: Path) -> Iterator[Source]:
    """RCTW-17: `<picture>.txt` of x1,y1,…,x4,y4,difficult,"text"; easy words without Han characters or `#`."""
    for file in need(root, "*.txt"):

        def one(line: str, file: Path = file) -> Iterator[Source]:
            parts = line.split(",", 9)
            if len(parts) < 10 or parts[8].strip() != "0":
                return
            label = parts[9].strip().strip('"')
            if not HAN.search(label) and "#" not in label:
                points = [float(part) for part in parts[:8]]
                yield word(root, str(_beside(file).relative_to(root)), polygon_box(points), label, polygon=points)

        yield from each(numbered_lines(file), one, Source.bad)


def rects(root: Path) -> Iterator[Source]:
    """ReCTS: gt/<picture>.json with `lines`; words that count, without Han characters or `#`."""
    for file in need(root, "gt/*.json"):

        def one(note: dict, file: Path = file) -> Iterator[Source]:
            label = note["transcription"]
            if not note["ignore"] and not HAN.search(label) and "#" not in label:
                points = note["points"]
                yield word(root, _located(root, f"{file.stem}.jpg"), polygon_box(points), label, polygon=points)

        yield from each(_numbered(file, read_json(file)["lines"]), one, Source.bad)


def uber(root: Path) -> Iterator[Source]:
    """Uber-Text: `truth_<picture>.txt` of `x1 y1 x2 y2 …<TAB>text<TAB>kind`; words written `*` are not used."""
    for file in need(root, "truth_*.txt"):
        image = file.with_name(file.stem.removeprefix("truth_") + ".jpg").relative_to(root)

        def one(line: str, image: Path = image) -> Iterator[Source]:
            parts = line.split("\t")
            if len(parts) >= 2 and "*" not in parts[1]:
                points = [float(part) for part in parts[0].split()]
                yield word(root, str(image), polygon_box(points), parts[1], polygon=points)

        yield from each(numbered_lines(file), one, Source.bad)


def _numbered(file: Path, notes: object) -> Iterator[tuple[str, dict]]:
    if not isinstance(notes, list):
        raise UserError(f"{file}: no list of annotations; fetch it again")
    return ((f"{file}: annotation {number}:", note) for number, note in enumerate(notes, 1))


@lru_cache(maxsize=4)
def _index(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}


def _located(root: Path, name: str) -> str:
    """The path below `root` of the picture `name`: as given where it exists, else wherever a file of that name is."""
    if not isinstance(name, str):
        raise TypeError(f"a picture's name is {name!r}")
    if ".." in Path(name).parts or Path(name).is_absolute() or (root / name).is_file():
        return name  # a name that leads out is refused when it is read
    found = _index(root).get(Path(name).name)
    return name if found is None else str(found.relative_to(root))


def _beside(file: Path) -> Path:
    """The picture that a text file belongs to."""
    return next((p for p in (file.with_suffix(s) for s in (".jpg", ".png")) if p.is_file()), file.with_suffix(".jpg"))
