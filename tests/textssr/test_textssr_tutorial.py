"""The tutorial from photographs to painted words: its commands, in order, at tiny size."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from common import cli
from common.data.lmdb import WordLmdb
from common.infer import annotate
from common.infer.recognizer import Prediction
from tests.conftest import ROOT
from tests.textssr.textssr_runs import run

PAGE = ROOT / "docs" / "tutorials" / "painted-words.md"
NAMES = {"street": "coffee", "rocket": "rocket", "portrait": "astronaut"}
LINES = [
    ([[20, 30], [120, 31], [120, 60], [20, 59]], "Open", 0.99),
    ([[30, 90], [90, 90], [90, 120], [30, 120]], "at", 0.9),
]
UNSURE = ([[150, 30], [190, 30], [190, 50], [150, 50]], "O", 0.2)


class Finder:
    """Stands for the detector and the reader: two words in every photograph, and one that they are not sure of."""

    def words(self, picture: np.ndarray) -> tuple[np.ndarray, list]:
        return np.array([polygon for polygon, _, _ in (*LINES, UNSURE)], np.float32), [picture] * 3

    def read(self, crops: list) -> list[Prediction]:
        return [Prediction(text, confidence) for _, text, confidence in (*LINES, UNSURE)]


def commands() -> list[list[str]]:
    """The words of every command of the page's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def call(words: list[str]) -> int:
    """A command of the page in this process."""
    if words[0] == "strlab":
        return cli.main(words[1:])
    module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
    return run(module, *words[2:])


def annotations_of_other_forms(photos: Path) -> None:
    """The first photograph's words in the other forms that the page names."""
    words = [{"transcription": text, "points": polygon} for polygon, text, _ in LINES]
    (photos / "Label.txt").write_text(f"street.png\t{json.dumps(words)}\n")
    shapes = [{"label": text, "points": polygon} for polygon, text, _ in LINES]
    (photos / "street.json").write_text(json.dumps({"imagePath": "street.png", "shapes": shapes}))
    rows = [f"{','.join(str(value) for point in polygon for value in point)},{text}\n" for polygon, text, _ in LINES]
    (photos / "gt_street.txt").write_text("".join(rows))
    textocr = photos.parent / "TextOCR"
    textocr.mkdir()
    (textocr / "street.png").write_bytes((photos / "street.png").read_bytes())
    note = {"image_id": "1", "bbox": [20, 30, 100, 30], "utf8_string": "Open"}
    content = {"imgs": {"1": {"file_name": "street.png"}}, "anns": {"a": note}}
    (textocr / "TextOCR_0.1_val.json").write_text(json.dumps(content))


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotate.pages, "detector", Finder)
    monkeypatch.setattr(annotate, "open_reader", lambda name: Finder().read)
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, source in NAMES.items():
        cv2.imwrite(str(photos / f"{name}.png"), getattr(skimage.data, source)()[:160, :240, ::-1])
    for words in commands():
        assert call(words) == 0, (words, capfd.readouterr().err[-2000:])
        if words[:3] == ["strlab", "data", "annotate"]:
            annotations_of_other_forms(photos)
    for name in ("own", "labelme", "icdar"):
        (item,) = json.loads((tmp_path / f"{name}.json").read_text())["data_list"]
        assert [word["text"] for word in item["annotations"]] == ["Open", "at"]
    made = WordLmdb(tmp_path / "made/words")
    labels = [made.label(number) for number in range(len(made))]
    made.close()
    assert len(labels) == 3 * (3 + 1) and all(sorted(label.lower()) in (list("enop"), list("at")) for label in labels)
    for place in ("painted.both.png", "made/contact_sheet.png", "model/tiny_step1/samples/00000002.png"):
        assert cv2.imread(str(tmp_path / place)) is not None, place
    assert list((tmp_path / "readers").rglob("best_accuracy.pth"))
