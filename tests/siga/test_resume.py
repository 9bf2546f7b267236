"""What a run of SIGA continues from, and what it refuses: another alphabet, finished runs, other options, two runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import load
from projects.siga import train
from tests.siga.corpus import WORDS, command, write_corpus, write_words

PLATES = Path(os.environ.get("STRLAB_REAL_DATA", "shared/data/real")) / "plates_cn_lprnet"
PROVINCES = "京沪津渝冀晋蒙辽吉黑苏浙皖闽赣鲁豫鄂湘粤桂琼川贵云藏陕甘青宁新"
STATE = "training_state-{:09d}.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def refused(words: list[str], capsys, *parts: str) -> None:
    capsys.readouterr()
    assert train.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert all(part in "\n".join(lines) for part in parts), lines


@pytest.mark.parametrize("model", ["TRBA_small", "TSBA_small", "char_str_small"])
def test_another_alphabet(model: str, corpus: Path, tmp_path: Path, capsys) -> None:
    """Rows move by character; provinces start fresh; the run trains."""
    words = ["京a1", "沪b2", "粤c3", "川d4", "10", "tea"] * 6
    write_words(tmp_path / "plates" / "MJ", words)
    assert train.main(command(corpus, tmp_path / "a", model, "--num_iter", 1)) == 0
    folder = next((tmp_path / "a" / "saved_models").iterdir())
    first = folder / ("iter_1.pth" if model.startswith("char") else "0.pth")
    character = "京沪粤川" + "zyxwvutsrqponmlkjihgfedcba" + "9876543210"
    plates = ["--train_data", tmp_path / "plates", "--select_data", "MJ", "--character", character]
    ratio = ["--batch_ratio", "1"] if model.startswith("char") else []
    more = [*plates, *ratio, "--init", first, "--num_iter", 8, "--lr", 0.002, "--batch_max_length", 6]
    if model.startswith("char"):
        more += ["--adam"]
    capsys.readouterr()
    assert train.main(command(tmp_path, tmp_path / "b", model, *more)) == 0
    printed = capsys.readouterr().out
    assert "fresh start" in printed and f"--init {first}" in printed
    assert "京沪粤川" in printed.replace("'", "").replace(", ", "").replace(" ", ""), "the new characters are listed"
    run = next((tmp_path / "b" / "saved_models").iterdir())
    losses = [
        row["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))
    ]
    assert losses[-1] < losses[0]


def test_rows_move_by_character(corpus: Path, tmp_path: Path) -> None:
    from projects.siga.model.build import build_row, initialise

    assert train.main(command(corpus, tmp_path, "TRBA_small", "--num_iter", 1)) == 0
    path = tmp_path / "saved_models" / "run" / "0.pth"
    content, character = load(path), "京cab0"
    model = build_row("TRBA_small", character, 5, image_size=[32, 64])
    fresh = model.model_two.generator.generator.weight.detach().clone()
    initialise(model, str(path), content, character)
    theirs = content["net"]["module.model_two.generator.generator.weight"]
    ours = model.model_two.generator.generator.weight
    # published order: a is 1, b 2, c 3, 0 is 36; index 0 ends
    for mine, their in ((0, 0), (2, 3), (3, 1), (4, 2), (5, 36)):
        assert torch.equal(ours[mine], theirs[their])
    assert torch.equal(ours[1], fresh[1]), "a new character keeps its fresh row"
    embeddings = content["net"]["module.model_two.Prediction.char_embeddings.weight"]
    assert torch.equal(model.model_two.Prediction.char_embeddings.weight[6], embeddings[37]), "the start symbol"


@pytest.mark.skipif(not PLATES.is_dir(), reason="set STRLAB_REAL_DATA for real number plates")
@pytest.mark.slow
def test_number_plates(corpus: Path, tmp_path: Path) -> None:
    assert train.main(command(corpus, tmp_path / "a", "TRBA_small", "--num_iter", 1)) == 0
    first = tmp_path / "a" / "saved_models" / "run" / "0.pth"
    character = PROVINCES + "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["--train_data", PLATES, "--select_data", "/", "--character", character, "--init", first]
    more = ["--num_iter", 12, "--lr", 0.002, "--batch_size", 8, "--batch_max_length", 8, "--unsupported_share", 0.2]
    assert train.main(command(tmp_path, tmp_path / "b", "TRBA_small", *words, *more)) == 0
    rows = (tmp_path / "b" / "saved_models" / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for line in rows if "loss" in (row := json.loads(line))]
    assert losses[-1] < losses[0]


def test_a_finished_run_is_not_trained_again(corpus: Path, tmp_path: Path, capsys) -> None:
    """`--saved_model` at or past the end, and another number of steps."""
    words = command(corpus, tmp_path, "TRBA_small", "--num_iter", 2, "--save_interval", 1)
    assert train.main(words) == 0
    run = tmp_path / "saved_models" / "run"
    late = tmp_path / "SIGA_R_160000.pth"
    shutil.copy(run / "1.pth", late)
    other = command(corpus, tmp_path / "other", "TRBA_small", "--num_iter", 2, "--saved_model", late)
    refused(other, capsys, "--num_iter", "is of step 2", "nothing is left to train")
    refused([*words, "--resume", "auto", "--num_iter", "3"], capsys, "--num_iter", "2 -> 3", "--allow_changes")
    assert train.main([*words, "--resume", "auto", "--num_iter", "3", "--allow_changes"]) == 0


def test_a_folder_with_a_hyphen_is_a_source(tmp_path: Path) -> None:
    write_words(tmp_path / "training" / "my-data", WORDS)
    words = ["--model_name", "TRBA_small", "--train_data", str(tmp_path / "training"), "--select_data", "my-data"]
    from projects.siga.flags import parse_training

    assert parse_training(words)[0].selected == ["my-data"]


def test_names_of_compiled_and_wrapped_models_are_known(corpus: Path, tmp_path: Path) -> None:
    from common.train.checkpoint import save_atomic

    assert train.main(command(corpus, tmp_path, "TRBA_small", "--num_iter", 1)) == 0
    net = load(tmp_path / "saved_models" / "run" / "0.pth")["net"]
    odd = {"model._orig_mod." + name: value for name, value in net.items()}
    save_atomic(tmp_path / "odd.pth", {"net": odd})
    words = command(corpus, tmp_path / "b", "TRBA_small", "--num_iter", 1, "--saved_model", tmp_path / "odd.pth")
    assert train.main(words) == 0
