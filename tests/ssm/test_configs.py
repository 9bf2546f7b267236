"""Every experiment of the published tree composes and builds its model; mistakes are reported in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from common.errors import UserError
from projects.ssm.finetune.config import CONFIGS, explained, settle
from projects.ssm.model.build import build_recogniser
from projects.ssm.model.crnn import CRNN

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def composed(*overrides: str, name: str = "main"):
    with initialize_config_dir(str(CONFIGS), version_base="1.2"):
        return compose(name, list(overrides))


def chinese(folder: Path) -> str:
    file = folder / "characters.txt"
    file.write_text("".join(f"{chr(0x4E00 + i)}\n" for i in range(6623)), "utf-8")
    return f"model.charset_file={file}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, tmp_path: Path) -> None:
    more = [chinese(tmp_path)] if name.endswith("zh") else []
    main = "tune" if name.startswith("tune") else "main"
    options = settle(composed(f"+experiment={name}", *more, name=main)).model
    if name.endswith("zh"):
        assert len(options["charset_train"]) == 6623
    with torch.device("meta"):
        model = build_recogniser(options["class"], options["charset_train"], options)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e5


@pytest.mark.parametrize("name", MODELS)
def test_model_group_alone(name: str) -> None:
    options = settle(composed(f"model={name}")).model
    assert options["encoder_pretrained"] is False and options["class"].lower() == name


def test_published_class_paths_are_taken() -> None:
    for target in ("strhub.models.transocr.system.TransOCR", "strhub.models.transocr.system.ClusterSeq"):
        options = settle(composed("model=transocr", f"model._target_={target}")).model
        assert options["class"] == target.rpartition(".")[2]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+experiment=mdr-dec6-unoin"], "mdr-dec6-union"),
        (["model=parsec"], "parseq"),
        (["model.lrr=1"], "lr"),
        (["model.lr=fast"], "not a number"),
        (["model.batch_size=many"], "whole number"),
        (["data.augment=perhaps"], "true or false"),
        (["+data.rotation=90"], r"data\.rotation: no such key"),
        (["model._target_=strhub.models.x.system.Nothing"], "TransOCR"),
        (["model.charset_file=/nowhere.txt"], "charset_file"),
    ],
)
def test_mistakes(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        explained(lambda: settle(composed(*overrides)))()


@pytest.mark.parametrize(
    ("key", "value", "told"), [("perm_num", 3, "even"), ("perm_num", 0, "at least 1"), ("refine_iters", -1, "0")]
)
def test_sizes_that_cannot_be(key: str, value: int, told: str) -> None:
    with pytest.raises(UserError, match=f"{key}.*{told}"):
        build_recogniser("PARSeq", "abc", {key: value})


@pytest.mark.parametrize(
    ("more", "folded"),
    [
        ([], True),
        (["model.charset_test='abcé'"], False),
        (["data.normalize_unicode=false"], False),
        (["model.charset_train='äöü'", "model.charset_test=${model.charset_train}"], False),
    ],
)
def test_the_charset_decides_the_folding(more: list[str], folded: bool) -> None:
    assert settle(composed("+experiment=mdr-dec6-union", *more)).data.normalize_unicode is folded


def test_values_that_stay() -> None:
    config = composed("+experiment=mdr-dec6-union", "trainer.max_epochs=3", "+trainer.limit_train_batches=2")
    plain = settle(OmegaConf.create(config))
    assert plain.trainer["limit_train_batches"] == 2 and plain.trainer["max_epochs"] == 3
    assert plain.model["dec_depth"] == 6 and plain.model["lr"] == pytest.approx(3e-4)


def test_a_narrow_crnn_has_all_widths_in_proportion() -> None:
    """`output_channel` is additional; 512 is the published network."""
    published, narrow = ([m.out_channels for m in CRNN(36, output_channel=width).modules() if isinstance(m, nn.Conv2d)]
                         for width in (512, 128))  # fmt: skip
    assert published == [64, 128, 256, 256, 512, 512, 512] and narrow == [width // 4 for width in published]
