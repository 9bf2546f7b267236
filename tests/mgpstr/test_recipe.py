"""Every published model has a paper scale whose commands its scripts accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reproduce import recipe as recipes
from common.reproduce.runner import Runner
from projects.mgpstr.flags import parse_reading, parse_training
from projects.mgpstr.model.names import MODELS

RECIPE = recipes.load("mgpstr")
PAPER = {name: scale for name, scale in RECIPE.scales.items() if name.startswith("paper")}


def test_every_published_model_has_a_paper_scale() -> None:
    wanted = {f"mgpstr/{name}" for name in (*MODELS, "ACDS-STR-Base", "ACDS-STR-Small")}
    assert {scale.model for scale in PAPER.values()} == wanted


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu", "release", "sanity"])
def test_commands_of_the_small_scales_are_accepted(name: str, tmp_path: Path) -> None:
    scale = RECIPE.sanity if name == "sanity" else RECIPE.scales[name]
    for source in ("MJ", "ST"):
        (tmp_path / "training" / source).mkdir(parents=True)
        (tmp_path / "training" / source / "data.mdb").write_bytes(b"")
    for _, command, _, _ in Runner(RECIPE, name, scale, tmp_path, tmp_path).plan():
        if "train_final_dist" in " ".join(command):
            parse_training(command[2:])
        elif "test_final" in " ".join(command):
            parse_reading(command[2:], "test_final.py")


@pytest.mark.parametrize("name", sorted(PAPER))
def test_commands_are_accepted(name: str, tmp_path: Path) -> None:
    """Start weights reach the training of every model that has them; ACDS-STR trains on boxes, then on real words."""
    acds, trained = "acds" in name, []
    for source in ("MJ", "ST", "Real", "Union14M-L"):
        (tmp_path / "training" / source).mkdir(parents=True)
        (tmp_path / "training" / source / "data.mdb").write_bytes(b"")
    weights = "" if acds else str(tmp_path / "deit.pth")
    for _, command, _, _ in Runner(RECIPE, name, PAPER[name], tmp_path, tmp_path, weights).plan():
        script = next((i for i, word in enumerate(command) if word.startswith("projects/mgpstr/")), None)
        if script is not None:
            if "train_final_dist" in command[script]:
                trained.append(parse_training(command[script + 1 :])[0])
            else:
                parse_reading(command[script + 1 :], "test_final.py")
    assert [options.pretrained for options in trained] == (["auto", "auto"] if acds else [weights])
    assert all(options.scheduler and options.augment for options in trained)
    if acds:
        assert [options.is_mask_supervision for options in trained] == [True, False]
        assert trained[1].saved_model.endswith("boxes-Seed1111/best_accuracy.pth")
