"""Pictures, lists and LMDBs as people have them: nothing is lost, hidden or opened that should not be."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.cli import main
from common.data.convert.gt import AUTO, create_lmdb
from common.data.decode import BadImage, decode_rgb, open_picture
from common.data.lists import COMMA, read_listing
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.pictures import decode_shown, one_colour
from common.data.words import WordDataset
from common.errors import UserError
from common.files import read_below
from tests.common.lmdbs import encoded, noise, put, write_words

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["Hello", "café", "a,b", '"q"']


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def word() -> np.ndarray:
    """Coverage of a bar on nothing: uint8 [12, 40] of 0 and 255."""
    ink = np.zeros((12, 40), np.uint8)
    ink[4:8, 5:35] = 255
    return ink


def hidden_words() -> dict[str, bytes]:
    ink = word()
    flat = Image.new("RGBA", (40, 12), (0, 0, 0, 0))
    white = Image.new("RGBA", (40, 12), (255, 255, 255, 0))
    for picture in (flat, white):
        picture.putalpha(Image.fromarray(ink))
    palette = Image.fromarray((ink > 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    grey_alpha = Image.merge("LA", [Image.new("L", (40, 12)), Image.fromarray(ink)])
    return {
        "black on nothing": saved(flat),
        "white on nothing": saved(white),
        "webp": saved(flat, "WEBP", lossless=True),
        "palette": saved(palette, transparency=0),
        "grey with alpha": saved(grey_alpha),
        "16 bits": saved(Image.fromarray(300 + (ink > 0).astype(np.uint16) * 400)),
        "floats": saved(Image.fromarray((ink / 255).astype(np.float32)), "TIFF"),
        "integers": saved(Image.fromarray(70_000 + (ink > 0).astype(np.int32) * 1000), "TIFF"),
    }


@pytest.mark.parametrize("name", hidden_words())
def test_readers_see_what_a_viewer_shows(name: str) -> None:
    data = hidden_words()[name]
    assert one_colour(decode_rgb(data)), "as published, the word is invisible"
    grey = decode_shown(data)[..., 0].astype(int)
    inside, outside = grey[word() > 0], grey[word() == 0]
    assert abs(inside.mean() - outside.mean()) > 200


def test_ordinary_pictures_are_shown_as_they_are() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        data = encoded(noise(1), kind)
        assert np.array_equal(decode_shown(data), decode_rgb(data))
    opaque = Image.fromarray(noise(2)).convert("RGBA")
    assert np.array_equal(decode_shown(saved(opaque)), noise(2))


def test_one_function_opens_pictures() -> None:
    """Pillow's and OpenCV's openers read formats that run programs, pipes and devices; `open_picture` does not."""
    own_bytes = {"common/augment/camera.py", "common/augment/frost.py", "common/bench/units.py",
                 "common/data/synth/backgrounds.py", "common/data/decode.py"}  # fmt: skip
    opener = re.compile(r"\bImage\.open\(|cv2\.im(read|decode)\(|\bimageio\b")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("common", "projects")
        for path in (ROOT / folder).rglob("*.py")
        if opener.search(path.read_text("utf-8"))
    }
    assert found <= own_bytes, f"use common.data.decode.open_picture in {sorted(found - own_bytes)}"


def test_programs_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("eps.png", "pipe.png", "zero.png", "gone.png"):
        with pytest.raises(BadImage):
            open_picture(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        read_below(tmp_path, "pipe.png")
    for name in ("../x.png", "/etc/hostname", "zero.png"):
        with pytest.raises(OSError, match="leads out of"):
            read_below(tmp_path / "sub", name) if name != "zero.png" else read_below(tmp_path, name)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for number in range(1, 5):
        (tmp_path / "img" / f"word_{number}.png").write_bytes(encoded(noise(number)))
    return tmp_path / "img"


LISTS = {
    "tab": "".join(f"word_{i}.png\t{label}\n" for i, label in enumerate(LABELS, 1)),
    "byte-order mark": "\ufeff" + "".join(f"word_{i}.png\t{label}\n" for i, label in enumerate(LABELS, 1)),
    "ICDAR": "\ufeff" + "".join(f'word_{i}.png, "{label}"\r\n' for i, label in enumerate(LABELS, 1)),
    "ICDAR escaped": 'word_1.png, "Hello"\nword_2.png, "café"\nword_3.png, "a,b"\nword_4.png, "\\"q\\""\n',
    "EasyOCR": "filename,words\n" + "".join(f"word_{i}.png,{label}\n" for i, label in enumerate(LABELS, 1)),
    "spreadsheet": "id,text,file_name\n1,Hello,word_1.png\n2,café,word_2.png\n"
    '3,"a,b",word_3.png\n4,"""q""",word_4.png\n',
    "JSON lines": '{"file_name": "word_1.png", "text": "Hello"}\n{"image": "word_2.png", "label": "caf\\u00e9"}\n'
    '{"path": "word_3.png", "gt": "a,b"}\n{"img": "word_4.png", "word": "\\"q\\""}\n',
    "whitespace": "".join(f"word_{i}.png {label}\n" for i, label in enumerate(LABELS, 1)),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_every_form(name: str, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(LISTS[name].encode("utf-16" if name == "tab" else "utf-8"))
    create_lmdb(pictures, file, tmp_path / "out", separator=AUTO)
    words = WordLmdb(tmp_path / "out")
    assert [words.label(index) for index in range(len(words))] == LABELS


def test_separator_flag_and_the_advice(pictures: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "gt.txt"
    file.write_text(LISTS["ICDAR"], "utf-8")
    with pytest.raises(UserError, match=r"line 1: .*--separator comma reads it"):
        create_lmdb(pictures, file, tmp_path / "out")
    command = ["data", "convert", "gt", str(pictures), str(file), str(tmp_path / "out"), "--separator", COMMA]
    assert main(command) == 0
    assert len(WordLmdb(tmp_path / "out")) == 4


def test_blanks_are_cut_and_counted(pictures: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "gt.txt"
    file.write_text("word_1.png \tHello \nword_2.png\t ok\nword_3.png\tx\n", "utf-8")
    create_lmdb(pictures, file, tmp_path / "out")
    assert [WordLmdb(tmp_path / "out").label(index) for index in range(3)] == ["Hello", "ok", "x"]
    assert "2 labels had blanks around them" in capsys.readouterr().out


def test_other_encodings_are_named(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "gt.txt"
    file.write_bytes("word_1.png\tok\nword_2.png\t京A\n".encode("gbk"))
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_listing(file)
    create_lmdb(pictures, file, tmp_path / "out", encoding="gbk")
    assert WordLmdb(tmp_path / "out").label(1) == "京A"


def other_keys(path: Path, form: str, first: int, labels: list[str]) -> Path:
    write_words(path, [])
    pairs = [(form.format("image", first + i).encode(), encoded(noise(i))) for i in range(len(labels))]
    pairs += [(form.format("label", first + i).encode(), label.encode()) for i, label in enumerate(labels)]
    put(path, *pairs, (b"num-samples", b"%d" % len(labels)))
    return path


@pytest.mark.parametrize(
    ("form", "first", "lost"), [("{}-{:09d}", 0, 1), ("{}-{}", 1, 12), ("{}-{:05d}", 1, 12), ("{}-{}", 0, 12)]
)
def test_every_numbering_is_read_whole(form: str, first: int, lost: int, tmp_path: Path, capsys) -> None:
    labels = [f"w{i}" for i in range(12)]
    path = other_keys(tmp_path / "data" / "set", form, first, labels)
    dataset = WordDataset([path], image_size=(16, 40))
    assert [dataset.label(i) for i in range(len(dataset))] == labels
    assert np.array_equal(dataset.image(11), noise(11))
    assert "numbered from" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "data"), "--repair", str(tmp_path / "new")]) == 0
    assert (
        f"WRONG KEYS  numbered from {first}" in (out := capsys.readouterr().out) and f"{lost} samples would be" in out
    )
    renumbered = WordLmdb(tmp_path / "new" / "set")
    assert renumbered.numbering.is_published and [renumbered.label(i) for i in range(12)] == labels


def test_counts_that_cannot_be_meant(tmp_path: Path, capsys) -> None:
    path = write_words(tmp_path / "set", ["a", "b"])
    put(path, (b"num-samples", b"9" * 5000))
    with pytest.raises(UserError, match="num-samples is b'9999"):
        len(WordLmdb(path))
    with LmdbWriter(tmp_path / "masks") as writer:
        writer.add_value("mask", 0, b"x")
    put(tmp_path / "masks", (b"num-samples", b"999999999999"))
    with pytest.raises(UserError, match="only 1 masks"):
        WordDataset([tmp_path / "masks"])
    assert main(["doctor", str(tmp_path / "set")]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) < 400


def test_a_repair_never_writes_an_empty_lmdb(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "data" / "set", ["a", "b"], broken=[0, 1])
    assert main(["doctor", str(tmp_path / "data"), "--repair", str(tmp_path / "new")]) == 1
    assert "none of its 2 samples is sound" in capsys.readouterr().out and not (tmp_path / "new" / "set").exists()


def test_doctor_prints_characters_and_names_flat_pictures(tmp_path: Path, capsys) -> None:
    path = write_words(tmp_path / "set", ["éà", "b"])
    put(path, (b"image-000000002", encoded(np.full((8, 20, 3), 7, np.uint8))))
    assert main(["doctor", str(path), "--charset", "36"]) == 0
    out = capsys.readouterr().out
    assert "'é' x 1" in out and "u00e9" not in out and "one colour  1: 2" in out


def test_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_words(tmp_path / "set", ["a"])
    assert main(["doctor", "~/set", "--workers=1", "--json=~/found.json"]) == 0
    assert (tmp_path / "found.json").is_file()
