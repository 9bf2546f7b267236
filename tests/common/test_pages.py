"""Whole pictures: the words of lines, the command, the Python call, the API, and what is said without a detector."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import strlab
from common import cli
from common.errors import UserError
from common.infer import pages, pp_ocr
from common.infer.pictures import annotated
from common.infer.recognizer import Prediction, Recognizer
from tests.common import toy

TEXTS = ("Morning coffee house", "open daily from seven", "Fresh bread")
needs_detector = pytest.mark.skipif(not pp_ocr.installed(), reason="no detector is installed")


def line(text: str, size: int = 40) -> np.ndarray:
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right - left + 12, bottom - top + 8), (225, 220, 200))
    ImageDraw.Draw(image).text((6 - left, 4 - top), text, (30, 40, 60), font=font)
    return np.asarray(image)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = Image.new("RGB", (640, 330), (225, 220, 200))
    for number, text in enumerate(TEXTS):
        image.paste(Image.fromarray(line(text)), (30, 30 + 100 * number))
    path = tmp_path_factory.mktemp("page") / "page.png"
    image.save(path)
    return path


def brightness() -> Recognizer:
    return Recognizer(toy.BrightnessReader(toy.Brightness(), torch.device("cpu")), name="toy/Brightness")


@pytest.mark.parametrize("size", [22, 40])
@pytest.mark.parametrize("text", [*TEXTS, "S P A C E D", "word", "to  be"])
def test_a_line_is_cut_into_its_words(text: str, size: int) -> None:
    count = 1 if text == "S P A C E D" else len(text.split())
    found = pages.split(line(text, size))
    assert len(found) == count and all(0 <= start < stop for start, stop in found)


def test_a_restless_or_empty_line_stays_whole() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 200, 3), dtype=np.uint8)
    assert len(pages.split(noise)) == 1
    assert pages.split(np.full((30, 200, 3), 90, np.uint8)) == [(0, 200)]


def test_reading_order_is_by_rows() -> None:
    corners = lambda x, y: [[x, y], [x + 50, y], [x + 50, y + 20], [x, y + 20]]  # noqa: E731
    boxes = np.array([corners(200, 103), corners(10, 100), corners(10, 10), corners(120, 96)], np.float32)
    assert [tuple(box[0]) for box in pages.in_reading_order(boxes)] == [(10, 10), (10, 100), (120, 96), (200, 103)]


def test_words_of_a_turned_line_have_boxes_around_them() -> None:
    """A line at 20 degrees, given by its corners: each word's box holds the word's ink and its crop is level."""
    flat = line("north side", 40)
    height, width = flat.shape[:2]
    turn = np.deg2rad(20)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = (np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ matrix.T + (60, 40)).astype(np.float32)
    import cv2

    whole = cv2.getPerspectiveTransform(np.float32([[0, 0], [width, 0], [width, height], [0, height]]), corners)
    scene = cv2.warpPerspective(flat, whole, (400, 300), borderMode=cv2.BORDER_REPLICATE)
    boxes, crops = pages.Detector(lambda image: corners[None], "given").words(scene)
    assert len(boxes) == 2 and all(abs(crop.shape[0] - height) <= 1 for crop in crops)
    assert boxes[0][1][0] < boxes[1][0][0]  # the first ends before the second begins
    along = (boxes[1][1] - boxes[1][0]) / np.linalg.norm(boxes[1][1] - boxes[1][0])
    assert np.allclose(along, [np.cos(turn), np.sin(turn)], atol=0.02)


def test_upright_text_is_read_from_the_top_down() -> None:
    flat = line("north", 40)
    upright = np.ascontiguousarray(np.rot90(flat, -1))  # turned clockwise: the word begins at the top
    height, width = upright.shape[:2]
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    boxes, crops = pages.Detector(lambda image: corners[None], "given").words(upright)
    assert crops[0].shape[1] > crops[0].shape[0] and len(boxes) == 1
    assert boxes[0][0] == pytest.approx((width, 0), abs=8)  # the word's top left lies at the picture's top right


def test_long_strips_are_padded_and_boxes_stay_inside() -> None:
    seen = []

    def lines(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return np.float32([[[2, 2], [90, 2], [90, 18], [2, 18]], [[2, 60], [90, 60], [90, 90], [2, 90]]])

    found = pages.Detector(lines, "given").lines(np.zeros((20, 400, 3), np.uint8))
    assert seen == [(100, 400, 3)] and len(found) == 1 and found[0].max() <= 90


@needs_detector
def test_a_page_in_python(page: Path) -> None:
    words = brightness().read_page(page)
    assert len(words) == 9 and all(isinstance(word, strlab.Word) for word in words)
    assert words[0].box.shape == (4, 2) and words[0].text in toy.LETTERS and words[0].confidence > 0
    tops = [word.box[0][1] for word in words]
    assert tops[:3] == sorted(tops[:3], key=round) or max(tops[:3]) < min(tops[3:])


@needs_detector
def test_the_command(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("common.infer.read.open_from", lambda args, **how: brightness())
    (tmp_path / "empty.png").write_bytes(toy.crop("a", (120, 90)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert cli.main(["read", "--detect", str(page), "--draw", str(tmp_path / "out.png")]) == 0
    out, err = capsys.readouterr()
    lines = [row.split("\t") for row in out.splitlines()]
    assert len(lines) == 9 and all(len(row) == 4 and len(row[3].split(",")) == 8 for row in lines)
    assert "which is not part of strlab" in err
    drawn, before = (np.asarray(Image.open(path).convert("RGB")) for path in (tmp_path / "out.png", page))
    assert drawn.shape == before.shape and (drawn != before).any()
    pictures = [str(page), str(tmp_path / "empty.png"), str(tmp_path / "broken.png")]
    status = cli.main(["read", "--detect", "--json", *pictures, "--draw", str(tmp_path / "drawn")])
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert status == 1 and "no words were found" in err and "broken.png: skipped" in err
    assert len(first["words"]) == 9 and len(first["words"][0]["box"]) == 4 and second["words"] == []
    assert len(list((tmp_path / "drawn").rglob("*_words.png"))) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--draw", "x.png"], "--draw: it shows what --detect found"),
        (["--detect", "--sheet", "x.png"], "--attention and --sheet are for pictures of one word"),
    ],
)
def test_refused(page: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["read", str(page), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_a_detector(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in pp_ocr.PACKAGES else find(name))
    pages.detector.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'strlab\[detect\]'"):
        brightness().read_page(page)
    assert cli.main(["read", "--detect", str(page)]) == 2
    assert capsys.readouterr().err == "error: no text detector is installed; run `pip install 'strlab[detect]'`\n"


@pytest.mark.parametrize("module", list(pp_ocr.PACKAGES))
def test_both_packages(module: str, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two generations of the package differ in how they answer."""
    pytest.importorskip(module)
    monkeypatch.setattr(pp_ocr, "installed", lambda: module)
    pages.detector.cache_clear()
    finder = pages.detector()
    assert finder.name.startswith("DBNet of PP-OCR (rapidocr")
    assert len(finder.words(np.asarray(Image.open(page)))[0]) == 9
    pages.detector.cache_clear()


@needs_detector
def test_the_api(page: Path) -> None:
    pytest.importorskip("fastapi")
    from tests.common.test_serve import Limits, Running

    with Running(Limits()) as running:
        assert running.ask("GET", "/health")[1]["detector"] == pp_ocr.installed()
        status, answer, _ = running.ask("POST", "/read?detect=1", page.read_bytes(), Content_Type="image/png")
        (reading,) = answer["predictions"]
        assert status == 200 and len(reading["words"]) == 9 and len(reading["words"][0]["box"]) == 4
        assert reading["text"].split() == [word["text"] for word in reading["words"]]
        status, answer, _ = running.ask("POST", "/read?detect=1", b"no picture", Content_Type="image/png")
        assert status == 422 and answer["error"]


def test_labels_cover_neither_words_nor_each_other() -> None:
    boxes = [np.float32([[x, y], [x + 90, y], [x + 90, y + 30], [x, y + 30]]) for x, y in ((5, 2), (5, 60), (120, 2))]
    labels = annotated(np.zeros((140, 260, 3), np.uint8), [(box, "word") for box in boxes])
    inside = np.zeros((140, 260), bool)
    for left, top in ((5, 2), (5, 60), (120, 2)):
        inside[top + 3 : top + 27, left + 3 : left + 87] = True
    assert not labels[inside].any()  # every word can still be seen, also those at the upper edge
    white = (labels == 255).all(axis=2)
    assert all(white[:, left : left + 90].any() for left in (5, 120))


def test_boxes_without_text_are_no_words() -> None:
    found = np.float32([[[2, 2], [90, 2], [90, 18], [2, 18]]])
    finder = pages.Detector(lambda image: found, "given")
    assert brightness().read_page(np.zeros((60, 100, 3), np.uint8), finder)
    recognizer = brightness()
    recognizer.reader.read = lambda images, attention=False: [Prediction("", 0.0) for _ in images]
    assert recognizer.read_page(np.zeros((60, 100, 3), np.uint8), finder) == []
