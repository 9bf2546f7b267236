"""Vocabularies, label codes and box masks of MGP-STR: hashes, refusals, odd labels."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from common.text.charset import CHARSET_94
from common.text.codecs import LabelError
from projects.mgpstr import vocabularies
from projects.mgpstr.box_masks import check_boxes, mask_from_boxes, parse_boxes
from projects.mgpstr.label_codes import LabelCodes, clean_up

CODES = LabelCodes("0123456789abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("name", vocabularies.SHA256)
def test_committed_vocabularies(name: str) -> None:
    data = lzma.decompress((vocabularies.FOLDER / f"{name}.xz").read_bytes())
    assert hashlib.sha256(data).hexdigest() == vocabularies.SHA256[name]


def test_vocabulary_sizes() -> None:
    table, merges = vocabularies.gpt2()
    assert (len(table), len(merges), len(vocabularies.bert())) == (50257, 50000, 30522)


def test_missing_and_changed_vocabularies(tmp_path: Path) -> None:
    name = "bert_base_uncased_vocab.txt"
    with pytest.raises(UserError, match="is missing"):
        vocabularies.read(name, tmp_path)
    (tmp_path / name).write_text("[PAD]\n")
    with pytest.raises(UserError, match="SHA-256"):
        vocabularies.read(name, tmp_path)
    (tmp_path / f"{name}.xz").write_bytes(b"not compressed")
    with pytest.raises(UserError, match="cannot be unpacked"):
        vocabularies.read(name, tmp_path)
    shutil.copy(vocabularies.FOLDER / f"{name}.xz", tmp_path)
    assert vocabularies.read(name, tmp_path).startswith(b"[PAD]\n[unused0]\n")


def test_labels_that_do_not_fit() -> None:
    assert CODES.fits("x" * 25) and not CODES.fits("x" * 26) and not CODES.fits("A")
    with pytest.raises(LabelError, match="26 characters"):
        CODES.encode(["x" * 26])
    wide = LabelCodes("中文字")  # each is three bytes, up to three BPE tokens
    with pytest.raises(LabelError, match="bpe positions, the model has 27"):
        wide.encode(["字" * 25])


def test_pieces_beyond_the_length_are_cut_and_the_end_stays() -> None:
    """A Hangul syllable falls apart into up to three pieces."""
    short = LabelCodes("\ud55c", 1, ("char", "wp"))
    (ids,) = short.encode(["\ud55c"])["wp"]
    assert len(short["wp"]._tokenizer.encode("\ud55c").ids) == 3
    assert len(ids) == 3 and ids[0] == 101 and ids[2] == 102


def test_symbols_whose_ids_mark_start_end_and_padding() -> None:
    assert CODES.collision() == LabelCodes(CHARSET_94, granularities=("char", "wp")).collision() == ""
    assert 'the ids of " # ! are' in LabelCodes(CHARSET_94).collision()


def test_clean_up() -> None:
    assert clean_up("it 's n't . done ?") == "it'sn't. done?"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no character boxes"),
        (b"{", "must be JSON"),
        (b"[[1, 2, 3]]", "must be JSON"),
        (b'[["a", 2, 3, 4, "x"]]', "must be JSON"),
        (b'[[1, 2, NaN, 4, "x"]]', "not finite"),
        (b'[[1, 2, 3, 1e999, "x"]]', "not finite"),
    ],
)
def test_malformed_boxes(data: bytes | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_boxes(data, "boxes-000000001")


def test_boxes_outside_the_picture() -> None:
    assert check_boxes([(0, 0, 10, 10, "a")], 40, 20) == ""
    assert "width of 40" in check_boxes([(0, 0, 60, 10, "a")], 40, 20)
    assert "height of 20" in check_boxes([(0, -5, 6, 10, "a")], 40, 20)
    assert "not finite" in check_boxes([(0, float("nan"), 6, 10, "a")], 40, 20)
    assert "is flat" in check_boxes([(2, 5, 12, 5, "a")], 40, 20)
    assert mask_from_boxes([(-100, -100, -60, -60, "a")], 128, 32).sum() == 0
