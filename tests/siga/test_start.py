"""What a run of SIGA starts from: published masks and checkpoints, sets of one name, each rank's draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.data.decode import decode_rgb
from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError
from common.models.weights import strip_prefix
from common.train.checkpoint import load, save_atomic
from projects.siga import train
from projects.siga.data import mask_source
from projects.siga.flags_test import parse_test
from projects.siga.mask_create import merge
from projects.siga.mask_create.shards import encode_mask
from projects.siga.model.kmeans_mask import text_mask
from projects.siga.test import chosen_sets
from tests.common.compare import same
from tests.common.processes import run, torchrun
from tests.siga.corpus import command, write_corpus, write_words

STATE = "training_state-{:09d}.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_ranks_of_t_draw_apart(corpus: Path, tmp_path: Path) -> None:
    """T's seed is `--manualSeed` plus the rank."""
    done = run(*torchrun(), "projects/siga/train.py", *command(corpus, tmp_path, "char_str_small", "--num_iter", 1))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = load(tmp_path / "saved_models" / "run-Seed1111" / STATE.format(1))["rng"]
    assert not torch.equal(first["torch"], second["torch"])


def write_published_masks(root: Path, pictures: Path, merged: bool) -> None:
    """Masks as the published tool and its merging leave them: none for the last picture, the count of the last shard,
    the shards inside the whole."""
    words = WordLmdb(pictures)
    masks = [encode_mask(text_mask(decode_rgb(words.image_bytes(index)))) for index in range(len(words) - 1)]
    shards = {"0": range(0, 6), "1": range(6, 12), "2": range(12, len(masks))}
    for folder, numbers in ([(root, range(len(masks)))] if merged else []) + [(root / n, r) for n, r in shards.items()]:
        with LmdbWriter(folder) as writer:
            for number in numbers:
                writer.add_value("mask", number, masks[number])
            writer.count = len(shards["2"])


@pytest.mark.parametrize("merged", [True, False], ids=["merged-there", "merged-here"])
def test_published_masks_train(merged: bool, corpus: Path, tmp_path: Path, capsys) -> None:
    for name in ("MJ", "ST"):
        write_published_masks(tmp_path / "Mask" / name, corpus / "training" / name, merged)
    if not merged:
        assert merge.main(["--mask_path", str(tmp_path / "Mask")]) == 0
    words = command(corpus, tmp_path, "TRBA_small", "--num_iter", 10, "--mask_path", tmp_path / "Mask")
    assert train.main(words) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("masks: 2 missing")]
    assert len(told) == 1, "40 words, of which the last of each set has no mask"


def test_absent_masks_of_s_are_told(corpus: Path) -> None:
    about = mask_source("S", None, str(corpus / "training" / "MJ"), False)[1]
    assert f"no folder {corpus / 'Mask' / 'MJ'}" in about


def test_sets_of_one_name_are_all_evaluated(tmp_path: Path) -> None:
    for folder in ("a/SVT", "b/SVT", "b/CUTE80", "c/IC13_857", "IC13_857"):
        write_words(tmp_path / folder, ["ab"])
    options = parse_test(["--eval_data", str(tmp_path), "--select_data", "/"], lambda path: {})
    assert list(chosen_sets(options)) == ["IC13_857", "a/SVT", "CUTE80", "b/SVT", "c/IC13_857"]
    for name, found in (
        ("b", ["CUTE80", "SVT"]),
        ("a/SVT", ["SVT"]),
        ("CUTE80", ["CUTE80"]),
        ("IC13_857", ["IC13_857"]),
    ):
        assert list(chosen_sets(replace(options, select_data=name))) == found
    with pytest.raises(UserError, match="sets of one name: a/SVT, b/SVT"):
        chosen_sets(replace(options, select_data="SVT"))


def rectification(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Its trainable tensors; running statistics move in any case."""
    return [state[name] for name in state if "LocalizationNetwork" in name and name.endswith((".weight", ".bias"))]


def test_frozen_rectification_stays_frozen(corpus: Path, tmp_path: Path, capsys) -> None:
    """The published optimizers leave the TPS out, and a file of weights has none: neither is trained on."""
    run = Path("saved_models") / "run"
    assert train.main(command(corpus, tmp_path / "trained", "TRBA_small", "--num_iter", 1)) == 0
    tps = tmp_path / "trained" / run / "0.pth"
    assert train.main(command(corpus, tmp_path / "frozen", "TRBA_small", "--num_iter", 2, "--tps", tps)) == 0
    published = tmp_path / "frozen" / run / "1.pth"
    net, weights = strip_prefix(load(published)["net"]), tmp_path / "weights.pth"
    save_atomic(weights, {"net": net})
    for path, told in ((published, "weights, optimizer and step 2"), (weights, "the optimizer starts fresh")):
        out = tmp_path / path.stem
        capsys.readouterr()
        assert train.main(command(corpus, out, "TRBA_small", "--saved_model", path)) == 0
        printed = capsys.readouterr().out
        assert f"TPS: weights from {path}, frozen" in printed and told in printed
        state = out / run / STATE.format(4)
        same(rectification(load(state)["model"]), rectification(net), "TPS")
    assert train.main(command(corpus, out, "TRBA_small", "--num_iter", 5, "--resume", "auto", "--allow_changes")) == 0
    assert f"TPS: weights from {state}, frozen" in capsys.readouterr().out
