"""Writing and reading word LMDBs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError
from tests.common.lmdbs import put, write_words


def test_round_trip_with_extras(tmp_path):
    with LmdbWriter(tmp_path / "a" / "b") as writer:
        assert writer.add(b"image0", "Wört", mask=b"m0", boxes=b"[]") == 0
        assert writer.add(b"image1", "zwei") == 1
    words = WordLmdb(tmp_path / "a" / "b")
    assert len(words) == 2 and words.label(0) == "Wört" and words.image_bytes(1) == b"image1"
    assert words.value("mask", 0) == b"m0" and words.value("mask", 1) is None
    assert words.prefixes() == ["boxes", "image", "label", "mask"]
    assert list(words.items("label")) == [(0, "Wört".encode()), (1, b"zwei")]
    with pytest.raises(KeyError, match="image-000000003"):
        words.image_bytes(2)
    assert not list(tmp_path.glob("**/*.tmp"))


def test_map_grows_and_loses_nothing(tmp_path):
    with LmdbWriter(tmp_path / "big", map_size=1 << 15, batch=7) as writer:
        for i in range(200):
            writer.add(os.urandom(1000 + 97 * i), str(i))
    words = WordLmdb(tmp_path / "big")
    assert len(words) == 200
    assert [len(words.image_bytes(i)) for i in range(200)] == [1000 + 97 * i for i in range(200)]


def test_a_replacement_that_was_killed_is_recovered(tmp_path, capsys):
    """Between the two renames the older folder has only a hidden name; an unfinished new one is reported."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, path = int(done.stdout), tmp_path / "x"
    write_words(path, ["old"]).rename(tmp_path / f".x.{dead}.old")
    (tmp_path / f".x.{dead}.tmp").mkdir()
    (tmp_path / f".xy.{dead}.old").mkdir()  # another folder's
    with pytest.raises(RuntimeError), LmdbWriter(path, overwrite=True):
        raise RuntimeError
    assert WordLmdb(path).label(0) == "old"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "x: put back" in lines[0] and f".x.{dead}.tmp: left by a run" in lines[1]
    (tmp_path / f".x.{os.getpid()}.old").mkdir()  # of a process that runs
    (tmp_path / f".x.{dead}.tmp").rmdir()
    with LmdbWriter(path, overwrite=True) as writer:
        writer.add(b"i", "new")
    assert WordLmdb(path).label(0) == "new" and not capsys.readouterr().err


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), LmdbWriter(tmp_path / "x") as writer:
        writer.add(b"1", "a")
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_or_replaced_at_the_end(tmp_path):
    write_words(tmp_path / "x", ["old"])
    with pytest.raises(UserError, match="exists"):
        LmdbWriter(tmp_path / "x")
    with LmdbWriter(tmp_path / "x", overwrite=True) as writer:
        writer.add(b"1", "new")
        assert WordLmdb(tmp_path / "x").label(0) == "old"
    assert WordLmdb(tmp_path / "x").label(0) == "new" and [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_linked_folder_stays_linked_when_it_is_replaced(tmp_path):
    write_words(tmp_path / "disk" / "x", ["old"])
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "x")
    with LmdbWriter(tmp_path / "x", overwrite=True) as writer:
        writer.add(b"1", "new")
    assert (tmp_path / "x").is_symlink() and WordLmdb(tmp_path / "disk" / "x").label(0) == "new"
    assert len(list(tmp_path.iterdir())) == 2 and len(list((tmp_path / "disk").iterdir())) == 1


def test_the_old_folder_comes_back_when_the_new_one_cannot_appear(tmp_path, monkeypatch):
    path, replace = write_words(tmp_path / "x", ["old"]), Path.replace

    def fail(self, target):
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="cannot be put there"), LmdbWriter(path, overwrite=True) as writer:
        writer.add(b"1", "new")
    assert WordLmdb(path).label(0) == "old"


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        LmdbWriter(tmp_path / "file" / "x")


def test_several_readers_pickle_and_close(tmp_path):
    path = write_words(tmp_path / "x", ["one", "two"])
    first, second = WordLmdb(path), WordLmdb(path)
    assert first.label(0) == second.label(0) == "one"
    third = pickle.loads(pickle.dumps(first))
    first.close()
    assert second.label(1) == third.label(1) == first.label(1) == "two"


def _labels(words: WordLmdb) -> list[str]:
    return [words.label(i) for i in range(len(words))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_opened_in_parent_used_in_child(tmp_path, method):
    words = WordLmdb(write_words(tmp_path / "x", ["one", "two"]))
    assert _labels(words) == ["one", "two"]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_labels, [words, words]) == [["one", "two"]] * 2
    assert _labels(words) == ["one", "two"]


def test_missing_foreign_truncated(tmp_path):
    with pytest.raises(UserError, match=r"no data\.mdb"):
        len(WordLmdb(tmp_path / "nothing"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data.mdb").write_bytes(os.urandom(9000))
    with pytest.raises(UserError, match="not a whole LMDB"):
        len(WordLmdb(tmp_path / "foreign"))
    (tmp_path / "foreign" / "data.mdb").write_bytes(b"")
    with pytest.raises(UserError, match="not a whole LMDB"):
        len(WordLmdb(tmp_path / "foreign"))
    path = write_words(tmp_path / "short", [str(i) for i in range(50)])
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 2)
    with pytest.raises(UserError, match="incomplete copy"):
        len(WordLmdb(path))


@pytest.mark.parametrize("stored", [None, b"", b"many", b"-3", b"3", b"1000"])
def test_wrong_num_samples_is_refused_with_the_count(tmp_path, stored):
    path = write_words(tmp_path / "x", [str(i) for i in range(10)])
    put(path, (b"num-samples", stored))
    with pytest.raises(UserError, match=r"10 images found.*strlab doctor"):
        len(WordLmdb(path))


def test_slightly_wrong_num_samples_is_said(tmp_path, capsys):
    path = write_words(tmp_path / "x", [str(i) for i in range(300)])
    put(path, (b"num-samples", b"301"))
    assert len(WordLmdb(path)) == 301
    assert "num-samples says 301, 300 images found" in capsys.readouterr().out


def test_a_path_that_is_no_utf8(tmp_path):
    path = write_words(tmp_path / os.fsdecode(b"caf\xe9"), ["one"])
    assert WordLmdb(path).label(0) == "one"
