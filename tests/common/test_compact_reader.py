"""The default reader: its model, its decoding, and the rendered words that it learns from."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data.synth.options import SynthOptions
from common.errors import UserError
from common.infer.recognizer import Prediction, Recognizer, open_recognizer
from common.models.compact import CompactReader
from common.reader import data, looks, train
from common.reader.data import RenderedWords, vary
from common.reader.reader import CtcReader, open_reader
from common.text.charset import CHARSET_94


def test_the_model_is_small_and_reads_columns() -> None:
    model = CompactReader(95).eval()
    assert sum(p.numel() for p in model.parameters()) * 2 <= 6_000_000  # bytes in fp16
    assert model(torch.zeros(2, 3, 32, 128)).shape == (2, 32, 95)


def test_repeats_merge_and_confidence_is_the_best_column_of_each_run() -> None:
    reader = CtcReader(CompactReader(4), "abc", torch.device("cpu"))
    ids = np.array([[1, 1, 0, 1, 2, 0], [0, 0, 0, 0, 0, 0]])
    sure = np.array([[0.5, 0.9, 1.0, 0.8, 0.5, 1.0], [1.0] * 6])
    word, nothing = reader.decode([ids, sure])
    assert word.text == "aab" and word.char_confidences == (0.9, 0.8, 0.5)
    assert abs(word.confidence - 0.36) < 1e-9
    assert nothing.text == "" and nothing.confidence == 0.0


def test_half_precision_weights_without_counters_open(tmp_path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = CompactReader(95).eval()
    kept = {k: v.half() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "weights.safetensors")
    reader = open_reader(tmp_path / "weights.safetensors", {}, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 128)
    assert reader.charset == CHARSET_94
    torch.testing.assert_close(reader.model(images), model(images), atol=2e-2, rtol=0)


def test_a_rendered_word_depends_on_its_number_alone(tmp_path) -> None:
    options = SynthOptions(min_length=1, max_length=8, fonts=("roboto", "lobster", "arvo"))
    plain = RenderedWords(options, seed=3, length=90)
    stored = RenderedWords(options, seed=3, length=90, store=tmp_path / "store")
    for number in (7, 8, 31, 7):
        (a, text), (b, same) = plain[number], stored[number]
        assert a.shape == (32, 128, 3) and a.dtype == np.uint8 and 1 <= len(text) <= 8
        assert text == same and np.array_equal(a, b)
    fresh = RenderedWords(options, seed=3, length=90)
    assert np.array_equal(fresh[31][0], stored[31][0])


def test_another_look_keeps_the_size_and_changes_the_pixels() -> None:
    image = np.zeros((32, 128, 3), np.uint8)
    image[8:24, 20:100] = (200, 120, 40)
    looks = [vary(image, np.random.default_rng(i)) for i in range(20)]
    assert all(look.shape == image.shape and look.dtype == np.uint8 for look in looks)
    assert sum(not np.array_equal(look, image) for look in looks) > 14


def test_some_words_are_steep_and_some_are_few_pixels_as_jpeg() -> None:
    image = np.full((40, 160, 3), 255, np.uint8)
    image[18:22] = 0  # a level stroke
    turned = [data._turn(image, np.random.default_rng(i)) for i in range(200)]
    steep = [look for look in turned if look.shape != image.shape]
    assert 20 < len(steep) < 60 and all(look.dtype == np.uint8 for look in steep)
    # The stroke of a steep word crosses more rows than that of a level one.
    assert np.median([(look.min((1, 2)) < 100).sum() for look in steep]) > 12
    taken = [data._photograph(image, np.random.default_rng(i)) for i in range(200)]
    small = [look for look in taken if look.shape != image.shape]
    assert 40 < len(small) < 100 and all(10 <= len(look) <= 40 for look in small)
    same = data._photograph(image, np.random.default_rng(7))
    assert np.array_equal(same, taken[7])


def test_unsure_words_are_looked_at_again_and_the_looks_vote() -> None:
    images = torch.randint(0, 256, (3, 32, 128, 3), dtype=torch.uint8)
    asked = []

    def read(batch: torch.Tensor) -> list[Prediction]:
        asked.append(batch)
        if len(asked) == 1:
            return [Prediction("sure", 0.9), Prediction("cot", 0.5), Prediction("dog", 0.6)]
        votes = [("cat", 0.7), ("dog", 0.1)] * (len(batch) // 2)
        return [Prediction(text, confidence) for text, confidence in votes]

    first = read(images)
    found = looks.second_look(images, first, read)
    assert [word.text for word in found] == ["sure", "cat", "dog"] and found[0] is first[0]
    number = len(looks.LOOKS)
    assert len(asked[1]) == 2 * number and asked[1].dtype == torch.uint8
    assert found[1].confidence == pytest.approx(0.7 * 0.7 * number / (0.5 + 0.7 * number))
    assert found[2].confidence == pytest.approx(0.6)  # all looks agree
    assert looks.second_look(images[:1], first[:1], read) == first[:1] and len(asked) == 2  # nothing to read again


def test_looks_keep_size_and_type_and_a_plain_picture() -> None:
    grey = torch.full((2, 32, 128, 3), 77, dtype=torch.uint8)
    stroke = grey.clone()
    stroke[:, 15:17, 20:100] = 255
    for look in looks.LOOKS:
        made = look(stroke)
        assert made.shape == grey.shape and made.dtype == torch.uint8 and made.float().std() > 1
        assert torch.equal(look(grey), grey)
    assert torch.equal(looks.changed(stroke, 0.0), stroke)
    lifted = looks.changed(stroke, 0.4)[0, :, :, 0].float() - 77  # the right end stands higher, the left one lower
    heights = [float(lifted[:, x].argmax()) for x in (24, 96)]
    assert heights[1] < 15 < heights[0]


def test_one_look_can_be_asked_for_and_tall_crops_are_turned(tmp_path) -> None:
    torch.manual_seed(0)
    torch.save(CompactReader(95).state_dict(), tmp_path / "random.pth")
    crop = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    many = open_recognizer(tmp_path / "random.pth", "strlab/compact", "cpu")
    once = open_recognizer(tmp_path / "random.pth", "strlab/compact", "cpu", second_look=False)
    plain = once(crop)
    assert plain.confidence < looks.UNSURE
    assert many(crop).confidence != plain.confidence
    seen = many(crop, attention=True)
    assert seen.text == many(crop).text and len(seen.attention) == len(seen.text)
    tall = np.ascontiguousarray(np.rot90(crop, -1))
    assert np.array_equal(many.fit(tall), many.fit(crop))
    with pytest.raises(UserError, match="--single-look"):
        Recognizer(SimpleNamespace(image_size=(32, 128)), second_look=False)


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws from a small vocabulary, which is read sooner."""
    monkeypatch.setattr(train, "WORDS", replace(train.WORDS, vocabulary=2000))


def command(out, *more: str) -> list[str]:
    """A tiny run of `strlab train`: two fonts, four steps of four images."""
    return ["train", "--out", str(out), "--fonts", "roboto", "arvo", "--images", "16", "--decay_images", "8", "--batch",
            "4", "--warmup", "2", "--save_every", "2", "--eval_every", "2", "--device", "cpu", *more]  # fmt: skip


def test_training_resumes_exactly_and_writes_what_read_needs(tmp_path, capsys) -> None:
    from common.cli import main
    from common.infer.recognizer import open_recognizer
    from common.train.checkpoint import load
    from tests.common.lmdbs import write_words

    words = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
    real = write_words(tmp_path / "real", words)
    more = ("--real", str(real), "--real_share", "0.3")
    assert main(command(tmp_path / "whole", *more)) == 0
    assert main(command(tmp_path / "parts", *more, "--max_steps", "2")) == 0
    assert main(command(tmp_path / "parts", *more)) == 0
    assert "resumes at step 2" in capsys.readouterr().out
    whole, parts = (load(tmp_path / name / "training_state-000000004.pth") for name in ("whole", "parts"))
    for part in ("model", "optimizer"):
        assert str(whole[part]) == str(parts[part])
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for name, value in whole["parts"]["average"].items():
        assert torch.equal(value, parts["parts"]["average"][name]), name
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and rows[0]["sets"]["real"]["words"] > 0
    assert "Validation words read right" in (tmp_path / "parts" / "progress.svg").read_text()
    recognizer = open_recognizer(tmp_path / "whole" / "best.pth", device="cpu")
    assert recognizer.name == "strlab/compact"


def test_the_length_may_change_until_the_rate_falls_and_nothing_else_that_decides(tmp_path, capsys) -> None:
    from common.cli import main

    out = tmp_path / "run"
    assert main(command(out, "--max_steps", "1")) == 0
    for more, told in (
        (("--lr", "0.01"), "--lr 0.001 -> 0.01"),
        (("--batch", "2"), "--batch 4 -> 2"),
        (("--images", "8", "--decay_images", "8"), "falls from 0 on"),
    ):
        assert main(command(out, *more)) == 2
        error = capsys.readouterr().err
        assert told in error and len(error.splitlines()) == 1
    longer = ("--images", "24", "--decay_images", "12", "--eval_every", "1", "--max_steps", "4")
    assert main(command(out, *longer)) == 0  # not begun: 4 of 24 images are seen, and the rate falls after 12
    assert main(command(out, "--images", "40")) == 2
    assert "16 images were seen and the rate falls from 12 on" in capsys.readouterr().err


def test_words_that_cannot_be_learnt_are_counted(tmp_path, capsys) -> None:
    from common.cli import main
    from tests.common.lmdbs import write_words

    words = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
    real = write_words(tmp_path / "real", [*words, "x" * 26, "\u00e9\u00e8"])
    assert main(command(tmp_path / "run", "--real", str(real), "--max_steps", "1")) == 0
    out = capsys.readouterr().out
    assert "1 longer than 25 characters; 1 without one of the 94 characters" in out
    assert "real words: 23 to learn, 1 kept back" in out


def test_the_averaged_weights_of_a_state_are_what_it_opens_with(tmp_path) -> None:
    from common.cli import main
    from common.train.checkpoint import load

    assert main(command(tmp_path / "run")) == 0
    state = load(tmp_path / "run" / "training_state-000000004.pth")
    reader = open_reader(tmp_path / "run" / "training_state-000000004.pth", {}, torch.device("cpu"))
    average = state["parts"]["average"]["model.head.weight"]
    assert torch.equal(reader.model.head.weight, average)
    assert not torch.equal(average, state["model"]["head.weight"])


def test_weights_of_another_charset_are_refused(tmp_path, capsys) -> None:
    from common.cli import main

    torch.save(CompactReader(37).state_dict(), tmp_path / "36.pth")
    assert main(command(tmp_path / "run", "--init", str(tmp_path / "36.pth"))) == 2
    assert "its charset has 36 characters and not 94" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"36 characters and not 94.*--model"):
        open_reader(tmp_path / "36.pth", {}, torch.device("cpu"))


def test_validation_words_are_never_trained_on(tmp_path) -> None:
    from common.reader.data import RealWords, is_validation, validation_words
    from tests.common.lmdbs import write_words

    words = [f"{a}{b}{c}" for a in "abcdef" for b in "stuvw" for c in "xyz"]
    folder = write_words(tmp_path / "set", words)
    real, (_, labels) = RealWords([folder]), validation_words([folder])["set"]
    trained = {real.words.label(i) for i in real.numbers}
    assert trained.isdisjoint(labels) and trained | set(labels) == set(words) and labels
    assert is_validation(labels[0].upper() + "!")  # neither case nor punctuation moves a word over


def test_wrong_options_are_refused_in_one_line(tmp_path, capsys) -> None:
    from common.cli import main

    for more, word in (
        (("--real_share", "0.5"), "--real"),
        (("--unsupported_share", "2"), "from 0 to 1"),
        (("--batch", "0"), "--batch"),
    ):
        assert main([*command(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err
        assert word in error and len(error.splitlines()) == 1


def test_a_released_reader_has_four_files_that_read_alike(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    from common.infer import shipped
    from common.infer.recognizer import open_recognizer
    from common.reader import release
    from tests.common.lmdbs import noise, write_words

    torch.manual_seed(0)
    torch.save(CompactReader(95).state_dict(), tmp_path / "trained.pth")
    data, out = write_words(tmp_path / "set", ["cat", "Dog", "x7"]), tmp_path / "weights"
    words = [str(tmp_path / "trained.pth"), "--name", "small", "--data", str(data), "--images", "5"]
    monkeypatch.setattr(release, "CALIBRATION", 8)
    monkeypatch.setattr(release, "WORDS", SynthOptions(max_length=6, fonts=("roboto", "arvo")))
    assert release.main([*words, "--trained-on", "nothing", "--terms", "none", "--out", str(out)]) in (0, None)
    names = {path.name for path in out.iterdir()}
    assert names == {"small.safetensors", "small.json", "small.onnx", "small.int8.onnx"}
    monkeypatch.setattr(shipped, "ROOTS", (out,))
    one = shipped.find("small")
    one.check()
    assert one.metadata["accuracy"][0]["words"] == 3 and "accuracy_int8" in one.metadata
    picture = noise(5, 32, 128)
    texts = {e: open_recognizer(one.path, device="cpu", engine=e)(picture).text for e in ("torch", "onnx")}
    assert texts["torch"] == texts["onnx"]
    assert open_recognizer(one.path, device="cpu", engine="int8")(picture).confidence >= 0
