"""Every project counts at its start what the character set does to the labels, and stops where it would lose them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from common.reader.data import RealWords
from common.train.distributed import Dist
from projects.dig import data as dig_data
from projects.dig import text
from projects.mgpstr import data as mgpstr_data
from projects.mgpstr import flags as mgpstr_flags
from projects.mgpstr.label_codes import LabelCodes
from projects.siga import data as siga_data
from projects.siga import train
from projects.siga.flags import parse_training
from projects.ssm.finetune.data import SceneTextDataModule
from projects.ssm.finetune.flags import DataOptions
from tests.common.lmdbs import write_words

CAPITALS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def words(root: Path, labels: list[str]) -> Path:
    write_words(root / "training" / "MJ", labels)
    write_words(root / "validation" / "v", ["one", "two"])
    return root


def mgpstr(root: Path, *argv: str):
    """The training set of MGP-STR and its description."""
    o, _ = mgpstr_flags.parse_training(
        ["--Transformer", "mgp-str", "--TransformerModel", "mgp_str_tiny_patch4_3_32_128",
         "--train_data", str(root / "training"), "--valid_data", str(root / "validation"),
         "--select_data", "MJ", "--batch_ratio", "1", *argv]
    )  # fmt: skip
    codes = LabelCodes(o.network.character, o.network.batch_max_length, o.network.heads)
    dataset, sources = mgpstr_data.training_data(
        o.train_data, o.sources, [o.batch_size], o.network, codes, filtered=True, boxes=False, augment=None,
        unsupported_share=o.unsupported_share, keep_empty=o.keep_empty_labels,
    )  # fmt: skip
    return dataset, mgpstr_data.describe(o.train_data, ["1"], "1.0", o.batch_size, sources, dataset)


def siga(root: Path, *argv: str):
    o, _ = parse_training(
        ["--model_name", "TRBA", "--train_data", str(root / "training"), "--select_data", "MJ", "--batch_size", "2",
         "--workers", "0", *argv]
    )  # fmt: skip
    loader, _, about = train.training_loader(o, root, Dist())
    return loader.dataset, about


@pytest.mark.parametrize("start", [mgpstr, siga], ids=["mgpstr", "siga"])
def test_foreign_labels_stop_a_run(start, tmp_path) -> None:
    root = words(tmp_path, ["中文", "ab", "日本", "cd", "e中"])
    with pytest.raises(UserError, match="中"):
        start(root)


@pytest.mark.parametrize("start", [mgpstr, siga], ids=["mgpstr", "siga"])
def test_capitals_fold_up_and_empty_labels_leave(start, tmp_path) -> None:
    root = words(tmp_path, ["AB00CD", "x1", "京A1", "京"] + ["AB"] * 36)
    dataset, about = start(root, "--character", CAPITALS, "--unsupported_share", "0.1")
    labels = [dataset.label(index) for index in range(len(dataset))]
    assert labels[:3] == ["AB00CD", "X1", "A1"] and len(labels) == 39
    assert "2 of 40 labels have characters outside the charset ('京' x 2); 1 become empty; 1 change in case" in about


@pytest.mark.parametrize("start", [mgpstr, siga], ids=["mgpstr", "siga"])
def test_empty_labels_stay_if_asked_for(start, tmp_path) -> None:
    root = words(tmp_path, ["京", "ab", "cd", "ef"])
    dataset, _ = start(root, "--unsupported_share", "1", "--keep_empty_labels")
    assert [dataset.label(index) for index in range(len(dataset))] == ["", "ab", "cd", "ef"]


def test_dig_counts_what_becomes_unknown(tmp_path) -> None:
    folder = write_words(tmp_path / "w", ["中文", "ab", "c-d"])
    dataset = dig_data.words([folder], text.codec("ALLCASES_SYMBOLS", 25), (32, 128))
    [coverage] = dataset.coverage().values()
    assert (coverage.labels, coverage.foreign, coverage.empty) == (3, 1, 0) and len(dataset) == 3


def test_the_default_reader_counts_what_it_cannot_write(tmp_path, capsys) -> None:
    folder = write_words(tmp_path / "w", ["\u4e2dab", "cd", "\u4e2d", *(f"w{i}" for i in range(20))])
    with pytest.raises(UserError, match=r"2 of 23 \(8.7%, limit 5.0%\).*--unsupported_share 0.087"):
        RealWords([folder])
    RealWords([folder], unsupported_share=0.1)
    out = capsys.readouterr().out
    assert "2 of 23 labels have characters outside the charset ('\u4e2d' x 2); 1 become empty" in out
    with pytest.raises(UserError, match="no usable sample"):
        RealWords([write_words(tmp_path / "zh", ["\u4e2d", "\u6587"])])


def test_ssm_stops(tmp_path) -> None:
    write_words(tmp_path / "train" / "real", ["中文", "ab"])
    write_words(tmp_path / "val" / "v", ["ab"])
    options = DataOptions(
        kind="SceneTextDataModule", root_dir=str(tmp_path), train_dir="real", batch_size=1, num_workers=0,
        img_size=[32, 128], charset_train="abc", charset_test="abc", max_label_length=25, augment=False,
        remove_whitespace=True, normalize_unicode=False, exclude=None, bad_share=0.01, unsupported_share=0.05,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"1 of 2 \(50\.0%, limit 5\.0%\).*charset="):
        SceneTextDataModule(options).loaders(lambda: (0, 0), Dist(), tmp_path)
    SceneTextDataModule(replace(options, unsupported_share=1.0)).loaders(lambda: (0, 0), Dist(), tmp_path)


@pytest.mark.parametrize("start", [mgpstr_data, siga_data], ids=["mgpstr", "siga"])
def test_words_without_a_label_are_in_no_accuracy(start, tmp_path, capsys) -> None:
    write_words(tmp_path / "evaluation" / "zh", ["中文", "ab"])
    if start is siga_data:
        words = ["--model_name", "TRBA", "--train_data", "x", "--eval_data", str(tmp_path / "evaluation")]
        [dataset] = train.evaluation_sets(parse_training(words)[0]).values()
        assert "zh: 1 words have an empty label" in capsys.readouterr().out
    else:
        network = mgpstr_flags.parse_reading(["--Transformer", "mgp-str", "--eval_data", "x"], "test_final.py").network
        dataset = mgpstr_data.make_dataset([tmp_path / "evaluation" / "zh"], network, length=None)
    assert len(dataset) == 1 and dataset.counts["empty"] == 1
