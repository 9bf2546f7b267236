"""`--init`: weights of another charset and length start a new run; the classifier's rows move by character."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from common.data.lmdb import WordLmdb
from common.train.checkpoint import load
from projects.mgpstr import train_final_dist
from projects.mgpstr.model.build import build_row, initialise
from tests.mgpstr.corpus import ACDS, CHARACTERS, MICRO, command, write_corpus

CAPITALS = "0123456789ABCXYZ京"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("mgpstr"))


@pytest.mark.parametrize("model", [CHARACTERS, MICRO, ACDS], ids=["char-str", "mgp-str", "acds"])
def test_rows_move_by_character(model: list[str], tmp_path: Path, capsys) -> None:
    method, name = model[1], model[3] if len(model) > 2 else ""
    torch.manual_seed(0)
    donor = build_row(method, name)
    state = {f"_orig_mod.module.{key}": value for key, value in donor.state_dict().items()}
    torch.save(state, tmp_path / "donor.pth")
    model = build_row(method, name, character="z9é", batch_max_length=9)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    report = initialise(model, tmp_path / "donor.pth", None, "z9é")
    assert report.tokens[:2] == (["[GO]", "[s]", "z", "9"], ["é"]) and len(report.tokens[2]) == 34
    assert "34 characters" in capsys.readouterr().out
    now, before = model.state_dict(), donor.state_dict()
    head = next(key for key in now if key.endswith(("char_head.weight", "norm_1.weight")))
    for place, row in ((0, 0), (1, 1), (2, 37), (3, 11)):
        assert torch.equal(now[head][place], before[head][row])
    assert torch.equal(now[head][4], fresh[head][4])
    queries = next(key for key in now if key.endswith((".tokenLearner.1.weight", ".tokenLearner1.1.weight")))
    assert torch.equal(now[queries], before[queries][:11])
    assert torch.equal(now[key := next(k for k in now if "blocks.3" in k)], before[key])


def test_fine_tuning_to_other_characters(corpus: Path, tmp_path: Path, capsys) -> None:
    """From 36 characters and 25 letters to 17 and 5; the metadata file says what the first run read."""
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1")) == 0
    start = tmp_path / "run-Seed1111" / "best_accuracy.pth"
    capsys.readouterr()
    words = ["--character=" + CAPITALS + "abcdefghijklmnopqrstuvwxyz", "--sensitive", "--batch_max_length=5"]
    words += [f"--init={start}", "--exp_name=second", "--num_iter=1"]
    assert train_final_dist.main(command(corpus, tmp_path, *words)) == 0
    printed = capsys.readouterr().out
    assert "kept       38 characters  [GO] [s] 0 1" in printed and re.search(
        r"new +7 characters  A B C X Y Z 京", printed
    )
    card = json.loads((tmp_path / "second-Seed1111" / "best_accuracy.pth.json").read_text())
    assert card["start"].endswith("at step 0") and card["options"]["batch_max_length"] == 5


def test_what_cannot_be_meant_is_refused(corpus: Path, tmp_path: Path, capsys) -> None:
    torch.save(build_row("char-str", CHARACTERS[3], character="abc").state_dict(), tmp_path / "abc.pth")
    assert train_final_dist.main(command(corpus, tmp_path, f"--init={tmp_path / 'abc.pth'}")) == 2
    assert "which 3 characters it reads is not known" in capsys.readouterr().err
    other = build_row("mgp-str", MICRO[3], dim=64).state_dict()
    torch.save(other, tmp_path / "narrow.pth")
    assert train_final_dist.main(command(corpus, tmp_path, f"--init={tmp_path / 'narrow.pth'}")) == 2
    assert "needed tensors do not fit" in capsys.readouterr().err
    words = command(corpus, tmp_path, f"--init={tmp_path / 'abc.pth'}", f"--saved_model={tmp_path / 'abc.pth'}")
    assert train_final_dist.main(words) == 2
    assert "both give the start weights" in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuning_to_plates(corpus: Path, tmp_path: Path) -> None:
    """Chinese number plates, the province as first character: the loss falls."""
    if not os.environ.get("STRLAB_REAL_DATA"):
        pytest.skip("STRLAB_REAL_DATA is not set")
    plates = Path(os.environ["STRLAB_REAL_DATA"]) / "plates_cn_lprnet"
    words = WordLmdb(plates)
    charset = "".join(sorted({character for index in range(len(words)) for character in words.label(index)}))
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1")) == 0
    start = tmp_path / "run-Seed1111" / "best_accuracy.pth"
    roots = [f"--{name}={plates.parent}" for name in ("train_data", "valid_data")]
    more = [*roots, f"--select_data={plates.name}", f"--character={charset}", "--sensitive", f"--init={start}"]
    more += ["--adam", "--lr=0.001", "--batch_size=16", "--num_iter=40", "--valInterval=40", "--exp_name=plates"]
    more += [f"--valid_data={plates}"]
    assert train_final_dist.main(command(corpus, tmp_path, *more)) == 0
    rows = (tmp_path / "plates-Seed1111" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]  # 3.84 to 3.13 from a start that had not learnt
    assert "module.mgp_str.head.weight" in load(tmp_path / "plates-Seed1111" / "best_accuracy.pth")
