"""Conversions in parts: several processes and shards, kills at any time, the bytes of one process."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.cli import main
from common.data.convert.public import convert
from common.data.lmdb import LmdbWriter
from common.data.parts import parts_folder
from common.errors import UserError
from tests.common.lmdbs import encoded, noise
from tests.common.test_sets import picture


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


def listed_words(root: Path, count: int) -> list[str]:
    """Pictures, some of them missing, and a list of them; the command that converts them."""
    names = []
    for number in range(count):
        names.append(f"{number}.png")
        if number % 7:
            picture(root / "pictures" / names[-1], number)
    (root / "gt.txt").write_text("".join(f"{name}\tw{number}\n" for number, name in enumerate(names)))
    return ["data", "convert", "gt", f"{root}/pictures", f"{root}/gt.txt"]


def scenes(root: Path, count: int) -> list[str]:
    """An AnyWord file, with pictures that are missing and such without a word."""
    items = []
    for number in range(count):
        quad = [[2, 2], [30, 2], [30, 12], [2, 12]]
        words = [{"polygon": quad, "text": f"w{number}"}] if number % 5 else []
        items.append({"img_name": f"{number}.jpg", "annotations": words})
        if number % 7:
            picture(root / "pictures" / f"{number}.jpg", number)
    (root / "scenes.json").write_text(json.dumps({"data_root": f"{root}/pictures", "data_list": items}))
    return ["data", "convert", "anyword", f"{root}/scenes.json"]


def boxed(root: Path, count: int) -> list[str]:
    """ACDS-STR's pickled tables of boxes, some of them outside their picture."""
    with LmdbWriter(root / "acds") as writer:
        for number in range(count):
            table = {str([[1, 1], [90 if number % 6 == 0 else 9, 9]]): "a", "word": f"w{number}"}
            writer.add_value("label", writer.add(encoded(noise(number)), None), pickle.dumps(table))
    return ["data", "convert", "acds", f"{root}/acds"]


@pytest.mark.parametrize("build", (listed_words, scenes, boxed), ids=lambda build: build.__name__)
def test_every_converter_resumes_and_takes_shards(build, tmp_path: Path, monkeypatch, capsys) -> None:
    """Lists, scenes and box tables: a killed shard is started again, and the file is that of one process."""
    for module in ("common.data.convert.gt", "common.data.convert.anyword", "projects.mgpstr.data_convert"):
        monkeypatch.setattr(f"{module}.PART_SIZE", 5)
    command = build(tmp_path, 23)
    assert main([*command, f"{tmp_path}/whole", "--workers", "1"]) == 0
    assert main([*command, f"{tmp_path}/shards", "--workers", "1", "--shard", "2/2"]) == 0
    assert "3 of 5 parts are not made yet" in capsys.readouterr().out and not (tmp_path / "shards").exists()
    parts = parts_folder(tmp_path / "shards")
    made_before = (parts / "0000003" / "data.mdb").stat().st_mtime_ns
    shutil.rmtree(parts / "0000001")  # as if that process had been killed in its first part
    (parts / ".0000001.99999999.tmp").mkdir()
    assert main([*command, f"{tmp_path}/shards", "--workers", "1", "--shard", "2/2"]) == 0
    assert (parts / "0000003" / "data.mdb").stat().st_mtime_ns == made_before
    assert main([*command, f"{tmp_path}/shards", "--workers", "2", "--shard", "1/2"]) == 0
    for name in ("data.mdb", "error_image_log.txt"):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not parts.exists()
    capsys.readouterr()
    assert main([*command, f"{tmp_path}/shards", "--workers", "1", "--shard", "2/2"]) == 0
    assert "another process has joined the parts" in capsys.readouterr().out
    if build is not boxed:  # of several LMDBs those that are there would stop the others
        assert main([*command, f"{tmp_path}/shards", "--workers", "1"]) == 2
    assert main([*command, f"{tmp_path}/whole", "--workers", "1", "--shard", "1/3"]) == 0


def test_a_conversion_that_was_killed_after_joining_is_ended(tmp_path: Path, monkeypatch) -> None:
    """The file is there, its list of skipped lines is not: the same command writes it and removes the parts."""
    monkeypatch.setattr("common.data.convert.gt.PART_SIZE", 5)
    command = [*listed_words(tmp_path, 23), f"{tmp_path}/out", "--workers", "1"]
    with monkeypatch.context() as patched:
        patched.setattr("common.data.convert.samples.write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) != 0
    assert (tmp_path / "out" / "data.mdb").is_file() and not (tmp_path / "out" / "error_image_log.txt").exists()
    assert main(command) == 0
    assert (tmp_path / "out" / "error_image_log.txt").read_text().count("\n") == 4
    assert not parts_folder(tmp_path / "out").exists()


def test_parts_of_another_command_are_refused(release: Path, tmp_path: Path) -> None:
    folder = parts_folder(tmp_path / "training/MJ/MJ_test")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text('{"set": "other"}')
    with pytest.raises(UserError, match="begun by another command"):
        convert("mjsynth", release, tmp_path, subsets=["test"])
