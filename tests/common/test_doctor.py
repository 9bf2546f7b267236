"""`strlab doctor`: what it finds, what it repairs, what it leaves alone; and the gt.txt converter."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from common.cli import main
from common.data import examine as examining
from common.data.convert.gt import WHITESPACE, create_lmdb
from common.data.examine import Wishes, examine
from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError
from tests.common.lmdbs import encoded, noise, put, write_words


@pytest.fixture
def sick(tmp_path):
    labels = ["good", "bro\tken", "", "x" * 30, "café", "same", "other", "last"]
    path = write_words(tmp_path / "data" / "set", labels, broken=[1], masks=True)
    put(
        path,
        (b"image-000000006", encoded(noise(0))),  # the same picture as 1, another label
        (b"label-000000007", None),
        (b"image-000000008", None),
        (b"num-samples", b"12"),
    )
    write_words(tmp_path / "data" / "well", ["a", "b"])
    return tmp_path / "data"


def test_findings(sick, tmp_path, capsys):
    before = (sick / "set" / "data.mdb").read_bytes()
    words = ["doctor", str(sick), "--charset", "94", "--max-length", "25", "--duplicates"]
    assert main([*words, "--json", str(tmp_path / "x.json")]) == 1
    out = capsys.readouterr().out
    assert "num-samples is 12, the highest number is 8" in out
    found = {entry["path"].rsplit("/", 1)[1]: entry for entry in json.loads((tmp_path / "x.json").read_text())}
    numbers = {kind: [row[0] for row in rows] for kind, rows in found["set"]["findings"].items()}
    assert numbers == {
        "undecodable image": [2],
        "control characters": [2],
        "empty label": [3],
        "too long": [4],
        "outside charset": [2, 5],
        "conflicting duplicate": [6],
        "missing label": [7],
        "missing image": [8],
    }
    assert found["set"]["outside_charset"] == {"\t": 1, "é": 1} and found["set"]["faults"] == 4
    assert found["well"]["faults"] == 0 and found["well"]["findings"] == {}
    assert (sick / "set" / "data.mdb").read_bytes() == before


def test_repair_into_a_new_folder(sick, tmp_path, capsys):
    out = tmp_path / "mended"
    assert main(["doctor", str(sick), "--repair", str(out)]) == 0
    words = WordLmdb(out / "set")
    assert [words.label(i) for i in range(len(words))] == ["good", "", "x" * 30, "café", "same"]
    assert words.value("mask", 1) == WordLmdb(sick / "set").value("mask", 2)  # masks keep to their samples
    assert (out / "removed.csv").read_text().splitlines()[1:] == [
        f"{sick / 'set'},{number},{why}"
        for number, why in ((2, "undecodable image"), (7, "missing label"), (8, "missing image"))
    ]
    capsys.readouterr()
    assert main(["doctor", str(out)]) == 0
    assert "0 faults" in capsys.readouterr().out


def test_repeated_pictures_are_looked_for_when_asked(sick):
    assert "conflicting duplicate" in examine(sick / "set", Wishes(duplicates=True), 1).findings
    assert "conflicting duplicate" not in examine(sick / "set", Wishes(), 1).findings


@pytest.mark.parametrize("kind", ["pictures", "scenes", "masks"])
def test_lmdbs_without_labels_are_sound(kind, tmp_path, capsys):
    with LmdbWriter(tmp_path / "data" / "set") as writer:
        for number in range(4):
            if kind == "masks" and number != 1:  # that picture could not be read, nor can the last one
                writer.add_value("mask", number, b"mask %d" % number)
            elif kind != "masks":
                writer.add(encoded(noise(number)), None, **({"annotations": b"[]"} if kind == "scenes" else {}))
        writer.count = 5 if kind == "masks" else 4
    out = tmp_path / "mended"
    assert main(["doctor", str(tmp_path / "data"), "--repair", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0 faults" in said and ("masks of pictures" if kind == "masks" else "pictures without labels") in said
    old, new = WordLmdb(tmp_path / "data" / "set"), WordLmdb(out / "set")
    assert len(new) == len(old) and new.prefixes() == old.prefixes()
    assert all(list(new.items(prefix)) == list(old.items(prefix)) for prefix in old.prefixes())


def test_a_killed_reader_names_both_causes(tmp_path, monkeypatch):
    path = write_words(tmp_path / "x", ["a"])
    monkeypatch.setattr(examining, "_keys", suicide)
    assert "damaged pages (copy the folder again), or memory" in examine(path, Wishes(), 1).fatal


def suicide(path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_repair_never_in_place(sick, tmp_path):
    for place in (sick, sick / "new"):
        assert main(["doctor", str(sick), "--repair", str(place)]) == 2
    assert not (sick / "new").exists()


def test_unreadable_files_are_told(tmp_path, capsys):
    path = write_words(tmp_path / "data" / "cut", [str(i) for i in range(40)])
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size * 2 // 3)
    (tmp_path / "data" / "foreign").mkdir()
    (tmp_path / "data" / "foreign" / "data.mdb").write_bytes(b"x" * 10_000)
    write_words(tmp_path / "data" / "uncounted", ["a"])
    put(tmp_path / "data" / "uncounted", (b"num-samples", None))
    assert main(["doctor", str(tmp_path / "data")]) == 1
    out = capsys.readouterr().out
    assert "incomplete copy" in out and "not a whole LMDB" in out and "num-samples is None" in out


def test_bad_arguments(tmp_path):
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert main(["doctor", str(tmp_path)]) == 2


@pytest.fixture
def listed(tmp_path):
    images = tmp_path / "pictures"
    (images / "a b").mkdir(parents=True)
    for i in range(3):
        (images / "a b" / f"{i}.png").write_bytes(encoded(noise(i)))
    (images / "bad.png").write_bytes(b"no")
    (tmp_path / "secret.png").write_bytes(encoded(noise(9)))
    lines = [
        "a b/0.png\tHello",
        "a b/1.png\tzwei Wörter",
        "bad.png\tx",
        "gone.png\ty",
        "../secret.png\tz",
        "a b/2.png x",
        "",
    ]
    (tmp_path / "gt.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return images, tmp_path / "gt.txt", tmp_path / "out"


def test_gt_list_becomes_an_lmdb(listed, capsys):
    images, gt, out = listed
    assert main(["data", "convert", "gt", str(images), str(gt), str(out)]) == 0
    words = WordLmdb(out)
    assert [words.label(i) for i in range(len(words))] == ["Hello", "zwei Wörter"]
    assert words.image_bytes(0) == encoded(noise(0))
    assert "Created dataset with 2 samples" in capsys.readouterr().out
    log = (out / "error_image_log.txt").read_text()
    assert [line.split()[1].removeprefix(f"{gt}:") for line in log.splitlines()] == ["3:", "4:", "5:", "6:"]
    assert "leads out of" in log


def test_whitespace_list_and_no_check(listed, tmp_path):
    images, _, out = listed
    gt = tmp_path / "other.txt"
    gt.write_text("bad.png two words\n")
    result = create_lmdb(images, gt, out, separator=WHITESPACE, check_valid=False, say=lambda line: None)
    assert result.written == 1 and WordLmdb(out).label(0) == "two words"


def test_unusable_lists(listed, tmp_path):
    images, gt, out = listed
    cases = {"nothing.txt": None, "binary.txt": b"\xff\xfe\x00", "empty.txt": b"", "spaces.txt": b"bad.png word\n"}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            create_lmdb(images, tmp_path / name, out)
    with pytest.raises(UserError, match="no such folder"):
        create_lmdb(tmp_path / "gone", gt, out)
    assert not out.exists() and np.all([not file.name.endswith(".tmp") for file in tmp_path.iterdir()])
