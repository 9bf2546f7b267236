"""Word sets in every form give the same samples in the same order: LMDB, folder and list, tar shards, tables."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import main
from common.data.lmdb import WordLmdb
from common.data.loader import SeededSampler, word_loader
from common.data.sources import find_sources, open_words
from common.data.words import WordDataset, discover
from common.errors import UserError
from tests.common import toy
from tests.common.forms import FORMS, LABELS, as_lmdb, as_parquet, as_tab_list, as_tar
from tests.common.lmdbs import encoded, noise


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [encoded(noise(number)) for number in range(len(LABELS))]


@pytest.fixture
def reference(tmp_path: Path, pictures: list[bytes]) -> WordDataset:
    return WordDataset([as_lmdb(tmp_path / "reference", pictures)])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_same_samples_in_the_same_order(form, pictures, reference, tmp_path: Path) -> None:
    root = form(tmp_path / "root" / "set", pictures).parent
    assert discover(root) == [root / "set"] and discover(root, ["set"]) == [root / "set"]
    dataset = WordDataset(discover(root))
    assert [dataset.label(i) for i in range(len(dataset))] == LABELS
    order = np.array([20, 3, 3, 17, 0])
    ours, theirs = dataset.__getitems__(order), reference.__getitems__(order)
    assert np.array_equal(ours.images, theirs.images) and ours.labels == theirs.labels
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again[5].image, reference[5].image)
    with multiprocessing.get_context("fork").Pool(1) as pool:  # a forked child opens the files anew
        assert np.array_equal(pool.apply(dataset.image, (7,)), noise(7))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_spawned_workers_give_the_same_batches(form, pictures, reference, tmp_path: Path) -> None:
    dataset = WordDataset([form(tmp_path / "set", pictures)])
    batches = list(word_loader(dataset, SeededSampler(len(dataset), 8, seed=3), workers=2, start_method="spawn"))
    expected = list(word_loader(reference, SeededSampler(len(reference), 8, seed=3)))
    assert all(torch.equal(one.images, two.images) for one, two in zip(batches, expected, strict=True))
    assert [batch.labels for batch in batches] == [batch.labels for batch in expected]


def test_single_files_are_sets(pictures, tmp_path: Path) -> None:
    folder = as_tar(tmp_path / "tar", pictures)
    assert [open_words(folder / "words-000001.tar").label(i) for i in range(2)] == LABELS[10:12]
    listed = as_tab_list(tmp_path / "listed", pictures)
    (listed / "labels.txt").rename(listed / "other.list")
    assert find_sources(listed) == [] and len(open_words(listed / "other.list")) == len(LABELS)
    assert discover(listed / "other.list") == [listed / "other.list"]


def test_what_is_no_word_set_is_not_taken_for_one(tmp_path: Path, pictures) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with tarfile.open(tmp_path / "code.tar", "w") as archive:
        member = tarfile.TarInfo("setup.py")
        archive.addfile(member, io.BytesIO())
    assert find_sources(tmp_path) == []
    as_lmdb(tmp_path / "lmdb", pictures)
    assert find_sources(tmp_path) == [tmp_path / "lmdb"]
    (tmp_path / "lmdb" / "data.mdb").unlink()
    with pytest.raises(UserError, match=r"no LMDB .* or other word set"):
        discover(tmp_path)


def test_missing_pictures_are_bad_samples(pictures, tmp_path: Path, capsys) -> None:
    folder = as_tab_list(tmp_path / "set", pictures)
    (folder / "images" / "002.png").unlink()
    (folder / "labels.txt").write_text((folder / "labels.txt").read_text("utf-8") + "no tab\n", "utf-8")
    batch = WordDataset([folder]).__getitems__([1, 2, 3])
    assert batch.labels == ["w1", "w3"] and "002.png: No such file" in batch.bad[0].reason
    assert "1 of 27 lines skipped (line 27" in capsys.readouterr().out


def test_broken_files_end_in_one_line(tmp_path: Path, pictures) -> None:
    tar = as_tar(tmp_path / "tar", pictures) / "words-000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match="not a whole tar file"):
        len(open_words(tar))
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="not a whole parquet file"):
        len(open_words(tmp_path / "x.parquet"))


def test_columns_are_listed_where_none_fits(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": ["x"], "b": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"a \(string\), b \(int64\)"):
        len(open_words(tmp_path / "x.parquet"))


@pytest.mark.parametrize("form", (as_tab_list, as_tar, as_parquet), ids=lambda form: form.__name__)
def test_commands_take_every_form(form, pictures, tmp_path: Path, toy_checkpoint: Path, capsys) -> None:
    as_lmdb(tmp_path / "lmdb", pictures)
    form(tmp_path / "other", pictures)
    found = []
    for name in ("lmdb", "other"):
        command = ["eval", "--checkpoint", str(toy_checkpoint), "--model", "toy/brightness", "--device", "cpu"]
        assert main([*command, "--data", str(tmp_path / name), "--out", f"{tmp_path}/e{name}"]) == 0
        lines = (tmp_path / f"e{name}" / "predictions.csv").read_text("utf-8").splitlines()
        found.append([line.partition(",")[2] for line in lines])
    assert found[0] == found[1]
    assert main(["doctor", str(tmp_path / "other"), "--workers", "1"]) == 0
    assert "26 samples, 0 faults" in capsys.readouterr().out
    assert main(["data", "convert", "merge", f"{tmp_path}/other", f"{tmp_path}/new", "--workers", "1"]) == 0
    assert [WordLmdb(tmp_path / "new").label(i) for i in range(len(LABELS))] == LABELS


@pytest.fixture
def toy_checkpoint(tmp_path: Path, monkeypatch) -> Path:
    toy.install(monkeypatch)
    return toy.save_toy(tmp_path / "toy.pth")
