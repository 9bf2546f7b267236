"""Labels outside the charset, another charset, and names of wrapped models, in DiG's fine-tuning."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from common.infer.recognizer import open_recognizer
from common.models.weights import add_prefix
from common.train.checkpoint import load
from projects.dig import run_class_finetuning
from projects.dig.files import charset_of, load_by_character, load_pretrained, state_of
from projects.dig.model.recogniser import build_recogniser
from tests.common.lmdbs import noise, write_words
from tests.dig.runs import finetune, write_corpus

MODEL = "simmim_vit_micro_patch8_32x128"
PLATES = Path(os.environ.get("STRLAB_REAL_DATA", "shared/data/real")) / "plates_cn_lprnet"


def recogniser(**options):
    return build_recogniser(MODEL, decoder_name="micro_tf_decoder", **options)


def test_labels_outside_the_charset_are_counted_and_limited(tmp_path: Path, capsys) -> None:
    corpus = write_corpus(tmp_path)
    foreign = write_words(tmp_path / "foreign", ["ab", "cat", "dog", "Caf\u00e9"] * 3)
    words = finetune(corpus, tmp_path / "out", "--data_path", foreign, "--max_steps", 1)
    assert run_class_finetuning.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: labels: 3 of 12 (25.0%, limit 5.0%) have characters outside the charset: ")
    assert "'\u00e9' x 3" in error and "--charset_file" in error and error.count("\n") == 1
    assert run_class_finetuning.main([*words, "--unsupported_share", "0.25"]) == 0
    assert f"{foreign}: 3 of 12 labels have characters outside the charset" in capsys.readouterr().out


def test_labels_without_letters_and_digits_are_in_no_accuracy(tmp_path: Path, capsys) -> None:
    """As published they count as read where nothing is read: `--legacy-empty`."""
    corpus = write_corpus(tmp_path)
    symbols = write_words(tmp_path / "symbols", ["!", "\u4e2d", "ab"])
    torch.save({"model": recogniser().state_dict()}, tmp_path / "model.pth")
    words = finetune(
        corpus, tmp_path / "out", "--eval", "--resume", tmp_path / "model.pth", "--eval_data_path", symbols
    )
    assert run_class_finetuning.main(words) == 0
    output = capsys.readouterr().out
    assert "1 of 3 labels have characters outside the charset" in output
    assert "2 words have an empty label in this charset and are in no accuracy" in output
    assert f"* {symbols}: 1 images, " in output
    assert run_class_finetuning.main([*words, "--legacy-empty"]) == 0
    assert f"* {symbols}: 3 images, " in capsys.readouterr().out


@pytest.mark.parametrize("prefixes", [["module."], ["_orig_mod."], ["module.", "_orig_mod."], ["model.", "module."]])
def test_names_of_wrapped_models(prefixes: list[str]) -> None:
    torch.manual_seed(0)
    given = recogniser()
    state = given.state_dict()
    for prefix in prefixes:
        state = add_prefix(state, prefix)
    assert set(state_of({"model": state})) == set(given.state_dict())
    fresh = recogniser()
    report = load_pretrained(fresh, state)
    assert not report.missing and torch.equal(fresh.encoder.mask_token, given.encoder.mask_token)


@pytest.mark.parametrize("decoder", ["tf_decoder", "attention"])
def test_rows_move_by_character(decoder: str, capsys) -> None:
    torch.manual_seed(0)
    before, after = "abc", "c\u4eacb"
    old, new = (build_recogniser(MODEL, decoder_name="micro_tf_decoder", decoder_type=decoder, classes=6) for _ in "ab")
    fresh = [parameter.clone() for parameter in tables(new, decoder)]
    load_by_character(new, old.state_dict(), before, after, "x.pth")
    for number, (source, moved, drawn) in enumerate(zip(tables(old, decoder), tables(new, decoder), fresh)):
        specials = range(3, 6 + (number == 0))  # the embedding has the begin too
        for here, there in [(0, 2), (2, 1), *((i, i) for i in specials)]:
            assert torch.equal(moved[here], source[there])
        assert torch.equal(moved[1], drawn[1])  # a new character
    output = capsys.readouterr().out
    assert "new         1 characters  \u4eac" in output and "dropped     1 characters  a" in output


def tables(model, decoder: str) -> list[torch.Tensor]:
    """Embedding, weight and bias of the classifier."""
    inner = model.decoder.decoder if decoder == "attention" else model.decoder
    names = ("tgt_embedding", "fc") if decoder == "attention" else ("trg_word_emb", "classifier")
    embedding, classifier = (getattr(inner, name) for name in names)
    return [embedding.weight.detach(), classifier.weight.detach(), classifier.bias.detach()]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_another_alphabet_trains_from_a_reader_of_latin(tmp_path: Path, capsys) -> None:
    """`--init` with `--charset_file`: the loss falls, the checkpoint knows its charset, and it is read and resumed."""
    torch.manual_seed(0)
    corpus = write_corpus(tmp_path)
    data, letters = PLATES, None
    if data.is_dir():
        from common.data.words import WordDataset

        found = WordDataset([data], drop_empty=False)
        letters = "".join(sorted({character for i in range(len(found)) for character in found.label(i)}))
    else:
        data = write_words(tmp_path / "plates", ["\u4eacA1", "\u6caaB2", "\u7ca4C3", "\u4eacD4"] * 4)
        letters = "".join(sorted("\u4eac\u6caa\u7ca4ABCD1234"))
    (tmp_path / "charset.txt").write_text("\n".join(letters) + "\n", "utf-8")
    torch.save({"model": recogniser().state_dict()}, tmp_path / "latin.pth")
    words = [word for word in finetune(corpus, tmp_path / "out") if word not in ("--nb_classes", "97")]
    words += ["--data_path", str(data), "--charset_file", str(tmp_path / "charset.txt"), "--batch_size", "8"]
    words += ["--init", str(tmp_path / "latin.pth"), "--max_steps", "30", "--epochs", "40", "--lr", "4e-2"]
    words += ["--num_view", "1", "--layer_decay", "1", "--warmup_epochs", "0", "--disable_eval_during_finetuning"]
    words += ["--drop", "0", "--attn_drop_rate", "0", "--drop_path", "0", "--bad_share", "0.5"]
    assert run_class_finetuning.main(words) == 0
    output = capsys.readouterr().out
    assert f"charset.txt: {len(letters)} characters, from " in output and "kept " in output and "new " in output
    curve = losses(tmp_path / "out")
    assert curve[-1] < 0.8 * curve[0], curve
    newest = sorted((tmp_path / "out").glob("checkpoint-*.pth"))
    if newest:
        assert charset_of(newest[-1], len(letters) + 3) == letters
        reader = open_recognizer(newest[-1], device="cpu")
        assert reader.reader.charset == letters and all(set(word.text) <= set(letters) for word in reader([noise(0)]))
    assert load(tmp_path / "out" / "training_state.pth")["step"] == 30


def test_start_from_two_files_is_refused(tmp_path: Path, capsys) -> None:
    words = finetune(write_corpus(tmp_path), tmp_path / "out", "--init", "a.pth", "--finetune", "b.pth")
    assert run_class_finetuning.main(words) == 2
    assert "--init" in capsys.readouterr().err
