"""MGP-STR's scripts: files in the published form, where a run starts, ACDS's boxes, test, demo, tools."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.lmdb import LmdbWriter, WordLmdb
from common.train.checkpoint import load
from projects.mgpstr import create_lmdb_dataset, demo, test_final, train_final_dist
from projects.mgpstr.data_convert import Refused, boxes_of, convert_acds, string_table
from tests.mgpstr import corpus as mgpstr_corpus
from tests.mgpstr.corpus import ACDS, CHARACTERS, MICRO, command, write_corpus
from tests.siga.corpus import crop

STATE = "training_state-{:09d}.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("mgpstr"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of four steps with all its states."""
    out = tmp_path_factory.mktemp("whole")
    more = ("--isrand_aug", "--scheduler", "--save_interval=2", "--keep_states=0", "--checkpoint_interval=2")
    assert train_final_dist.main(command(corpus, out, *more)) == 0
    return out / "run-Seed1111"


def test_files_in_the_published_form(whole: Path) -> None:
    state = load(whole / "iter_2.pth")
    assert all(name.startswith("module.mgp_str.") for name in state) and "module.mgp_str.char_head.weight" in state
    assert set(load(whole / "best_accuracy.pth")) == set(state)
    card = json.loads((whole / "best_accuracy.pth.json").read_text())
    assert card["model"] == "mgpstr/char_str_micro_patch16x8_3_32_128"
    options = (whole / "opt.txt").read_text()
    assert options.startswith("------------ Options -------------\n") and "batch_size: 4\n" in options
    assert options.endswith("Trainable network params num : 864,844")
    log = (whole / "log_train.txt").read_text().splitlines()
    assert log[1].startswith("[1/4] LR: 1.00000, Train loss: ") and ", Valid loss: " in log[1]
    assert log[2].startswith("char_accuracy    : ") and ", fused_accuracy   : " in log[2]
    assert log[3].startswith("Best_accuracy    : ")
    assert log[5] == f"{'Ground Truth':25s} | {'Prediction':25s} | Confidence Score & T/F"


def test_log_dataset_in_the_published_form(whole: Path, corpus: Path) -> None:
    root, dashes = corpus / "training", "-" * 80
    lines = (whole / "log_dataset.txt").read_text().splitlines()
    assert lines[:21] == [
        dashes, f"dataset_root: {root}", "opt.select_data: ['MJ', 'ST']", "opt.batch_ratio: ['0.5', '0.5']",
        dashes, f"dataset_root:    {root}\t dataset: MJ", "sub-directory:\t/MJ\t num samples: 10",
        "num total samples of MJ: 10 x 1.0 (total_data_usage_ratio) = 10",
        "num samples of MJ per batch: 4 x 0.5 (batch_ratio) = 2",
        dashes, f"dataset_root:    {root}\t dataset: ST", "sub-directory:\t/ST\t num samples: 10",
        "num total samples of ST: 10 x 1.0 (total_data_usage_ratio) = 10",
        "num samples of ST per batch: 4 x 0.5 (batch_ratio) = 2",
        dashes, "Total_batch_size: 2+2 = 4", dashes,
        *(f"{root / name}: all 10 labels are within the charset" for name in ("MJ", "ST")),
        "skipped samples: none", "start: random weights",
    ]  # fmt: skip


def test_changes_can_be_allowed(whole: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    words = ["--isrand_aug", "--scheduler", "--rho=0.9", "--allow_changes", f"--resume={whole / STATE.format(2)}"]
    assert train_final_dist.main(command(corpus, tmp_path, *words)) == 0
    assert "--rho: 0.95 -> 0.9" in capsys.readouterr().out
    state = load(tmp_path / "run-Seed1111" / STATE.format(4))
    assert [group["rho"] for group in state["optimizer"]["param_groups"]] == [0.9]
    assert train_final_dist.main(command(corpus, tmp_path / "b", *words, "--adam")) == 2


def test_saved_model_continues_at_its_number(whole: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    words = command(corpus, tmp_path, f"--saved_model={whole / 'iter_2.pth'}", "--num_iter=3")
    assert train_final_dist.main(words) == 0
    assert "at step 2" in capsys.readouterr().out
    assert load(tmp_path / "run-Seed1111" / STATE.format(3))["step"] == 3


def test_other_numbers_in_a_name_are_no_step(whole: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    """The published files end in `_32_128.pth`; a start at the end is refused instead of training nothing."""
    published = tmp_path / "char_str_base_patch4_32_128.pth"
    shutil.copy(whole / "iter_2.pth", published)
    assert train_final_dist.main(command(corpus, tmp_path, f"--saved_model={published}", "--num_iter=1")) == 0
    assert "at step 0" in capsys.readouterr().out
    for number in (1, 2):
        words = command(corpus, tmp_path / "b", f"--saved_model={whole / 'iter_2.pth'}", f"--num_iter={number}")
        assert train_final_dist.main(words) == 2
        assert f"--num_iter: {number}: {whole / 'iter_2.pth'} is at step 2" in capsys.readouterr().err
    words = command(corpus, tmp_path, "--isrand_aug", "--scheduler", f"--resume={whole / STATE.format(4)}")
    assert train_final_dist.main(words) == 0
    assert "this run has done its 4 steps" in capsys.readouterr().out
    assert train_final_dist.main([*words, "--num_iter=3"]) == 2


def test_all_three_heads_and_acds_train(corpus: Path, tmp_path: Path) -> None:
    """Two steps each; ACDS on box masks with the augmentations that move nothing."""
    assert train_final_dist.main(command(corpus, tmp_path / "a", "--num_iter=1", "--PAD", model=MICRO)) == 0
    more = ("--is_mask_supervision", "--isrand_aug", "--num_iter=2", "--freeze")
    assert train_final_dist.main(command(corpus, tmp_path / "b", *more, model=ACDS)) == 0
    rows = [json.loads(line) for line in (tmp_path / "b/run-Seed1111/metrics.jsonl").read_text().splitlines()]
    assert {"loss", "loss/char", "loss/mask", "lr", "images_per_second"} <= set(rows[0])


def test_adam_and_bf16(corpus: Path, tmp_path: Path) -> None:
    more = (
        "--adam",
        "--beta2=0.98",
        "--subword_weight=0.1",
        "--lr=0.001",
        "--amp=bf16",
        "--lr_warmup=1",
        "--scheduler",
        "--lr_period=3",
        "--num_iter=2",
    )
    assert train_final_dist.main(command(corpus, tmp_path, *more)) == 0


def test_test_final(whole: Path, corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    base = [*CHARACTERS, "--data_filtering_off", "--rgb", "--workers=0", "--device=cpu"]
    base.append(f"--eval_data={corpus / 'evaluation'}")
    best = f"--model_dir={whole / 'best_accuracy.pth'}"
    assert test_final.main([*base, "--benchmark_all_eval", "--fast_acc", best]) == 0
    printed = capsys.readouterr().out
    assert "not there, skipped: IC13_857" in printed and "fused_total_Acc:" in printed
    [folder] = (tmp_path / "result").iterdir()
    assert folder.name.endswith("run-Seed1111_best_accuracy.pth")
    names = {"best_accuracy.pth", "log_all_evaluation.txt", "evaluation.json", "errors.tsv"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "evaluation.json").read_text())["sets"]["SVT"]["words"] == 4
    dashes, root = "-" * 80, corpus / "evaluation" / "SVT"
    log = (folder / "log_all_evaluation.txt").read_text().splitlines()
    assert log[:3] == [dashes, f"dataset_root:    {root}\t dataset: /", "sub-directory:\t/.\t num samples: 4"]
    # as published, the dashes follow the accuracies without a line feed in the file; the console has both
    assert re.fullmatch(r"char_Acc \S+\t bpe_Acc 0.000\t wp_Acc 0.000\t fused_Acc [\d.]+" + dashes, log[3])
    assert re.search(r"\n(char_Acc \S+\t bpe_Acc 0.000\t wp_Acc 0.000\t  fused_Acc [\d.]+)\n" + dashes, printed)
    assert log[7] == "accuracy: " and [line.split(":")[0] for line in log[8:14]] == [
        "char_total_Acc", "bpe_total_Acc", "wp_total_Acc", "fused_total_Acc", "averaged_infer_time",
        "mean of the sets, fused",
    ]  # fmt: skip
    assert test_final.main([*base, f"--model_dir={whole}", "--range=3-9", "--calculate_infer_time", "--flops"]) == 0
    printed = capsys.readouterr().out
    assert "iter_4.pth" in printed and "iter_2.pth" not in printed and "GFLOP" in printed
    assert test_final.main([*base, f"--model_dir={whole}"]) == 0
    assert "fused_acc  model" in capsys.readouterr().out


def test_lists_of_images(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(crop("cat", 0))
    (tmp_path / "words.txt").write_text("cat a.png\nDog missing.png\n")
    words = [*CHARACTERS, "--eval_img", "--eval_data=.", "--device=cpu", f"--model_dir={whole / 'iter_2.pth'}"]
    assert test_final.main(words) == 0
    assert "missing.png: skipped" in capsys.readouterr().out
    [listed] = tmp_path.rglob("bad_samples.csv")
    assert listed.read_text().splitlines()[1].startswith("words.txt,2,missing.png")


def test_unreadable_pictures_are_counted_and_listed(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with LmdbWriter(tmp_path / "data" / "SVT") as writer:
        for index, word in enumerate(("cat", "dog", "map")):
            writer.add(b"no picture" if word == "dog" else crop(word, index), word)
    words = [*CHARACTERS, "--workers=0", "--device=cpu", "--batch_size=1", f"--eval_data={tmp_path / 'data'}"]
    words += ["--benchmark_all_eval", f"--model_dir={whole / 'iter_2.pth'}"]
    assert test_final.main(words) == 0
    assert "unreadable, not counted: SVT 1\n" in capsys.readouterr().out
    [folder] = (tmp_path / "result").iterdir()
    assert json.loads((folder / "evaluation.json").read_text())["sets"]["SVT"]["unreadable"] == 1
    listed = (folder / "bad_samples.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith(f"{tmp_path / 'data' / 'SVT'},2,")
    assert test_final.main([*words, "--result_path=/proc/nowhere"]) == 2
    assert "--result_path: /proc/nowhere" in capsys.readouterr().err


def test_case_is_kept_as_in_training(corpus: Path, tmp_path: Path, capsys) -> None:
    """`--sensitive` stands in the card, so that testing does not lower the labels."""
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1", "--sensitive", model=MICRO)) == 0
    assert 'bpe: the ids of " # !' in capsys.readouterr().out
    with LmdbWriter(tmp_path / "data" / "SVT") as writer:
        writer.add(crop("cat", 0), "Cat")
    words = [*MICRO, "--workers=0", "--device=cpu", f"--eval_data={tmp_path / 'data'}"]
    words += [f"--model_dir={tmp_path / 'run-Seed1111' / 'best_accuracy.pth'}", f"--result_path={tmp_path / 'result'}"]
    assert test_final.main(words) == 0
    printed = capsys.readouterr().out
    assert "--sensitive=True" in printed and 'bpe: the ids of " # !' in printed
    [folder] = (tmp_path / "result").iterdir()
    assert (folder / "errors.tsv").read_text().splitlines()[1].startswith("Cat\t")


@pytest.mark.parametrize("method", ["heads", "acds"])
def test_demo(method: str, corpus: Path, tmp_path: Path, capsys) -> None:
    model, more = (MICRO, ()) if method == "heads" else (ACDS, ("--is_mask_supervision",))
    assert train_final_dist.main(command(corpus, tmp_path, "--num_iter=1", *more, model=model)) == 0
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for word in ("cat", "map"):
        (pictures / f"{word}.png").write_bytes(crop(word, 0))
    (pictures / "broken.jpg").write_bytes(b"no image")
    capsys.readouterr()
    checkpoint = tmp_path / "run-Seed1111" / "best_accuracy.pth"
    words = [*model, f"--model_dir={checkpoint}", f"--demo_imgs={pictures}", "--device=cpu"]
    assert demo.main(words) == 0
    printed = capsys.readouterr().out
    heads = ("char: ", "bpe: ", "wp: ", "fused: ") if method == "heads" else ("char: ", "fused: ")
    assert all(printed.count(f"\n{head}") == 2 for head in heads) and "skipped: " in printed
    sheets = sorted((pictures / "attens").iterdir())
    read = re.findall(r"\nchar: (\S*) ", printed)
    kind, texts = ("char.jpg", read) if method == "heads" else ("map.png", re.findall(r"\nfused: (\S*) ", printed))
    assert [sheet.name for sheet in sheets] == [f"cat_{texts[0]}_{kind}", f"map_{texts[1]}_{kind}"]
    shapes = [cv2.imread(str(sheet)).shape for sheet in sheets]
    if method == "heads":  # two columns of 128 pixels, a line for the crop and one for each character, gaps of two
        assert shapes == [(34 * (len(text) + 1) + 2, 262, 3) for text in texts]
        assert demo.main([*words, "--sheets"]) == 0 and len(list((pictures / "attens").glob("*_heads.png"))) == 2


def test_create_lmdb_dataset(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(crop("cat", 0))
    (tmp_path / "gt.txt").write_text("a.png\tcat\nmissing.png\tdog\n")
    words = [f"--inputPath={tmp_path}", f"--gtFile={tmp_path / 'gt.txt'}", f"--outputPath={tmp_path / 'out'}"]
    assert create_lmdb_dataset.main(words) == 0
    assert "Created dataset with 1 samples" in capsys.readouterr().out
    assert WordLmdb(tmp_path / "out").label(0) == "cat"
    assert create_lmdb_dataset.main(words[:2]) == 2


def pickled(word: str) -> bytes:
    table = {str([box[:2], box[2:4]]): box[4] for box in mgpstr_corpus.boxes_of(word)} | {"word": word}
    return pickle.dumps(table)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_labels_are_read_without_unpickling(protocol: int) -> None:
    table = {"[[3, 2], [20, 30]]": "T", "[[24, 3], [45, 29]]": "T", "word": "TT"}
    assert string_table(pickle.dumps(table, protocol)) == table
    assert boxes_of(table) == ("TT", [(3, 2, 20, 30, "T"), (24, 3, 45, 29, "T")])


def test_pickles_with_code_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for thing in (Trap(), {"word": Trap()}, {"a": 1}, ["word"], {"[[0, 0], [1, 1]]": "a"}):
        with pytest.raises(Refused):
            boxes_of(string_table(pickle.dumps(thing)))
    for data in (b"", b"\x80\x04", pickle.dumps({"word": "a"})[:-3]):
        with pytest.raises(Refused):
            string_table(data)
    with pytest.raises(Refused, match="pair of points"):
        boxes_of({"__import__('os').system('x')": "a", "word": "a"})
    assert not (tmp_path / "ran").exists()


def test_convert_acds(tmp_path: Path) -> None:
    outside = pickle.dumps({"[[0, 0], [500, 10]]": "a", "word": "a"})
    corners = pickle.dumps({"[[1, 1], [9, 1], [9, 9], [1, 9]]": "a", "word": "a"})
    flat = pickle.dumps({"[[1, 5], [9, 5]]": "a", "word": "a"})
    with LmdbWriter(tmp_path / "old") as writer:
        labels = (pickled("cat"), outside, b"dog", corners, flat)
        for index, (word, label) in enumerate(zip(("cat", "a", "dog", "a", "a"), labels)):
            writer.add_value("label", writer.add(crop(word, index), None), label)
    written, bad = convert_acds(tmp_path / "old", tmp_path / "new")
    assert written == 1 and [sample.number for sample in bad] == [2, 3, 4, 5]
    assert "outside the picture's width" in bad[0].reason
    assert "bottom right corners" in bad[2].reason and "is flat" in bad[3].reason
    new = WordLmdb(tmp_path / "new")
    assert new.label(0) == "cat" and json.loads(new.value("boxes", 0)) == mgpstr_corpus.boxes_of("cat")


def test_png_header_is_enough() -> None:
    """`crop` makes what the tests say: 48x24 pixels."""
    assert cv2.imdecode(np.frombuffer(io.BytesIO(crop("a", 0)).getvalue(), np.uint8), 1).shape == (24, 48, 3)


def test_a_source_with_a_hyphen_in_its_name(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "training"
    shutil.copytree(corpus / "training" / "MJ", root / "MJ")
    shutil.copytree(corpus / "training" / "ST", root / "my-data")
    words = command(corpus, tmp_path, f"--train_data={root}", "--select_data=MJ-my-data", "--num_iter=1")
    assert train_final_dist.main(words) == 0
    log = (tmp_path / "run-Seed1111" / "log_dataset.txt").read_text()
    assert "opt.select_data: ['MJ', 'my-data']" in log and "Total_batch_size: 2+2 = 4" in log
