"""DiG's converters on folders of the layouts of the data sets, and the multi-machine launcher's translation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.lmdb import WordLmdb
from common.errors import UserError
from projects.dig import run_mae_pretraining_moco_multiMachine as multi
from projects.dig.tools import (
    create_cvl_lmdb,
    create_iam_lmdb,
    create_iam_lmdb_from_fullImg,
    create_mae_lmdb,
    create_opentext_lmdb,
)
from tests.common.lmdbs import encoded, noise


def picture(path: Path, size: tuple[int, int] = (16, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(1, *size)).save(path)


def labels(folder: Path) -> list[str]:
    words = WordLmdb(folder)
    return [words.label(i) for i in range(len(words))]


@pytest.fixture
def iam(tmp_path: Path) -> Path:
    root = tmp_path / "iam"
    lines = [
        "# a comment", "a01-000u-00-00 ok 154 2 3 30 10 AT A", "a01-000u-00-01 err 154 2 3 30 10 NN bad",
        "a01-000u-00-02 ok 154 5 2 20 12 NN two words", "b01-000-01-00 ok 154 0 0 9 9 NN other",
    ]  # fmt: skip
    (root / "ascii").mkdir(parents=True)
    (root / "ascii" / "words.txt").write_text("\n".join(lines))
    (root / "trainset.txt").write_text("a01-000u-00\n")
    for number in (0, 2):
        picture(root / "words" / "a01" / "a01-000u" / f"a01-000u-00-0{number}.png")
    picture(root / "forms" / "a01-000u.png", (60, 80))
    return root


def test_iam(iam: Path, tmp_path: Path, capsys) -> None:
    assert create_iam_lmdb.main([str(iam), "trainset", str(tmp_path / "crops")]) == 0
    assert labels(tmp_path / "crops") == ["A", "two words"]
    assert create_iam_lmdb_from_fullImg.main([str(iam), "trainset", str(tmp_path / "pages")]) == 0
    assert labels(tmp_path / "pages") == ["A", "two words"]
    data = WordLmdb(tmp_path / "pages").image_bytes(1)
    from common.data.decode import decode_rgb

    assert decode_rgb(data).shape == (12, 20, 3)
    assert create_iam_lmdb.main([str(iam), "testset", str(tmp_path / "none")]) == 2
    assert "testset.txt" in capsys.readouterr().err


def test_cvl(tmp_path: Path) -> None:
    for name in ("0001-1-0-0-Imagine", "0001-1-0-1-große-Wörter", "0001-1-0-2-a-b"):
        picture(tmp_path / "cvl" / "trainset" / "words" / "0001" / f"{name}.tif")
    assert create_cvl_lmdb.main([str(tmp_path / "cvl"), "train", str(tmp_path / "out")]) == 0
    assert labels(tmp_path / "out") == ["Imagine", "a-b"]


def test_opentext(tmp_path: Path, capsys) -> None:
    picture(tmp_path / "open" / "training_1_set" / "x.jpg")
    picture(tmp_path / "open" / "validation_set" / "y.jpg")
    (tmp_path / "open" / "validation_set" / "broken.jpg").write_bytes(b"no picture")
    assert create_opentext_lmdb.main([str(tmp_path / "open"), str(tmp_path / "out")]) == 0
    assert labels(tmp_path / "out") == ["###", "###"]
    assert "1 of 3 samples skipped" in capsys.readouterr().out
    words = [str(tmp_path / "open"), str(tmp_path / "shards"), "--workers", "1", "--shard"]
    assert create_opentext_lmdb.main([*words, "2/2"]) == 0 and not (tmp_path / "shards").exists()
    picture(tmp_path / "cvl" / "trainset" / "words" / "0001" / "0001-1-0-0-a.tif")
    assert create_cvl_lmdb.main([str(tmp_path / "cvl"), "train", *words[1:], "1/2"]) == 2
    assert "begun by another command" in capsys.readouterr().err
    assert create_opentext_lmdb.main([*words, "1/2"]) == 0
    assert (tmp_path / "shards/data.mdb").read_bytes() == (tmp_path / "out/data.mdb").read_bytes()


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_reconstructions(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    table = tmp_path / f"info{suffix}"
    if suffix == ".json":
        table.write_text(json.dumps({"a.png": "word"}))
    else:
        np.save(table, {"a.png": "word"}, allow_pickle=True)
    assert create_mae_lmdb.main([str(tmp_path), str(table), str(tmp_path / "out")]) == 0
    assert labels(tmp_path / "out") == ["word"]


def test_npy_that_would_run_code_is_refused(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "info.npy", np.array(Path("x"), dtype=object), allow_pickle=True)
    assert create_mae_lmdb.main([str(tmp_path), str(tmp_path / "info.npy"), str(tmp_path / "out")]) == 2
    assert "refused" in capsys.readouterr().err


def test_multi_machine_words_become_torchrun_words() -> None:
    argv = ["--world_size", "2", "--rank", "1", "--init_method", "tcp://first:23456", "--batch_size", "8",
            "--image_alone_path", "a__b", "--num_view", "2"]  # fmt: skip
    words = multi.launcher_words(argv)
    assert words[:2] == ["--nnodes=2", "--node_rank=1"]
    assert "--master_addr=first" in words and "--master_port=23456" in words
    assert words[-7:] == ["--batch_size", "8", "--num_view", "2", "--image_alone_path", "a", "b"]
    for address in ("first:1", "tcp://first", "tcp://first:x"):
        wrong = ["--init_method", address]
        with pytest.raises(UserError, match="tcp://HOST:PORT"):
            multi.launcher_words(wrong)
