"""`strlab data list | info | convert | verify`: miniatures of the official layouts, with their quirks."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common.cli import main
from common.data.convert.forms import ANYWORD, LMDB, SINGLE
from common.data.convert.public import convert
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import parts_folder
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


def many(root: Path, count: int) -> Path:
    """MJSynth with many words; one picture in fifty is missing."""
    top = root / "90kDICT32px"
    data = encoded(noise(0), "JPEG")
    lines = []
    for number in range(count):
        name = f"1/{number % 7}/{number}_w{number}_0.jpg"
        lines.append(f"./{name} 0\n")
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        if number % 50 != 3:
            (top / name).write_bytes(data + bytes([number % 251]))
    (top / "annotation_test.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return many(tmp_path_factory.mktemp("mj"), 5000)


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory) -> bytes:
    """The file that one process makes."""
    out = tmp_path_factory.mktemp("whole")
    convert("mjsynth", release, out, subsets=["test"])
    return (out / "training/MJ/MJ_test/data.mdb").read_bytes()


def made(out: Path) -> bytes:
    return (out / "training/MJ/MJ_test/data.mdb").read_bytes()


def test_processes_and_shards_make_the_same_bytes(release: Path, whole: bytes, tmp_path: Path, capsys) -> None:
    convert("mjsynth", release, tmp_path / "two", subsets=["test"], workers=2)
    assert made(tmp_path / "two") == whole
    command = [
        "data",
        "convert",
        "mjsynth",
        str(release),
        str(tmp_path / "shards"),
        "--subset",
        "test",
        "--workers",
        "1",
    ]
    assert main([*command, "--shard", "2/2"]) == 0
    assert "2 of 3 parts are not made yet" in capsys.readouterr().out
    assert not (tmp_path / "shards/training/MJ/MJ_test").exists()
    assert main([*command, "--shard", "1/2"]) == 0
    assert made(tmp_path / "shards") == whole and not parts_folder(tmp_path / "shards/training/MJ/MJ_test").exists()
    assert main([*command, "--shard", "3/2"]) == 2


def test_shards_of_a_launcher(release: Path, whole: bytes, tmp_path: Path, monkeypatch) -> None:
    command = ["data", "convert", "mjsynth", str(release), str(tmp_path / "out"), "--subset", "test", "--workers", "1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(command) == 0
    assert made(tmp_path / "out") == whole


def test_a_killed_conversion_resumes(release: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from common.data.convert.public import convert; "
        f"convert('mjsynth', Path({str(release)!r}), Path({str(out)!r}), subsets=['test'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    parts = parts_folder(out / "training/MJ/MJ_test")
    while process.poll() is None and not (parts / "0000000").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (out / "training/MJ/MJ_test").exists():  # it was killed in time
        kept = (parts / "0000000" / "data.mdb").stat().st_mtime_ns
        shutil.copytree(parts, tmp_path / "copy")
        assert (tmp_path / "copy" / "0000000").exists() and kept
    convert("mjsynth", release, out, subsets=["test"])
    assert made(out) == whole


def test_parts_of_another_command_are_refused(release: Path, tmp_path: Path) -> None:
    folder = parts_folder(tmp_path / "training/MJ/MJ_test")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text('{"set": "other"}')
    with pytest.raises(UserError, match="begun by another command"):
        convert("mjsynth", release, tmp_path, subsets=["test"])


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
