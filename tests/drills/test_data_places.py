"""Drill 12, the data's part: read-only folders, odd paths, spawn, no shared state left behind."""

from __future__ import annotations

import os
import signal
import stat
from types import SimpleNamespace

import pytest

from common.cli import main
from common.data import loader
from common.data.bad import BadSample, BadSamples
from common.data.loader import SeededSampler, word_loader
from common.data.words import WordDataset, discover
from common.errors import UserError
from tests.common.lmdbs import write_words


@pytest.mark.parametrize(
    ("name", "workers"), [("with space", 0), ("ünïcode 数据", 1), ("semi;colon'quote", 0), ("-dash", 0)]
)
def test_odd_paths(tmp_path, name, workers):
    write_words(tmp_path / name / "training" / name, list("abc"))
    dataset = WordDataset(discover(tmp_path / name, [name]))
    batches = list(word_loader(dataset, SeededSampler(3, 2), workers, start_method="spawn" if workers else None))
    assert sorted(label for batch in batches for label in batch.labels) == list("abc")


def test_read_only_folder_stays_untouched(tmp_path):
    path = write_words(tmp_path / "x", list("abc"))
    (path / "data.mdb").chmod(stat.S_IRUSR)
    path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    try:
        assert WordDataset([path])[0].label == "a"
        assert main(["doctor", str(path)]) == 0
        assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    finally:
        path.chmod(stat.S_IRWXU)


def test_unwritable_list_of_bad_samples(tmp_path):
    (tmp_path / "file").write_text("")
    register = BadSamples(1000, file=tmp_path / "file" / "bad_samples.csv")
    with pytest.raises(UserError, match="file"):
        register.add([BadSample("x", 1, "y")])


def test_little_shared_memory_is_told_at_the_start(tmp_path, monkeypatch):
    dataset = WordDataset([write_words(tmp_path / "x", list("abcd"))])
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**16))
    with pytest.raises(UserError, match="/dev/shm: 0 MB free, 4 workers with batches of 2 need 0 MB: use fewer"):
        word_loader(dataset, SeededSampler(4, 2), workers=4)
    assert len(list(word_loader(dataset, SeededSampler(4, 2), workers=0))) == 2


def dying(image, rng, mask=None):
    """An augmenter whose process is killed, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(tmp_path):
    path = write_words(tmp_path / "x", list("abcd"))
    with pytest.raises(UserError, match=rf"loader process .*pid.*{path} \d.*use fewer workers"):
        list(word_loader(WordDataset([path], augment=dying), SeededSampler(4, 2), workers=1))
