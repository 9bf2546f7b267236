"""Word sets in every form give the same samples in the same order: LMDB, folder and list, tar shards, tables."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import main
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.loader import SeededSampler, word_loader
from common.data.sources import find_sources, open_words
from common.data.words import WordDataset, discover
from common.errors import UserError
from tests.common import toy
from tests.common.lmdbs import encoded, noise

LABELS = [f"w{number}" for number in range(23)] + ["a, b", "café", 'sa"y']


def as_lmdb(folder: Path, pictures: list[bytes]) -> Path:
    with LmdbWriter(folder) as writer:
        for data, label in zip(pictures, LABELS):
            writer.add(data, label)
    return folder


def files(folder: Path, pictures: list[bytes]) -> list[str]:
    names = [f"images/{number:03d}.png" for number in range(len(pictures))]
    (folder / "images").mkdir(parents=True)
    for name, data in zip(names, pictures):
        (folder / name).write_bytes(data)
    return names


def as_tab_list(folder: Path, pictures: list[bytes]) -> Path:
    rows = [f"{name}\t{label}\n" for name, label in zip(files(folder, pictures), LABELS)]
    (folder / "labels.txt").write_text("".join(rows), "utf-8")
    return folder


def as_json_list(folder: Path, pictures: list[bytes]) -> Path:
    rows = [json.dumps({"file_name": name, "text": label}) for name, label in zip(files(folder, pictures), LABELS)]
    (folder / "metadata.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


def as_tar(folder: Path, pictures: list[bytes]) -> Path:
    """Two shards, one with JSON labels."""
    folder.mkdir(parents=True)
    for shard, (start, stop) in enumerate(((0, 10), (10, len(pictures)))):
        with tarfile.open(folder / f"words-{shard:06d}.tar", "w") as archive:
            for number in range(start, stop):
                label = LABELS[number].encode() if shard else json.dumps({"text": LABELS[number]}).encode()
                for kind, data in (("png", pictures[number]), ("txt" if shard else "json", label)):
                    member = tarfile.TarInfo(f"{number:06d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def table(pictures: list[bytes], start: int, stop: int):
    pyarrow = pytest.importorskip("pyarrow")
    cells = [{"bytes": data, "path": None} for data in pictures[start:stop]]
    return pyarrow.table({"image": cells, "text": LABELS[start:stop], "other": list(range(stop - start))})


def as_parquet(folder: Path, pictures: list[bytes]) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True)
    parquet.write_table(table(pictures, 0, 9), folder / "train-00000.parquet", row_group_size=4)
    parquet.write_table(table(pictures, 9, len(pictures)), folder / "train-00001.parquet", row_group_size=5)
    return folder


def as_saved(folder: Path, pictures: list[bytes]) -> Path:
    """What `datasets.save_to_disk` leaves: Arrow files in stream form, dataset_info.json, state.json."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    for shard, (start, stop) in enumerate(((0, 15), (15, len(pictures)))):
        rows = table(pictures, start, stop)
        with (
            pyarrow.OSFile(str(folder / f"data-{shard:05d}-of-00002.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, rows.schema) as writer,
        ):
            writer.write_table(rows, max_chunksize=6)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    return folder


FORMS = (as_tab_list, as_json_list, as_tar, as_parquet, as_saved)


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


@pytest.mark.parametrize("form", (as_tab_list, as_tar), ids=lambda form: form.__name__)
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
