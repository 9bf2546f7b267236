"""Public data sets whose words are already cut out: (label, picture) pairs as their annotations list them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.convert.records import each
from common.data.convert.release import find, json_lines, need, numbered_lines, read_json, same_name
from common.data.convert.samples import Source
from common.errors import UserError

MJ_LISTS = {"train": "annotation_train.txt", "val": "annotation_val.txt", "test": "annotation_test.txt"}


def art(root: Path) -> Iterator[Source]:
    """ArT, task 2: Latin, legible, not blank, without `#` (but for the sign `LocaL#3`)."""
    (file, *_) = need(root, "train_task2_labels.json")
    folder = next((p for p in (file.parent / "train_task2_images", root / "train_task2_images") if p.is_dir()), root)

    def one(record: tuple[str, dict]) -> Iterator[Source]:
        name, word = record
        label = word["transcription"]
        hidden = "#" in label and label != "LocaL#3"
        if word["language"].lower() == "latin" and not word["illegibility"] and label.strip() and not hidden:
            yield Source.file(folder, f"{name}.jpg", label.strip())

    records = (
        (f"{file}: {name}:", (name, word))
        for name, words in read_json(file).items()
        for word in (words if isinstance(words, list) else [words])
    )
    yield from each(records, one, Source.bad)


def mlt19(root: Path) -> Iterator[Source]:
    """MLT-2019, task 2: gt.txt with `picture,script,label`; scripts Latin and Symbols."""
    for file in need(root, "gt.txt"):
        for where, line in numbered_lines(file):
            parts = line.split(",", 2)
            if len(parts) != 3:
                yield Source.bad(f"{where} {line[:60]}", "no line of picture,script,label")
            elif parts[1] in ("Latin", "Symbols"):
                yield Source.file(file.parent, parts[0], parts[2], where)


def union14m(root: Path) -> Iterator[Source]:
    """Union14M-L and its benchmarks: every .jsonl below the folder, a line `{"filename": …, "text": …}`."""

    def one(row: dict) -> Iterator[Source]:
        yield Source.file(root, row["filename"], row["text"])

    for file in need(root, "*.jsonl"):
        yield from each(json_lines(file), one, Source.bad)


def iam(root: Path) -> Iterator[Source]:
    """IAM words: words.txt, `id ok grey x y w h tag word`; pictures words/a01/a01-000u/<id>.png; "ok" ones only."""
    (file, *_) = need(root, "words.txt")
    for where, line in numbered_lines(file):
        parts = line.split()
        if line.startswith("#") or len(parts) < 9 or parts[1] != "ok":
            continue
        form = parts[0].split("-")
        yield Source.file(root, f"words/{form[0]}/{'-'.join(form[:2])}/{parts[0]}.png", " ".join(parts[8:]), where)


def cvl(root: Path) -> Iterator[Source]:
    """CVL words: the label is the last part of `writer-text-line-word-Label.tif`."""
    for file in find(root, "*.tif"):
        parts = file.stem.split("-", 4)
        if len(parts) == 5:
            yield Source.file(root, str(file.relative_to(root)), parts[4])


def wordart(root: Path) -> Iterator[Source]:
    """WordArt: train_label.txt or test_label.txt, `picture label`, split once."""
    for file in need(root, "*label.txt"):
        for where, line in numbered_lines(file):
            parts = line.split(maxsplit=1)
            if len(parts) == 2:
                yield Source.file(file.parent, parts[0], parts[1], where)
            else:
                yield Source.bad(f"{where} {line[:60]}", "no line of a picture and a label")


def mjsynth(root: Path, split: str) -> Iterator[Source]:
    """MJSynth: lines `./2425/1/115_Lube_45484.jpg 45484`; the word is between the underscores of the file name."""
    (file, *_) = need(root, MJ_LISTS[split], shallowest=True)
    for where, line in numbered_lines(file):
        name = line.rsplit(maxsplit=1)[0] if re.search(r"\s\d+\s*$", line) else line.strip()
        parts = Path(name).stem.split("_")
        if len(parts) < 3:
            yield Source.bad(f"{where} {line[:80]}", "no word between underscores in the file name")
        else:
            yield Source.file(file.parent, name.removeprefix("./"), "_".join(parts[1:-1]), where)


def iiit5k(root: Path, split: str) -> Iterator[Source]:
    """IIIT 5K-Word: `traindata.mat`, `testdata.mat` (ImgName, GroundTruth) and the character boxes of
    `*CharBound.mat`.
    """
    (file, *_) = need(root, f"{split}data.mat")
    rows = _struct(file, f"{split}data")
    bounds = _character_boxes(root, split)
    for number, row in enumerate(rows, 1):
        where = f"{file}:{number}:"
        try:
            name, label = _text(row["ImgName"]), _text(row["GroundTruth"])
        except (ValueError, IndexError, TypeError) as error:
            yield Source.bad(where, f"no ImgName or GroundTruth ({error})")
            continue
        boxes = bounds.get(name.lower(), [])
        extras = {}
        if len(boxes) == len(label):
            marks = [[*box, character] for box, character in zip(boxes, label)]
            extras["boxes"] = json.dumps(marks, ensure_ascii=False, separators=(",", ":")).encode()
        yield Source.file(file.parent, same_name(file.parent, name), label, where, extras)


def _character_boxes(root: Path, split: str) -> dict[str, list[list[float]]]:
    """Lower-case picture name -> [x1, y1, x2, y2] of every character; empty where the file is not there."""
    files = find(root, f"{split}charbound.mat")
    if not files:
        return {}
    boxes = {}
    for row in _struct(files[0], f"{split}CharBound"):
        try:
            corners = np.asarray(row["charBB"], dtype=float).reshape(-1, 4)
            corners[:, 2:] += corners[:, :2]
            boxes[_text(row["ImgName"]).lower()] = corners.round(1).tolist()
        except (ValueError, IndexError, TypeError):
            continue  # a word without boxes is a word
    return boxes


def _struct(file: Path, name: str) -> np.ndarray:
    """The rows of a struct array of a .mat file. Raises `UserError` for another kind of file."""
    from scipy.io import loadmat

    try:
        content = loadmat(file)
    except Exception as error:  # scipy raises many types
        raise UserError(f"{file}: no MATLAB file ({error}); fetch it again") from None
    found = {key.lower(): value for key, value in content.items()}.get(name.lower())
    if found is None or found.dtype.names is None:
        raise UserError(f"{file}: no struct array {name} in it; fetch it again")
    return found.ravel()


def _text(value: object) -> str:
    """A MATLAB string inside any number of cells. Raises ValueError for anything else."""
    while isinstance(value, np.ndarray):
        if value.size != 1:
            raise ValueError(f"an array of shape {value.shape}")
        value = value.reshape(-1)[0]
    if not isinstance(value, (str, np.str_, int, float, np.number)):
        raise ValueError(f"a {type(value).__name__}")
    return str(value).strip()
