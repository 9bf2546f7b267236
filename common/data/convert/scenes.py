"""Public data sets of whole pictures: their words cut out by the bounding boxes of the annotations."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from PIL import Image

from common.data.convert.crops import read_json, read_text
from common.data.convert.samples import Source
from common.data.decode import decode_rgb
from common.errors import UserError

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
MOST_PIXELS = 2**28  # of a whole scene: 16,384 squared
Box = tuple[float, float, float, float]


@lru_cache(maxsize=2)
def _picture(path: Path) -> Image.Image:
    return Image.fromarray(decode_rgb(path.read_bytes(), MOST_PIXELS))


def cut(path: Path, box: Box) -> bytes:
    """The part (left, top, right, bottom) of a picture as PNG, as far as it lies inside. Raises OSError, BadImage."""
    picture = _picture(path)
    left, top = max(int(box[0]), 0), max(int(box[1]), 0)
    right, bottom = min(round(box[2]), picture.width), min(round(box[3]), picture.height)
    if right <= left or bottom <= top:
        raise OSError(f"box {box} lies outside the picture")
    stream = io.BytesIO()
    picture.crop((left, top, right, bottom)).save(stream, "PNG")
    return stream.getvalue()


def word(path: Path, box: Box, label: str) -> Source:
    """One word of a picture."""
    return Source(f"{path} {tuple(round(side) for side in box)}", label, partial(cut, path, box))


def corner_box(box: Sequence[float], pad: float = 0) -> Box:
    """(x, y, width, height) -> (left, top, right, bottom), padded."""
    x, y, width, height = box
    return x - pad, y - pad, x + width + pad, y + height + pad


def polygon_box(points: Sequence[float]) -> Box:
    """Bounding box of x1, y1, x2, y2, …"""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def textocr(root: Path) -> Iterator[Source]:
    """TextOCR_*.json: `imgs` and `anns`; words written `.` are the illegible ones."""
    for file in _files(root, "TextOCR*.json"):
        content = read_json(file)
        for note in content["anns"].values():
            if note["utf8_string"] != ".":
                path = root / content["imgs"][str(note["image_id"])]["file_name"]
                yield word(path, corner_box(note["bbox"]), note["utf8_string"])


def openvino(root: Path) -> Iterator[Source]:
    """OpenVINO's words of Open Images: text_spotting_openimages_v5_*.json; legible English ones."""
    for file in _files(root, "text_spotting_openimages_v5_*.json"):
        content = read_json(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for note in content["annotations"]:
            about = note["attributes"]
            if about.get("legible") and about.get("language") == "english":
                yield word(root / names[note["image_id"]], corner_box(note["bbox"]), about["transcription"])


def coco(root: Path) -> Iterator[Source]:
    """COCO-Text v2: machine printed, English, legible; boxes padded by 2 pixels; labels with marks of doubt left
    out."""
    content = read_json(root / "cocotext.v2.json")
    wanted = {"class": "machine printed", "language": "english", "legibility": "legible"}
    for note in content["anns"].values():
        if any(note.get(key) != value for key, value in wanted.items()):
            continue
        label = html.unescape(note["utf8_string"]).strip()
        if ("#" in label and label != "#") or label.startswith("*") or label.endswith("*"):
            continue
        image = content["imgs"][str(note["image_id"])]["file_name"]
        yield word(_first(root, image), corner_box(note["bbox"], 2), label)


def lsvt(root: Path) -> Iterator[Source]:
    """LSVT: train_full_labels.json; legible words without Han characters or `#`."""
    for name, notes in read_json(root / "train_full_labels.json").items():
        for note in notes:
            label = note["transcription"]
            if not note["illegibility"] and not HAN.search(label) and "#" not in label:
                points = [value for point in note["points"] for value in point]
                yield word(_first(root, f"{name}.jpg"), polygon_box(points), label)


def rctw17(root: Path) -> Iterator[Source]:
    """RCTW-17: `<picture>.txt` of x1,y1,…,x4,y4,difficult,"text"; easy words without Han characters or `#`."""
    for file in _files(root, "**/*.txt"):
        for line in read_text(file).splitlines():
            parts = line.split(",", 9)
            if len(parts) < 10 or parts[8].strip() != "0":
                continue
            label = parts[9].strip().strip('"')
            if not HAN.search(label) and "#" not in label:
                yield word(_beside(file), polygon_box([float(part) for part in parts[:8]]), label)


def rects(root: Path) -> Iterator[Source]:
    """ReCTS: gt/<picture>.json with `lines`; words that count, without Han characters or `#`."""
    for file in _files(root, "gt/*.json"):
        for note in read_json(file)["lines"]:
            label = note["transcription"]
            if not note["ignore"] and not HAN.search(label) and "#" not in label:
                yield word(_first(root, f"{file.stem}.jpg"), polygon_box(note["points"]), label)


def uber(root: Path) -> Iterator[Source]:
    """Uber-Text: `truth_<picture>.txt` of `x1 y1 x2 y2 …<TAB>text<TAB>kind`; words written `*` are left out."""
    for file in _files(root, "**/truth_*.txt"):
        image = file.with_name(file.stem.removeprefix("truth_") + ".jpg")
        for line in read_text(file).splitlines():
            parts = line.split("\t")
            if len(parts) >= 2 and "*" not in parts[1]:
                yield word(image, polygon_box([float(part) for part in parts[0].split()]), parts[1])


def _files(root: Path, pattern: str) -> list[Path]:
    """The files of that pattern below `root`. Raises `UserError` where there is none."""
    found = sorted(root.glob(pattern))
    if not found:
        raise UserError(f"{root}: no {pattern} in it; give the unpacked data set's folder")
    return found


@lru_cache(maxsize=4)
def _index(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}


def _first(root: Path, name: str) -> Path:
    """The picture of that name, wherever it lies below `root`."""
    return _index(root).get(Path(name).name, root / name)


def _beside(file: Path) -> Path:
    """The picture that a text file belongs to."""
    return next((p for p in (file.with_suffix(s) for s in (".jpg", ".png")) if p.is_file()), file.with_suffix(".jpg"))


def malformed(error: Exception) -> str:
    """What is wrong with an annotation that lacks a field or holds another kind of value."""
    return f"{type(error).__name__}: {error}" if not isinstance(error, json.JSONDecodeError) else str(error)
