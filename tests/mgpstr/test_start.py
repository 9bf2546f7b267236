"""Training starts where the paper starts: the published encoder from a cache, or a warning everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.models.pretrained import DEIT_BASE, DEIT_SMALL, DEIT_TINY, MAE_LARGE, PublishedFile
from common.report import standard
from common.train.checkpoint import load
from projects.mgpstr import train_final_dist
from projects.mgpstr.model import build
from projects.mgpstr.model.build import START_WEIGHTS, build_model
from tests.mgpstr.corpus import command, write_corpus

NAME = "char_str_micro_patch16x8_3_32_128"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("mgpstr"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a micro model that is published with start weights."""
    for name in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setitem(build.START_WEIGHTS, NAME, PublishedFile("deit_micro-12345678.pth", "DeiT-micro", ""))
    return tmp_path / "cache/hub/checkpoints"


def test_published_files() -> None:
    sizes = {"tiny": DEIT_TINY, "small": DEIT_SMALL, "base": DEIT_BASE, "large": MAE_LARGE}
    published = {f"mgp_str_{size}_patch4_3_32_128": file for size, file in sizes.items()}
    assert {"char_str_base_patch4_3_32_128": DEIT_BASE, **published} == START_WEIGHTS


def test_missing_start_weights_are_warned_of_everywhere(corpus: Path, cache: Path, tmp_path: Path, capsys) -> None:
    """Console, log_train.txt, metadata file (also after a resume) and report."""
    words = command(corpus, tmp_path, "--num_iter=1", "--resume=auto", "--valInterval=1")
    assert train_final_dist.main(words) == 0
    folder, warning = tmp_path / "run-Seed1111", "WARNING: the published training starts from DeiT-micro"
    assert warning in capsys.readouterr().out
    assert (folder / "log_train.txt").read_text().splitlines()[1].startswith(warning)
    assert train_final_dist.main([*words, "--num_iter=2"]) == 0
    card = json.loads((folder / "best_accuracy.pth.json").read_text())
    assert card["start"] == "start: random weights" and card["warnings"][0].startswith(warning)

    class Finished:
        checkpoint = folder / "best_accuracy.pth"

    assert standard.warnings_of(Finished) == card["warnings"]


def test_none_is_no_warning(corpus: Path, cache: Path, tmp_path: Path, capsys) -> None:
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1", "--pretrained=none")) == 0
    assert "WARNING" not in capsys.readouterr().out
    card = json.loads((tmp_path / "run-Seed1111" / "best_accuracy.pth.json").read_text())
    assert card["warnings"] == [] and "--pretrained none" in card["start"]


def test_a_cached_file_is_loaded(corpus: Path, cache: Path, tmp_path: Path, capsys) -> None:
    """The encoder of the run is the file's: a learning rate near zero does not move it."""
    torch.manual_seed(1)
    donor = build_model("char-str", NAME).mgp_str.state_dict()
    cache.mkdir(parents=True)
    torch.save({"model": donor}, cache / "deit_micro-12345678.pth")
    words = command(corpus, tmp_path, "--num_iter=1", "--lr=1e-30", "--checkpoint_interval=1")
    assert train_final_dist.main(words) == 0
    assert "start: DeiT-micro from" in capsys.readouterr().out
    weights = load(tmp_path / "run-Seed1111" / "iter_1.pth")
    assert torch.equal(weights["module.mgp_str.blocks.3.mlp.fc1.weight"], donor["blocks.3.mlp.fc1.weight"])
    assert not torch.equal(weights["module.mgp_str.pos_embed"], donor["pos_embed"])
