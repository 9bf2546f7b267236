"""Whole pictures with words: every form becomes the same scene file, and doctor says what is wrong with scenes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from common import cli
from common.data.convert.public import convert_scenes
from common.data.convert.scene_files import FORMS, write_scene_file
from common.data.examine_scenes import examine_scenes, find_scenes
from common.data.sets import find_set
from common.errors import UserError
from common.infer import annotate
from common.infer.recognizer import Prediction

SIGN = [[40, 60], [140, 62], [139, 90], [39, 88]]
FLAT = [value for point in SIGN for value in point]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs below `img`."""
    folder = tmp_path / "release" / "img"
    folder.mkdir(parents=True)
    for name in ("coffee", "rocket"):
        cv2.imwrite(str(folder / f"{name}.jpg"), getattr(skimage.data, name)()[:200, :300, ::-1])
    return folder.parent


def annotate_labelme(root: Path) -> None:
    shapes = [{"label": "OPEN", "points": SIGN, "shape_type": "polygon"}, {"label": "###", "points": [[9, 9], [1, 1]]}]
    broken = {"label": "lost", "points": [[1, 1]]}
    (root / "img/coffee.json").write_text(json.dumps({"imagePath": "coffee.jpg", "shapes": [*shapes, broken]}))


def annotate_paddleocr(root: Path) -> None:
    words = [{"transcription": "OPEN", "points": SIGN}, {"transcription": "###", "points": SIGN, "difficult": True}]
    (root / "Label.txt").write_text(f"img/coffee.jpg\t{json.dumps(words)}\nimg/coffee.jpg\n", "utf-8")


def annotate_icdar(root: Path) -> None:
    (root / "img/gt_coffee.txt").write_text(
        f"\ufeff{','.join(map(str, FLAT))},OPEN\n1,1,9,1,9,9,1,9,###\nno numbers\n", "utf-8"
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_scene_file(form: str, photos: Path, tmp_path: Path, capsys) -> None:
    globals()[f"annotate_{form}"](photos)
    out = tmp_path / "scenes.json"
    assert cli.main(["data", "convert", form, str(photos), str(out)]) == 0
    told = capsys.readouterr().out
    assert "1 pictures, 2 words, 1 of them marked illegible" in told and "1 records skipped" in told, told
    content = json.loads(out.read_text())
    (item,) = content["data_list"]
    assert (out.parent / content["data_root"] / item["img_name"]).is_file()
    first, second = item["annotations"]
    assert first == {"polygon": SIGN, "text": "OPEN"} and second["valid"] is False
    assert cli.main(["data", "convert", form, str(photos), str(out)]) == 2  # it exists
    assert cli.main(["doctor", str(out)]) == 0
    # on every road what is marked illegible is not used
    assert cli.main(["data", "convert", "anyword", str(out), str(tmp_path / "lmdb")]) == 0
    assert "1 pictures and 1 words" in capsys.readouterr().out


def test_icdar_boxes_of_four_numbers(photos: Path) -> None:
    (photos / "img/gt_rocket.txt").write_text('38, 43, 920, 215, "Tiredness"\n38 43 92 21 "A b"\n')
    words = [word for _, _, word in FORMS["icdar"][0](photos, [])]
    assert words[0] == {"polygon": [[38, 43], [920, 43], [920, 215], [38, 215]], "text": "Tiredness"}
    assert words[1]["text"] == "A b"


def test_public_sets_of_whole_pictures(photos: Path, tmp_path: Path) -> None:
    bbox = [39, 60, 101, 30]
    note = {"image_id": "1", "bbox": bbox, "points": FLAT, "utf8_string": "OPEN"}
    textocr = {"imgs": {"1": {"file_name": "train/coffee.jpg"}}, "anns": {"a": note, "b": note | {"utf8_string": "."}}}
    (photos / "TextOCR_0.1_val.json").write_text(json.dumps(textocr))
    about = {"class": "machine printed", "language": "english", "legibility": "legible", "mask": FLAT}
    coco = textocr | {"imgs": {"1": {"file_name": "coffee.jpg"}}, "anns": {"a": note | about}}
    (photos / "cocotext.v2.json").write_text(json.dumps(coco))
    word = {"transcription": "OPEN", "points": SIGN, "language": "Latin", "illegibility": False}
    (photos / "img/coffee.jpg").rename(photos / "img/gt_0.jpg")
    (photos / "train_labels.json").write_text(json.dumps({"gt_0": [word, word | {"illegibility": True}], "gt_9": []}))
    convert_scenes(find_set("art"), photos, tmp_path / "art.json")
    first, second = json.loads((tmp_path / "art.json").read_text())["data_list"][0]["annotations"]
    assert first == {"polygon": SIGN, "text": "OPEN", "language": "Latin"} and second["valid"] is False
    (photos / "img/gt_0.jpg").rename(photos / "img/coffee.jpg")
    for name in ("textocr", "coco"):
        out = tmp_path / f"{name}.json"
        assert cli.main(["data", "convert", name, str(photos), str(out), "--scenes"]) == 0
        (item,) = json.loads(out.read_text())["data_list"]
        assert item["annotations"] == [{"polygon": SIGN, "text": "OPEN"}]
    (photos / "list.jsonl").write_text(json.dumps({"filename": "img/coffee.jpg", "text": "OPEN"}))
    with pytest.raises(UserError, match="no whole pictures"):
        convert_scenes(find_set("union14m"), photos, tmp_path / "none.json")


def test_scene_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ending in \.json"):
        write_scene_file(tmp_path / "scenes", [], [])
    with pytest.raises(UserError, match="nothing can be used"):
        write_scene_file(tmp_path / "scenes.json", [(tmp_path, "none.jpg", {})], [])
    assert not (tmp_path / "scenes.json").exists()


class Finder:
    """Finds two words in pictures that are not black."""

    def words(self, picture: np.ndarray) -> tuple[np.ndarray, list]:
        return (np.array([SIGN, SIGN], np.float32), [picture, picture]) if picture.any() else (np.zeros((0, 4, 2)), [])


def test_annotate_finds_the_words_of_pictures(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(annotate.pages, "detector", Finder)
    readings = [Prediction("OPEN", 0.97), Prediction("0PEM", 0.4)]
    monkeypatch.setattr(annotate, "open_reader", lambda name: lambda crops: readings)
    cv2.imwrite(str(photos / "img/black.png"), np.zeros((40, 40, 3), np.uint8))
    (photos / "img/broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "scenes.json"
    assert cli.main(["data", "annotate", str(photos), str(out)]) == 0
    assert "2 pictures, 4 words, 2 of them marked illegible" in capsys.readouterr().out
    sure, unsure = json.loads(out.read_text())["data_list"][0]["annotations"]
    assert sure == {"polygon": SIGN, "text": "OPEN", "score": 0.97} and unsure["valid"] is False
    assert "no text was found" in (tmp_path / "scenes.error_image_log.txt").read_text()
    assert cli.main(["data", "annotate", str(tmp_path / "none"), str(out)]) == 2


def test_doctor_examines_scenes(photos: Path, tmp_path: Path, capsys) -> None:
    def word(*box: float, text: object = "OPEN") -> dict:
        left, top, right, bottom = box
        return {"polygon": [[left, top], [right, top], [right, bottom], [left, bottom]], "text": text}

    outside = [word(250, 10, 400, 40), word(500, 500, 600, 540)]
    small = [word(10, 10, 10, 40), word(10, 10, 60, 14)]
    texts = [word(10, 10, 60, 40, text=""), word(10, 10, 60, 40, text="x" * 30)]
    bad = [*outside, *small, *texts, {"text": "OPEN"}, "no object"]
    items = [{"img_name": "coffee.jpg", "annotations": [word(10, 10, 60, 40), *bad]}, {"img_name": "none.jpg"}]
    scenes = photos / "scenes.json"
    scenes.write_text(json.dumps({"data_root": "img", "data_list": items}))
    assert find_scenes(photos) == [scenes]
    found = examine_scenes(scenes)
    assert {kind: len(places) for kind, places in found.findings.items()} == {
        "polygon partly outside the picture": 1, "polygon outside the picture": 1, "polygon without extent": 1,
        "region under 8 pixels": 1, "no text": 1, "text over 25 characters": 1, "no polygon": 2,
        "unreadable picture": 1,
    }  # fmt: skip
    assert (found.pictures, found.words, found.faults) == (2, 9, 7)
    assert cli.main(["doctor", str(scenes)]) == 1
    assert "scenes: 2 pictures, 9 words" in capsys.readouterr().out
    sound = {"data_root": "img", "data_list": [{"img_name": "coffee.jpg", "annotations": [word(10, 10, 60, 40)]}]}
    scenes.write_text(json.dumps(sound))
    assert cli.main(["data", "convert", "anyword", str(scenes), str(tmp_path / "lmdb")]) == 0
    assert cli.main(["doctor", str(tmp_path / "lmdb")]) == 0
    assert "scenes: 1 pictures, 1 words" in capsys.readouterr().out
