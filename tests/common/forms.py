"""The same words in every form that is read: LMDB, folder and list, tar shards, parquet, a saved `datasets` folder.

Every function writes `pictures` with `labels` into a new folder and returns it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.data.lmdb import LmdbWriter

LABELS = [f"w{number}" for number in range(23)] + ["a, b", "café", 'sa"y']


def as_lmdb(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    with LmdbWriter(folder) as writer:
        for data, label in zip(pictures, labels):
            writer.add(data, label)
    return folder


def files(folder: Path, pictures: Sequence[bytes]) -> list[str]:
    names = [f"images/{number:03d}.png" for number in range(len(pictures))]
    (folder / "images").mkdir(parents=True)
    for name, data in zip(names, pictures):
        (folder / name).write_bytes(data)
    return names


def as_tab_list(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    rows = [f"{name}\t{label}\n" for name, label in zip(files(folder, pictures), labels)]
    (folder / "labels.txt").write_text("".join(rows), "utf-8")
    return folder


def as_json_list(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    rows = [json.dumps({"file_name": name, "text": label}) for name, label in zip(files(folder, pictures), labels)]
    (folder / "metadata.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


def as_tar(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    """Two shards, one with JSON labels."""
    folder.mkdir(parents=True)
    for shard, (start, stop) in enumerate(((0, 10), (10, len(pictures)))):
        with tarfile.open(folder / f"words-{shard:06d}.tar", "w") as archive:
            for number in range(start, stop):
                label = labels[number].encode() if shard else json.dumps({"text": labels[number]}).encode()
                for kind, data in (("png", pictures[number]), ("txt" if shard else "json", label)):
                    member = tarfile.TarInfo(f"{number:06d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def table(pictures: Sequence[bytes], labels: Sequence[str], start: int, stop: int):
    pyarrow = pytest.importorskip("pyarrow")
    cells = [{"bytes": data, "path": None} for data in pictures[start:stop]]
    return pyarrow.table({"image": cells, "text": list(labels[start:stop]), "other": list(range(stop - start))})


def as_parquet(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True)
    parquet.write_table(table(pictures, labels, 0, 9), folder / "train-00000.parquet", row_group_size=4)
    rest = table(pictures, labels, 9, len(pictures))
    parquet.write_table(rest, folder / "train-00001.parquet", row_group_size=5)
    return folder


def as_saved(folder: Path, pictures: Sequence[bytes], labels: Sequence[str] = LABELS) -> Path:
    """What `datasets.save_to_disk` leaves: Arrow files in stream form, dataset_info.json, state.json."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    for shard, (start, stop) in enumerate(((0, 15), (15, len(pictures)))):
        rows = table(pictures, labels, start, stop)
        with (
            pyarrow.OSFile(str(folder / f"data-{shard:05d}-of-00002.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, rows.schema) as writer,
        ):
            writer.write_table(rows, max_chunksize=6)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    return folder


FORMS = (as_tab_list, as_json_list, as_tar, as_parquet, as_saved)
