"""`strlab data list | info | convert | verify`: miniatures of the official layouts, with their quirks."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common.cli import main
from common.data.convert.forms import ANYWORD, LMDB, SINGLE
from common.data.convert.public import convert
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.sets import digest, known
from common.errors import UserError
from tests.common.lmdbs import encoded, noise, put, write_words


def labels(folder: Path) -> list[str]:
    words = WordLmdb(folder)
    return [words.label(index) for index in range(len(words))]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (16, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    path.write_bytes(encoded(noise(seed, *size), kind))


def cell(*items: object) -> np.ndarray:
    made = np.empty((1, len(items)), dtype=object)
    made[0] = [*items]
    return made


def iiit5k(root: Path) -> None:
    """`ImgName` and `GroundTruth` in a struct array; one picture is missing, one name has another case."""
    for split in ("train", "test"):
        names = [f"{split}/1_1.png", f"{split}/2_1.PNG", f"{split}/9_9.png"]
        rows = np.zeros((1, 3), dtype=[("ImgName", object), ("GroundTruth", object), ("smallLexi", object)])
        bounds = np.zeros((1, 3), dtype=[("ImgName", object), ("chars", object), ("charBB", object)])
        for i, (name, word) in enumerate(zip(names, ("Ab", "C", "gone"))):
            rows[0, i] = (name, word, cell("AB", "C"))
            bounds[0, i] = (name, word.upper(), np.array([[1.0, 2, 3, 4]] * len(word), dtype=np.float32))
        top = root / "IIIT5K"
        picture(top / split / "1_1.png", 1)
        picture(top / split / "2_1.png", 2)
        savemat(top / f"{split}data.mat", {f"{split}data": rows})
        savemat(top / f"{split}CharBound.mat", {f"{split}CharBound": bounds})


def svt(root: Path) -> None:
    for split, words in (("train", ["A"]), ("test", ["B", "C"])):
        marks = "".join(
            f'<taggedRectangle height="8" width="12" x="{10 * i - 3}" y="2"><tag>{word}</tag></taggedRectangle>'
            for i, word in enumerate(words)
        )
        body = f"<image><imageName>img/{split}.JPG</imageName><taggedRectangles>{marks}</taggedRectangles></image>"
        (root / "svt1").mkdir(parents=True, exist_ok=True)
        (root / "svt1" / f"{split}.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?><tagset>{body}</tagset>')
        picture(root / "svt1" / "img" / f"{split}.jpg")


ICDAR_LABELS = ["Word", "£5", "ice-cream", "12", 'Say \\"hi\\"', "short"]


def icdar(root: Path, train: str, test_list: str, test_pictures: str) -> None:
    lines = "".join(f'word_{i}.png, "{label}"\r\n' for i, label in enumerate(ICDAR_LABELS, 1))
    for folder, file in ((root / train, "gt.txt"), (root / test_pictures, None)):
        for number in range(1, len(ICDAR_LABELS) + 1):
            picture(folder / f"word_{number}.png", number)
        if file:
            (folder / file).write_bytes(("\ufeff" + lines).encode())
    (root / test_list).write_bytes(("\ufeff" + lines).encode())
    picture(root / "__MACOSX" / "._word_1.png")


def ic13(root: Path) -> None:
    icdar(root, "Challenge2_Training_Task3_Images_GT", "Challenge2_Test_Task3_GT.txt", "Challenge2_Test_Task3_Images")


def ic15(root: Path) -> None:
    icdar(root, "ch4_training_word_images_gt", "Challenge4_Test_Task3_GT.txt", "ch4_test_word_images_gt")


def ic03(root: Path) -> None:
    tags = [("word/1/1.jpg", "FLASH"), ("word/1/2.jpg", "A1"), ("word/1/3.jpg", "caf\xe9"), ("word/1/4.jpg", "B&B")]
    body = "".join(f'<image file="{name}" tag="{tag}" />\n' for name, tag in tags)
    text = f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<imagelist>\n{body}</imagelist>'
    (root / "test").mkdir(parents=True)
    (root / "test" / "word.xml").write_bytes(text.encode("iso-8859-1"))
    for number, (name, _) in enumerate(tags):
        picture(root / "test" / name, number)
    mark = '<taggedRectangle x="2.0" y="1.0" width="20.0" height="10.0" offset="0"><tag>Exit</tag></taggedRectangle>'
    scene = f"<image><imageName>a/1.JPG</imageName><taggedRectangles>{mark}</taggedRectangles></image>"
    for split in ("SceneTrialTest", "SceneTrialTrain"):
        picture(root / split / "a" / "1.JPG")
        (root / split / "words.xml").write_text(f"<tagset>{scene}</tagset>")


def mjsynth(root: Path) -> None:
    top = root / "mnt/ramdisk/max/90kDICT32px"
    picture(top / "2425/1/115_Lube_45484.jpg")
    for split in ("train", "val", "test"):
        lines = "./2425/1/115_Lube_45484.jpg 45484\n./2425/1/98_missing_2.jpg 2\nnonsense\n"
        (top / f"annotation_{split}.txt").write_text(lines)


def totaltext(root: Path) -> None:
    line = "x: [[2 20 20 2]], y: [[1 1 9 9]], ornt: [u'c'], transcriptions: [u'{}']\n"
    for split in ("Train", "Test"):
        picture(root / "Images" / split / "img1.jpg")
        (root / "gt" / split).mkdir(parents=True)
        (root / "gt" / split / "poly_gt_img1.txt").write_text(line.format("word") + line.format("#") + "broken\n")


def ctw1500(root: Path) -> None:
    picture(root / "train_images" / "0001.jpg")
    picture(root / "test_images" / "1001.jpg")
    (root / "ctw1500_train_labels").mkdir()
    box = "<box><label>a line</label><segs>2,1,20,1,20,9,2,9</segs></box><box><label>###</label></box>"
    (root / "ctw1500_train_labels" / "0001.xml").write_text(f"<Annotations><image>{box}</image></Annotations>")
    (root / "gt_ctw1500").mkdir()
    (root / "gt_ctw1500" / "0001001.txt").write_text("2,1,20,1,20,9,2,9,####text here\n2,1,20,1,20,9,####\n")


def textzoom(root: Path) -> None:
    for folder in ("train1", "test/easy"):
        with LmdbWriter(root / folder) as writer:
            writer.add(None, "word", image_hr=encoded(noise(1)), image_lr=encoded(noise(2)))


MINIATURES = {
    iiit5k: {"training/IIIT5k": ["Ab", "C"], "evaluation/IIIT5k_3000": ["Ab", "C"]},
    svt: {"training/SVT": ["A"], "evaluation/SVT": ["B", "C"]},
    ic13: {
        "training/IC13": ["Word", "£5", "ice-cream", "12", 'Say "hi"', "short"],
        "evaluation/IC13_1095": ["Word", "£5", "ice-cream", "12", 'Say "hi"', "short"],
        "evaluation/IC13_1015": ["Word", "12", "short"],
        "evaluation/IC13_857": ["Word", "short"],
    },
    ic15: {
        name: ["Word", "£5", "ice-cream", "12", 'Say "hi"', "short"]
        for name in ("training/IC15", "evaluation/IC15_2077")
    },
    ic03: {
        "evaluation/IC03_1110": ["FLASH", "A1", "café", "B&B"],
        "evaluation/IC03_867": ["FLASH"],
        "evaluation/IC03_scenes": ["Exit"],
        "evaluation/IC03_scenes_860": ["Exit"],
        "training/IC03": ["Exit"],
    },
    mjsynth: {f"training/MJ/{name}": ["Lube"] for name in ("MJ_train", "MJ_valid", "MJ_test")},
    totaltext: {"training/TotalText": ["word"], "evaluation/TotalText": ["word"]},
    ctw1500: {"training/CTW1500": ["a line"], "evaluation/CTW1500": ["text here"]},
    textzoom: {f"{part}/TextZoom_{kind}": ["word"] for part in ("training", "evaluation") for kind in ("hr", "lr")},
}  # fmt: skip


@pytest.mark.parametrize("build", MINIATURES, ids=lambda build: build.__name__)
def test_releases_become_their_sets(build, tmp_path: Path) -> None:
    build(tmp_path / "release")
    convert(build.__name__, tmp_path / "release", tmp_path / "data")
    made = {
        str(file.parent.relative_to(tmp_path / "data")): labels(file.parent)
        for file in tmp_path.glob("data/**/data.mdb")
    }
    assert made == MINIATURES[build]


def test_two_challenges_below_one_folder(tmp_path: Path) -> None:
    """IC13 and IC15 side by side, and a training archive that was unpacked next to the test list."""
    ic13(tmp_path / "in")
    ic15(tmp_path / "in")
    for number in range(1, 7):
        picture(tmp_path / "in" / f"word_{number}.png", 100 + number)
    (tmp_path / "in/Challenge4_Test_Task3_GT.txt").write_bytes(b'word_1.png, "Other"\n')
    for name, folder in (("ic13", "evaluation/IC13_1095"), ("ic15", "evaluation/IC15_2077")):
        convert(name, tmp_path / "in", tmp_path / name, subsets=["test"])
        words = WordLmdb(tmp_path / name / folder)
        assert len(words) == {"ic13": 6, "ic15": 1}[name] and words.image_bytes(0) == encoded(noise(1, 16, 40))


def test_what_archives_and_people_add_to_icdars_words(tmp_path: Path) -> None:
    """Other cases of names, commas and quotes in labels, files of file managers, and a list that is not UTF-8."""
    rows = [
        ("word_1.png", '"100,000"'), ("word_2.png", '"\\"SCAN\\""'), ("word_3.png", '"READER\\""'),
        ("word_4.png", '"It\xb4s"'), ("word_5.png", '"CAF\xc9"'), ("word_6.png", '"a\\\\b"'),
        ("word_7.png", '"Don\'t"'), ("word_8.png", '"TWO WORDS"'), ("word_9.png", '""'),
        ("word_10.png", '"gone"'), ("word_11.png", '"bad"'),
    ]  # fmt: skip
    top = tmp_path / "in" / "ch4_test_word_images_gt"
    for number in range(1, 10):
        picture(top / (f"Word_{number}.PNG" if number % 2 else f"word_{number}.png"), number)
    (top / "word_11.png").write_bytes(b"no picture")
    (top / "Thumbs.db").write_bytes(b"x")
    (top / "coords.txt").write_text("word_1.png,1,2,3,4,5,6,7,8\n")
    text = "".join(f"{name}, {label}\r\n" for name, label in rows)
    (tmp_path / "in" / "Challenge4_Test_Task3_GT.txt").write_bytes(text.encode("cp1252"))
    (tmp_path / "in" / "__MACOSX").mkdir()
    (tmp_path / "in" / "__MACOSX" / "._Challenge4_Test_Task3_GT.txt").write_bytes(b'word_1.png, "junk"\n')
    (tmp_path / "in" / "Challenge4_Test_Task1_GT").mkdir()
    (tmp_path / "in" / "Challenge4_Test_Task1_GT" / "gt_img_1.txt").write_text(
        "377,117,463,117,465,130,378,130,Genaxis\n"
    )
    convert("ic15", tmp_path / "in", tmp_path / "out", subsets=["test"])
    made = tmp_path / "out/evaluation/IC15_2077"
    assert labels(made) == ["100,000", '"SCAN"', 'READER"', "It´s", "CAFÉ", "a\\b", "Don't", "TWO WORDS"]
    log = (made / "error_image_log.txt").read_text("utf-8").splitlines()
    assert [line.split()[1].rpartition("_GT.txt:")[2] for line in log] == ["9:", "10:", "11:"]


def test_rectangles_and_entities_of_svt(tmp_path: Path) -> None:
    marks = [("A&amp;W", 2, 2), ("B&B", 30, -4), ("OUT", 400, 2), ("", 2, 2), ("SIDE", 35, 10)]
    rectangles = "".join(
        f'<taggedRectangle height="8" width="12" x="{x}" y="{y}"><tag>{word}</tag></taggedRectangle>'
        for word, x, y in marks
    )
    lost = (
        "<image><imageName>img/gone.jpg</imageName><taggedRectangles>" + rectangles[:80] + "</taggedRectangles></image>"
    )
    lost = lost.replace(
        rectangles[:80], '<taggedRectangle height="8" width="9" x="1" y="1"><tag>X</tag></taggedRectangle>'
    )
    body = f"<image><imageName>img/00_01.jpg</imageName><taggedRectangles>{rectangles}</taggedRectangles></image>{lost}"
    picture(tmp_path / "svt1" / "IMG" / "00_01.JPG")
    (tmp_path / "svt1" / "test.xml").write_bytes(f'\ufeff<?xml version="1.0"?><tagset>{body}</tagset>'.encode())
    convert("svt", tmp_path, tmp_path / "out", subsets=["test"])
    made = tmp_path / "out/evaluation/SVT"
    assert labels(made) == ["A&W", "B&B", "SIDE"]
    sizes = [Image.open(io.BytesIO(WordLmdb(made).image_bytes(index))).size for index in range(3)]
    assert sizes == [(12, 8), (10, 4), (5, 6)]
    log = (made / "error_image_log.txt").read_text("utf-8")
    assert all(word in log for word in ("lies outside", "empty tag", "gone.jpg")) and log.count("\n") == 3


def test_archives_that_were_not_unpacked_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Challenge2_Test_Task3_Images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no list of .* words .*; unpack Challenge2_Test_Task3_Images.zip first"):
        convert("ic13", tmp_path / "in", tmp_path / "out")


def test_what_was_skipped_is_listed_with_file_and_line(tmp_path: Path) -> None:
    mjsynth(tmp_path / "release")
    convert("mjsynth", tmp_path / "release", tmp_path / "data", subsets=["val"])
    rows = (tmp_path / "data/training/MJ/MJ_valid/error_image_log.txt").read_text("utf-8").splitlines()
    assert "annotation_val.txt:2: 2425/1/98_missing_2.jpg" in rows[0] and "annotation_val.txt:3: nonsense" in rows[1]


def test_character_boxes_of_iiit5k(tmp_path: Path) -> None:
    iiit5k(tmp_path)
    convert("iiit5k", tmp_path, tmp_path / "out", subsets=["test"])
    boxes = json.loads(WordLmdb(tmp_path / "out/evaluation/IIIT5k_3000").value("boxes", 0))
    assert boxes == [[1, 2, 4, 6, "A"], [1, 2, 4, 6, "b"]]


def test_the_1811_words_come_from_a_list(tmp_path: Path, capsys) -> None:
    ic15(tmp_path / "in")
    (tmp_path / "keep.txt").write_text("word_6.png\nword_1.png\n")
    assert main(["data", "convert", "ic15", f"{tmp_path}/in", f"{tmp_path}/out", "--only", f"{tmp_path}/keep.txt"]) == 0
    assert labels(tmp_path / "out/evaluation/IC15_1811") == ["Word", "short"]
    assert "of 1,811 words" in capsys.readouterr().out


def test_every_set_is_described(capsys) -> None:
    assert main(["data", "list"]) == 0
    table = capsys.readouterr().out
    for name, data_set in known().items():
        assert f"\n{name} " in table
        assert data_set.title and data_set.paper and data_set.url and data_set.licence and data_set.subsets
        assert main(["data", "info", name]) == 0
        built = {build.__name__ for build in MINIATURES} | {LMDB, ANYWORD, *SINGLE}
        assert data_set.form in built, "a form without a miniature"
    with pytest.raises(SystemExit):
        main(["data", "convert", "nosuch", "a", "b"])
    assert main(["data", "info", "nosuch"]) == 2


def test_releases_that_are_lmdbs_are_checked_and_linked(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "in" / "SVTP", ["a", "b"])
    assert main(["data", "convert", "svtp", f"{tmp_path}/in", f"{tmp_path}/out"]) == 0
    assert labels(tmp_path / "out" / "SVTP") == ["a", "b"] and (tmp_path / "out" / "SVTP").is_symlink()
    put(tmp_path / "in" / "SVTP", (b"num-samples", None))
    assert main(["data", "convert", "cute80", f"{tmp_path}/in", f"{tmp_path}/other"]) == 2


def test_verify(tmp_path: Path, capsys) -> None:
    svt(tmp_path / "in")
    convert("svt", tmp_path / "in", tmp_path / "data")
    assert main(["data", "verify", f"{tmp_path}/data"]) == 1
    assert "1 words, the whole release has 257" in capsys.readouterr().out
    write_words(tmp_path / "whole", [f"w{i}" for i in range(257)])
    assert main(["data", "verify", f"{tmp_path}/whole", "--set", "svt/train"]) == 0
    put(tmp_path / "data/training/SVT", (b"label-000000001", b"changed"))
    main(["data", "verify", f"{tmp_path}/data"])
    assert "contents changed since the conversion" in capsys.readouterr().out


def test_the_digest_depends_on_contents_alone() -> None:
    pairs = [(b"a", "x"), (b"b", "y")]
    assert digest(pairs) == digest(reversed(pairs)) != digest([(b"a", "y"), (b"b", "x")])


def test_hostile_records_are_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "secret.png").write_bytes(encoded(noise(9)))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    rows = [{"filename": name, "text": "x"} for name in ("../secret.png", "/dev/zero", "pipe.png", "gone.png")]
    rows += [{"filename": "a.png"}, {"filename": 7, "text": "x"}, ["a.png"], {"filename": "a.png", "text": None}]
    rows += [{"filename": "a.png", "text": "good"}]
    lines = [json.dumps(row) for row in rows] + ["{broken", '{"filename": "a.png", "text": "\\ud800"}']
    (tmp_path / "in" / "x.jsonl").write_text("\n".join(lines))
    convert("union14m", tmp_path / "in", tmp_path / "out")
    assert labels(tmp_path / "out") == ["good"]
    listed = (tmp_path / "out" / "error_image_log.txt").read_text("utf-8")
    assert len(listed.splitlines()) == 10 and "leads out of" in listed and "not a regular file" in listed


def test_merge_keeps_masks_and_boxes(tmp_path: Path) -> None:
    with LmdbWriter(tmp_path / "a") as writer:
        writer.add(encoded(noise(0)), "one", mask=b"m0", boxes=b"[]")
        writer.add(encoded(noise(1, 4, 4)), "small", mask=b"m1")
        writer.add(encoded(noise(2)), "two", mask=b"m2", meta=b"{}")
    assert main(["data", "convert", "merge", f"{tmp_path}/a", f"{tmp_path}/out", "--workers", "1"]) == 0
    words = WordLmdb(tmp_path / "out")
    assert labels(tmp_path / "out") == ["one", "two"]
    assert [words.value("mask", i) for i in (0, 1)] == [b"m0", b"m2"] and words.value("meta", 1) == b"{}"
    write_words(tmp_path / "training", ["one"])
    command = ["data", "convert", "unseen", f"{tmp_path}/a", f"{tmp_path}/new", "--training", f"{tmp_path}/training"]
    assert main([*command, "--workers", "1"]) == 0
    assert WordLmdb(tmp_path / "new").value("mask", 1) == b"m2"


def test_benchmark_scenes_are_found_from_their_own_place(tmp_path: Path, monkeypatch) -> None:
    """`data_root` is written relative to another folder than the file's."""
    picture(tmp_path / "bench" / "images" / "img_1.jpg", 0, (120, 160))
    quad = [[20, 10], [120, 10], [120, 50], [20, 50]]
    note = {"img_name": "img_1.jpg", "annotations": [{"polygon": quad, "text": text} for text in ("OPEN", "daily")]}
    bad = [{"img_name": "../../x.jpg", "annotations": note["annotations"]}, {"img_name": "img_1.jpg", "wm_score": "x"}]
    content = {"data_root": "./benchmark/ic13/images", "data_list": [note, *bad]}
    (tmp_path / "bench" / "test.json").write_text(json.dumps(content))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["data", "convert", "anyword", f"{tmp_path}/bench/test.json", f"{tmp_path}/out"]) == 0
    found = json.loads(WordLmdb(tmp_path / "out").value("annotations", 0))
    assert [word["text"] for word in found] == ["OPEN", "daily"] and len(WordLmdb(tmp_path / "out")) == 1
    assert len((tmp_path / "out" / "error_image_log.txt").read_text().splitlines()) == 2


LAYOUTS = Path(os.environ.get("STRLAB_LAYOUTS", "/nonexistent"))


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="STRLAB_LAYOUTS names no folder of release miniatures")
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [("iiit5k", "IIIT5K", [4, 4]), ("svt", "SVT", [2, 4]), ("ic13", "IC13", [8, 6, 4]), ("ic15", "IC15", [3, 6]),
     ("ic03", "IC03", [4, 2]), ("ic03", "IC03scene", [2, 2]), ("mjsynth", "MJSynth", [3, 3, 3])],
)  # fmt: skip
def test_official_miniatures(name: str, folder: str, counts: list[int], tmp_path: Path) -> None:
    assert [one.words for one in convert(name, LAYOUTS / folder, tmp_path / "out") if not one.absent] == counts


def test_pictures_are_stored_as_released(tmp_path: Path) -> None:
    iiit5k(tmp_path)
    convert("iiit5k", tmp_path, tmp_path / "out")
    stored = WordLmdb(tmp_path / "out/training/IIIT5k").image_bytes(0)
    assert stored == (tmp_path / "IIIT5K/train/1_1.png").read_bytes()
    assert Image.open(io.BytesIO(stored)).size == (40, 16)
