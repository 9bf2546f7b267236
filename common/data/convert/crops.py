"""Public data sets whose words are already cut out: (label, picture) pairs as their annotations list them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from common.data.convert.samples import Source
from common.errors import UserError


def read_text(path: Path) -> str:
    """A text file, without its byte order mark. Raises `UserError` naming a file that is missing or not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the unpacked data set's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None


def read_json(path: Path) -> dict | list:
    """A JSON file. Raises `UserError` naming a file that is missing or no JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); fetch it again") from None


def art(root: Path) -> Iterator[Source]:
    """ArT, task 2: Latin, legible, not blank, without `#` (but for the sign `LocaL#3`)."""
    for name, words in read_json(root / "train_task2_labels.json").items():
        for word in words:
            label = word["transcription"]
            hidden = "#" in label and label != "LocaL#3"
            if word["language"].lower() == "latin" and not word["illegibility"] and label.strip() and not hidden:
                yield Source.file(root / "train_task2_images" / f"{name}.jpg", label.strip())


def mlt19(root: Path) -> Iterator[Source]:
    """MLT-2019, task 2: gt.txt with `picture,script,label`; scripts Latin and Symbols."""
    for line in read_text(root / "gt.txt").splitlines():
        parts = line.split(",", 2)
        if len(parts) == 3 and parts[1] in ("Latin", "Symbols"):
            yield Source.file(root / parts[0], parts[2])


def union14m(root: Path) -> Iterator[Source]:
    """Union14M-L and its benchmarks: every .jsonl below the folder, a line `{"filename": …, "text": …}`."""
    files = sorted(root.rglob("*.jsonl"))
    if not files:
        raise UserError(f"{root}: no .jsonl below it; give the unpacked data set's folder")
    for file in files:
        for line in read_text(file).splitlines():
            if line.strip():
                row = json.loads(line)
                yield Source.file(root / row["filename"], row["text"])


def iam(root: Path) -> Iterator[Source]:
    """IAM words: words.txt, `id ok grey x y w h tag word`; pictures words/a01/a01-000u/<id>.png; "ok" ones only."""
    for line in read_text(root / "words.txt").splitlines():
        parts = line.split()
        if line.startswith("#") or len(parts) < 9 or parts[1] != "ok":
            continue
        form = parts[0].split("-")
        folder = root / "words" / form[0] / "-".join(form[:2])
        yield Source.file(folder / f"{parts[0]}.png", " ".join(parts[8:]))


def cvl(root: Path) -> Iterator[Source]:
    """CVL words: the label is the last part of `writer-text-line-word-Label.tif`."""
    for file in sorted(root.rglob("*.tif")):
        parts = file.stem.split("-", 4)
        if len(parts) == 5:
            yield Source.file(file, parts[4])


def wordart(root: Path) -> Iterator[Source]:
    """WordArt: train_label.txt or test_label.txt, `picture label`, split once."""
    files = sorted(root.glob("*label.txt"))
    if not files:
        raise UserError(f"{root}: no *label.txt in it; give the unpacked data set's folder")
    for file in files:
        for line in read_text(file).splitlines():
            parts = line.split(maxsplit=1)
            if len(parts) == 2:
                yield Source.file(root / parts[0], parts[1])
