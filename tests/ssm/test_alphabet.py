"""Labels that a charset cuts are counted, and a reader of one alphabet starts one of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.lmdb import WordLmdb
from common.errors import UserError
from projects.ssm.finetune.run import run
from tests.common.lmdbs import write_corpus as write_folders
from tests.ssm.runs import configuration, write_corpus

CHINESE = ["京AB1", "川X90", "沪C21", "京K07", "abc", "x-1"]


def test_labels_that_lose_letters_stop_a_run(tmp_path: Path, capsys) -> None:
    root = write_folders(tmp_path / "data", CHINESE, {"training/MJ": 6, "validation": 6})
    with pytest.raises(UserError, match=r"labels: 4 of 6 \(66.7%.*'京' x 2"):
        run(configuration(root), tmp_path / "out")
    run(configuration(root, "data.unsupported_share=1", "trainer.max_epochs=1"), tmp_path / "out")
    assert "5 of 6 labels have characters outside the charset" in capsys.readouterr().out


def test_marks_alone_do_not_stop_a_run(tmp_path: Path, capsys) -> None:
    root = write_folders(tmp_path / "data", ["x-1", "it's", "Cat"], {"training/MJ": 3, "validation": 3})
    run(configuration(root, "trainer.max_epochs=1"), tmp_path / "out")
    told = capsys.readouterr().out
    assert "2 of 3 labels have characters outside the charset ('-' x 1, \"'\" x 1)" in told
    assert "1 change in case only" in told


@pytest.mark.slow
def test_fine_tuning_to_plates(tmp_path: Path, real_data: Path, capsys) -> None:
    """Chinese number plates, the province as first character: rows are moved by character and the loss falls."""
    plates = real_data / "plates_cn_lprnet"
    words = WordLmdb(plates)
    charset = "".join(sorted({character for index in range(len(words)) for character in words.label(index)}))
    (tmp_path / "charset.txt").write_text("\n".join(charset), "utf-8")
    run(configuration(write_corpus(tmp_path / "corpus"), "trainer.max_epochs=1"), tmp_path / "first")
    for name in ("training", "validation"):
        (tmp_path / "plates" / name).mkdir(parents=True)
        (tmp_path / "plates" / name / "plates").symlink_to(plates)
    more = [f"pretrained={tmp_path}/first/checkpoints/last.ckpt", f"model.charset_file={tmp_path}/charset.txt",
            "model.charset_test=${model.charset_train}", "model.batch_size=16", "model.lr=3e-2", "trainer.max_epochs=1",
            "trainer.val_check_interval=1.0"]  # fmt: skip
    run(configuration(tmp_path / "plates", *more), tmp_path / "second")
    told = capsys.readouterr().out
    assert "kept" in told and "new" in told and "京" in told
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
