"""Small annotations of every public format -> LMDB; merging and the unseen filter."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from common import cli
from common.data.convert.public import KINDS as ALL_KINDS
from common.data.convert.public import convert
from common.data.lmdb import WordLmdb
from common.errors import UserError
from tests.common.lmdbs import encoded, noise, put, write_words

BOX, QUAD = [2, 1, 12, 8], [2, 1, 14, 1, 14, 9, 2, 9]
PAIRS = [[2, 1], [14, 1], [14, 9], [2, 9]]


KINDS = [kind for kind in ALL_KINDS if kind != "synthtext"]  # see test_convert_synthtext


def note(label: str, **more) -> dict:
    return {"image_id": "7", "bbox": BOX, "utf8_string": label, **more}


def coco_note(label: str, **more) -> dict:
    return note(label, **{"class": "machine printed", "language": "english", "legibility": "legible", **more})


def latin(label: str, **more) -> list[dict]:
    return [{"transcription": label, "language": "Latin", "illegibility": False, **more}]


FILES: dict[str, dict[str, object]] = {
    "textocr": {"TextOCR_0.1_train.json": {"imgs": {"7": {"file_name": "a.png"}},
                                           "anns": {"1": note("one"), "2": note(".")}}},
    "openvino": {"text_spotting_openimages_v5_train_1.json": {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "bbox": BOX, "attributes":
                         {"transcription": label, "legible": label == "one", "language": "english"}}
                        for label in ("one", "two")]}},
    "coco": {"cocotext.v2.json": {"imgs": {"7": {"file_name": "a.png"}},
                                  "anns": {"1": coco_note("one"), "2": coco_note("*x"),
                                           "3": coco_note("x", legibility="illegible")}}},
    "art": {"train_task2_labels.json": {"gt_1": latin("one"), "gt_2": latin("###"),
                                        "gt_3": latin("x", language="Chinese")}},
    "lsvt": {"train_full_labels.json": {"a": [
        {"transcription": "one", "points": PAIRS, "illegibility": False},
        {"transcription": "\u4e2d", "points": PAIRS, "illegibility": False}]}},
    "mlt19": {"gt.txt": "a.png,Latin,one\na.png,Arabic,x\n"},
    "rctw17": {"a.txt": ",".join(map(str, QUAD)) + ',0,"one"\n' + ",".join(map(str, QUAD)) + ',1,"x"\n'},
    "rects": {"gt/a.json": {"lines": [{"transcription": "one", "points": QUAD, "ignore": 0},
                                      {"transcription": "###", "points": QUAD, "ignore": 1}]}},
    "uber": {"truth_a.txt": " ".join(map(str, QUAD)) + "\tone\tBN\n" + " ".join(map(str, QUAD)) + "\t***\tBN\n"},
    "union14m": {"train.jsonl": json.dumps({"filename": "a.png", "text": "one"}) + "\n"},
    "iam": {"words.txt": "# words\na01-000u-00-00 ok 154 1 2 3 4 AT one\na01-000u-00-01 err 154 1 2 3 4 AT x\n"},
    "cvl": {},
    "wordart": {"train_label.txt": "a.png one\n"},
}  # fmt: skip
PICTURES = {
    "art": ["train_task2_images/gt_1.jpg", "train_task2_images/gt_2.jpg"], "lsvt": ["train/a.jpg"],
    "rctw17": ["a.jpg"], "rects": ["img/a.jpg"], "uber": ["a.jpg"],
    "iam": ["words/a01/a01-000u/a01-000u-00-00.png"], "cvl": ["words/0001-1-0-0-one.tif"],
}  # fmt: skip


def unpack(kind: str, root: Path) -> Path:
    for name, content in FILES[kind].items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    for name in PICTURES.get(kind, ["a.png"]):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        form = {".jpg": "JPEG", ".tif": "TIFF"}.get(file.suffix, "PNG")
        file.write_bytes(encoded(noise(0), form))
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_public_set(kind: str, tmp_path: Path) -> None:
    convert(kind, unpack(kind, tmp_path / "in"), tmp_path / "out")
    words = WordLmdb(tmp_path / "out")
    assert [words.label(i) for i in range(len(words))] == ["one"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cvl"])
def test_other_folder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        convert(kind, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merge_and_unseen(tmp_path: Path) -> None:
    write_words(tmp_path / "a", ["One", "two"])
    write_words(tmp_path / "b", ["one", "three"])
    assert cli.main(["data", "convert", "merge", f"{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/both"]) == 0
    assert len(WordLmdb(tmp_path / "both")) == 4
    words = ["data", "convert", "unseen", f"{tmp_path}/b", f"{tmp_path}/new", "--training", f"{tmp_path}/a"]
    assert cli.main(words) == 0
    found = WordLmdb(tmp_path / "new")
    assert [found.label(i) for i in range(len(found))] == ["three"]


def test_bad_samples_of_lmdbs_are_listed(tmp_path: Path) -> None:
    path = write_words(tmp_path / "in", list("abcdef"), broken=[4])
    put(path, (b"label-000000002", None), (b"label-000000003", b"\xff"), (b"image-000000004", None))
    write_words(tmp_path / "training", ["z"])
    for kind, more in (("merge", []), ("unseen", ["--training", f"{tmp_path}/training"])):
        out = tmp_path / kind
        assert cli.main(["data", "convert", kind, f"{path}", f"{out}", *more]) == 0
        assert [WordLmdb(out).label(i) for i in range(len(WordLmdb(out)))] == ["a", "f"]
        told = (out / "error_image_log.txt").read_text("utf-8")
        assert [line.split("\t")[0] for line in told.splitlines()] == ["2", "3", "4", "5"]


def test_a_scene_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    """A header of far too many pixels: Pillow raises neither OSError nor ValueError."""
    source, header = unpack("uber", tmp_path / "in"), b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 8) + b"IDAT"
    (source / "b.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    (source / "truth_b.txt").write_text((source / "truth_a.txt").read_text())
    convert("uber", source, tmp_path / "out")
    assert "b.jpg" in (tmp_path / "out" / "error_image_log.txt").read_text() and len(WordLmdb(tmp_path / "out")) == 1
