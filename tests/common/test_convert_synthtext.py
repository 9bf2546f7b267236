"""`strlab data convert synthtext`: word crops with character boxes from SynthText's form."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common import cli
from common.data.convert.synthtext import read_table, relative
from common.data.lmdb import WordLmdb
from common.errors import UserError
from projects.mgpstr.box_masks import check_boxes, parse_boxes
from tests.common.lmdbs import encoded, noise


def quad(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """[2, 4] as in the table."""
    return [[left, right, right, left], [top, top, bottom, bottom]]


def cells(*items: object) -> np.ndarray:
    cell = np.empty((1, len(items)), dtype=object)
    cell[0] = [*items]
    return cell


def write_table(root: Path, **changed: np.ndarray) -> Path:
    """Picture 1: "ab c" and "d" on two lines; 2: one word, whose box leaves the picture; 3: a box too few."""
    words = np.stack([quad(2, 1, 14, 9), quad(16, 1, 22, 9), quad(30.5, 4, 38, 15)], -1)
    boxes = np.stack([quad(2, 1, 7.5, 9), quad(8, 2, 14, 9), quad(16, 1, 22, 9), quad(30.5, 4, 38, 15)], -1)
    table = {
        "imnames": cells("1/a.png", "1/a.png", "1/a.png"),
        "wordBB": cells(words, np.array(quad(-3, 2, 10, 20)), np.array(quad(0, 0, 9, 9))),
        "charBB": cells(boxes, np.array(quad(-3, 2, 10, 20)), np.array(quad(0, 0, 9, 9))),
        "txt": cells(np.array(["ab c  ", "d\n"]), np.array(["e"]), np.array(["two"])),
    } | changed
    (root / "1").mkdir(parents=True)
    (root / "1" / "a.png").write_bytes(encoded(noise(0)))
    savemat(root / "gt.mat", table)
    return root


def test_words_and_boxes(tmp_path: Path, capsys) -> None:
    source = write_table(tmp_path / "in")
    assert cli.main(["data", "convert", "synthtext", str(source), str(tmp_path / "out")]) in (0, None)
    assert "1 of 5 samples skipped" in capsys.readouterr().out
    words = WordLmdb(tmp_path / "out")
    assert [words.label(i) for i in range(len(words))] == ["ab", "c", "d", "e"]
    assert json.loads(words.value("boxes", 0)) == [[0, 0, 5.5, 8, "a"], [6, 1, 12, 8, "b"]]
    assert json.loads(words.value("boxes", 2)) == [[0.5, 0, 8, 11, "d"]]
    assert json.loads(words.value("boxes", 3)) == [[0, 0, 10, 14, "e"]]
    picture = np.array(Image.open(io.BytesIO(words.image_bytes(0))))
    assert np.array_equal(picture, noise(0)[1:9, 2:14])
    for index in range(len(words)):
        width, height = Image.open(io.BytesIO(words.image_bytes(index))).size
        assert not check_boxes(parse_boxes(words.value("boxes", index), "x"), width, height, tolerance=0)
    told = (tmp_path / "out" / "error_image_log.txt").read_text()
    assert "1 word and 1 character boxes for ['two']" in told


def test_characters_outside_the_crop_have_no_box() -> None:
    boxes = np.array([[2.0, 1, 8, 9], [16, 1, 22, 9]])
    assert json.loads(relative(boxes, np.array([2.0, 1, 14, 9]), "ab")) == [[0, 0, 6, 8, "a"]]


@pytest.mark.parametrize(
    ("content", "told"), [(b"x" * 200, "no MATLAB table"), (b"", "no MATLAB table"), (None, "cannot be read")]
)
def test_other_files(content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "gt.mat").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_table(tmp_path / "gt.mat")


@pytest.mark.parametrize(("table", "told"), [({"a": 1}, "has no field"), ({"txt": cells("a")}, "must be cells")])
def test_other_tables(table: dict, told: str, tmp_path: Path) -> None:
    whole = {name: cells("a", "b") for name in ("imnames", "wordBB", "charBB", "txt")} if "txt" in table else {}
    savemat(tmp_path / "gt.mat", whole | table)
    with pytest.raises(UserError, match=told):
        read_table(tmp_path / "gt.mat")
