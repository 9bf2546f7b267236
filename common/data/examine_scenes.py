"""What is wrong with scenes (whole pictures with annotated words): AnyWord JSON files and scene LMDBs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.data.convert.anyword import read_scene_file
from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import reading
from common.errors import UserError
from common.files import files_below, read_below

LONGEST, SMALLEST = 25, 8
"""Characters that TextSSR draws at most; pixels below which a region's shorter side holds no letters."""
FAULTS = (
    "unreadable picture", "no list of annotations", "no polygon", "no text", "polygon outside the picture",
    "polygon partly outside the picture", "polygon without extent",
)  # fmt: skip
"""Findings that make a word unusable, or cut it."""


@dataclass
class SceneFindings:
    """Counts of pictures, words and words marked illegible; where each finding was made, by its name."""

    path: Path
    pictures: int = 0
    words: int = 0
    illegible: int = 0
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    sides: list[float] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many of the findings are faults."""
        return sum(len(self.findings.get(kind, ())) for kind in FAULTS)

    def describe(self, examples: int = 5) -> list[str]:
        """The lines that `strlab doctor` prints."""
        marked = f", {self.illegible} marked illegible" if self.illegible else ""
        size = f", shorter side of the median word {np.median(self.sides):.0f} pixels" if self.sides else ""
        lines = [f"{self.path}: scenes: {self.pictures} pictures, {self.words} words{marked}{size}"]
        for kind, places in self.findings.items():
            more = f" and {len(places) - examples} more" if len(places) > examples else ""
            lines.append(f"  {kind}: {len(places)} ({', '.join(places[:examples])}{more})")
        return lines


def examine_scenes(path: Path, decode: bool = True) -> SceneFindings:
    """Look over an AnyWord JSON file or a scene LMDB. Raises `UserError` for anything else.

    Reported are pictures that cannot be read, words without polygon or text, polygons that leave their picture or have
    no extent, and, as remarks, texts over 25 characters and regions under 8 pixels. `decode` False looks at sizes only
    as far as polygons tell.
    """
    found = SceneFindings(path)
    for name, data, words in _of_file(path) if path.is_file() else _of_lmdb(path):
        found.pictures += 1
        size = None
        if decode:
            try:
                size = decode_rgb(data() if callable(data) else data).shape[1::-1]
            except (BadImage, OSError, ValueError) as error:
                found.findings["unreadable picture"].append(f"{name} ({getattr(error, 'strerror', None) or error})")
        if not isinstance(words, list):
            found.findings["no list of annotations"].append(name)
            continue
        for number, word in enumerate(words, 1):
            _examine_word(found, f"{name} word {number}", word if isinstance(word, dict) else {}, size)
    return found


def _examine_word(found: SceneFindings, where: str, word: dict, size: tuple[int, int] | None) -> None:
    found.words += 1
    found.illegible += word.get("valid") is False
    text = word.get("text")
    try:
        points = np.asarray(word.get("polygon"), dtype=np.float64)
    except (ValueError, TypeError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
        found.findings["no polygon"].append(where)
        return
    if not isinstance(text, str) or not text.strip():
        found.findings["no text"].append(where)
    elif len(text) > LONGEST:
        found.findings[f"text over {LONGEST} characters"].append(where)
    low, high = points.min(0), points.max(0)
    side = float((high - low).min())
    found.sides.append(side)
    if side < 1:
        found.findings["polygon without extent"].append(where)
    elif side < SMALLEST:
        found.findings[f"region under {SMALLEST} pixels"].append(where)
    if size is not None and ((low < 0).any() or (high > size).any()):
        outside = (high <= 0).any() or (low >= size).any()
        kind = "polygon outside the picture" if outside else "polygon partly outside the picture"
        found.findings[kind].append(f"{where} ({size[0]} x {size[1]})")


def _of_file(path: Path) -> Iterator[tuple[str, object, object]]:
    root, items = read_scene_file(path)
    for item in items:
        name = str(item.get("img_name"))
        yield name, lambda name=name: read_below(root, name), item.get("annotations") or []


def is_scene_lmdb(path: Path) -> bool:
    """Whether an LMDB folder holds annotations of scenes; False also where it cannot be opened."""
    try:
        with reading(path) as transaction, transaction.cursor() as cursor:
            return cursor.set_range(b"annotations-") and cursor.key().startswith(b"annotations-")
    except UserError:
        return False


def is_scene_file(path: Path) -> bool:
    """Whether this is a JSON file with data_root and data_list."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"data_root", "data_list"} <= set(content)


def _of_lmdb(path: Path) -> Iterator[tuple[str, object, object]]:
    with reading(path) as transaction, transaction.cursor() as cursor:
        for key, raw in cursor.iternext() if cursor.set_range(b"annotations-") else ():
            if not key.startswith(b"annotations-"):
                break
            name = key.decode(errors="replace").replace("annotations-", "image-")
            try:
                words = json.loads(raw)
            except ValueError:
                words = None
            yield name, transaction.get(b"image-" + key.removeprefix(b"annotations-")) or b"", words


def find_scenes(place: Path) -> list[Path]:
    """Scene files and scene LMDBs at or below a place, sorted; a file of another kind gives none."""
    if place.is_file():
        return [place] if is_scene_file(place) else []
    files = files_below(place, lambda name: name == "data.mdb" or name.endswith(".json"))
    scenes = [path for path in files if is_scene_file(path)]
    return sorted(scenes + [path.parent for path in files if path.name == "data.mdb" and is_scene_lmdb(path.parent)])
