"""`strlab eval`: figures, files, counts of what could not be read, and the report made from them."""

from __future__ import annotations

import csv
import doctest
import json
from pathlib import Path

import pytest

from common import cli
from common.data.lmdb import LmdbWriter
from common.infer import peers, published
from common.infer.evaluate import evaluate, find_sets, writes
from common.infer.recognizer import open_recognizer
from common.metrics import calibration
from common.report.standard import cells_of, read_predictions
from tests.common import toy
from tests.common.lmdbs import write_words


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets: `one` with a, A (read right without case), b read for c, "!", a broken image; `deep/two` with c."""
    toy.install(monkeypatch)
    toy.save_toy(tmp_path / "toy.pth")
    root = tmp_path / "evaluation"
    root.mkdir()
    with LmdbWriter(root / "one") as writer:
        for image, label in [("a", "a"), ("a", "A"), ("b", "c"), ("b", "!")]:
            writer.add(toy.crop(image), label)
        writer.add(b"broken", "a")
    (root / "deep").mkdir()
    with LmdbWriter(root / "deep" / "two") as writer:
        writer.add(toy.crop("c"), "c")
    return root


def run(data: Path, *flags: str, checkpoint: Path | None = None) -> int:
    checkpoint = str(checkpoint or data.parent / "toy.pth")
    return cli.main(
        [
            "eval",
            "--checkpoint",
            checkpoint,
            "--model",
            "toy/brightness",
            "--device",
            "cpu",
            "--data",
            str(data),
            *flags,
        ]
    )


def test_figures_and_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--out", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "deep/two" in out and "weighted" in out and "1 skipped" in out and "fp32 on cpu" in out
    result = json.loads((tmp_path / "out" / "eval.json").read_text())
    sets = {one["name"]: one for one in result["sets"]}
    one = sets["one"]
    assert (one["samples"], one["read"], one["unreadable"], one["missing"]) == (5, 4, 1, 0)
    assert one["protocols"]["36"]["n"] == 3 and one["protocols"]["36"]["accuracy"] == pytest.approx(66.6667)
    assert one["protocols"]["62"]["accuracy"] is None  # the toy writes no capitals: a dash
    assert one["protocols"]["94"]["n"] == 4 and one["protocols"]["94"]["accuracy"] is None
    assert (one["protocols"]["36"]["low"], one["protocols"]["36"]["high"]) == pytest.approx((20.766, 93.851), abs=1e-3)
    assert result["totals"]["weighted"]["protocols"]["36"]["accuracy"] == pytest.approx(75.0)
    assert result["totals"]["unweighted"]["protocols"]["36"]["accuracy"] == pytest.approx(83.3333)
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 5 and {row["correct_36"] for row in rows} == {"", "0", "1"}
    assert {row["correct_exact"] for row in rows} == {"0", "1"} and one["protocols"]["exact"]["n"] == 4
    assert [row["number"] for row in csv.DictReader((tmp_path / "out" / "bad_samples.csv").open())] == ["5"]


def test_other_alphabets_count_exactly(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "LETTERS", "\u03b1\u03b2\u03b3")
    with LmdbWriter(data / "greek") as writer:
        writer.add(toy.crop("a"), "\u03b1")
        writer.add(toy.crop("b"), "\u03b1")
        writer.add_value("image", 2, toy.crop("b"))
        writer.add_value("label", 3, b"a")
    recognizer = open_recognizer(data.parent / "toy.pth", "toy/brightness", "cpu")
    evaluation = evaluate(recognizer, {"greek": data / "greek"}, progress=False)
    (row,) = evaluation.as_dict()["sets"]
    assert row["protocols"]["94"]["n"] == 0 and row["protocols"]["exact"]["accuracy"] == 50.0
    assert row["missing"] == 2 and [(bad.number, bad.reason.split(" in ")[0]) for bad in evaluation.bad] == [
        (3, "no label-000000003"),
        (4, "no image-000000004"),
    ]


def test_every_set_has_a_name_of_its_own(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a/evaluation", "b/evaluation", "c/evaluation")]
    for root in roots:
        write_words(root / "SVT", ["x"])
    (tmp_path / "link").symlink_to(roots[0])
    sets = find_sets([*roots, roots[0], tmp_path / "link", roots[1] / "SVT"])
    assert sets == dict(zip(("SVT", "evaluation/SVT", "c/evaluation/SVT"), (root / "SVT" for root in roots)))


def test_selection_and_limit(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(find_sets([data])) == ["deep/two", "one"] and list(find_sets([data / "one"])) == ["one"]
    assert run(data, "--select", "two") == 0 and "one" not in capsys.readouterr().out.splitlines()[1]
    recognizer = open_recognizer(data.parent / "toy.pth", "toy/brightness", "cpu")
    assert evaluate(recognizer, find_sets([data]), max_samples=2, progress=False).scores.weighted().samples == 3


def test_a_set_that_cannot_be_read_at_all_stops(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LmdbWriter(tmp_path / "broken") as writer:
        writer.add(b"broken", "a")
    assert run(tmp_path / "broken") == 2
    assert "strlab doctor" in capsys.readouterr().err
    assert run(tmp_path / "absent") == 2


def test_cells_of_the_report(data: Path, tmp_path: Path) -> None:
    assert run(data, "--out", str(tmp_path / "out")) == 0
    rows = read_predictions(tmp_path / "out" / "predictions.csv")
    recognizer = open_recognizer(data.parent / "toy.pth", "toy/brightness", "cpu")
    cells = cells_of(recognizer, rows, find_sets([data]), attention=True)
    assert [cell.title for cell in cells] == ["c", "a", "a", "b", "b"]
    assert [cell.good for cell in cells] == [True, True, True, False, None] and len(cells[0].images) == 2


def test_real_crops_without_a_lock_file(real_data: Path, data: Path) -> None:
    assert run(real_data, "--max-samples", "8", checkpoint=data.parent / "toy.pth") == 0


def test_the_table_fits_and_shows_intervals_and_dashes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, lines
    (one,) = [line for line in lines if line.startswith("one ")]
    assert one.split()[:7] == ["one", "3", "66.67", "20.8", "to", "93.9", "-"]
    assert "words of each protocol: 36 3, 62 3, 94 4, exact 4" in "\n".join(lines)
    assert any(line.startswith("calibration error ") for line in lines) and any("95 %: " in line for line in lines)


def test_slices_of_the_words(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--slices", "--out", str(tmp_path / "out")) == 0
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    by = {(one["by"], one["value"]): (one["words"], one["accuracy"]) for one in found["slices"]}
    assert by["case", "upper"] == (1, 100.0) and by["case", "lower"] == (3, pytest.approx(66.67))
    assert by["length", "to 3 characters"][0] == by["blur", "to 50 variance"][0] == 4
    assert by["aspect", "over 1.5 to 3 width to height"][0] == 4 and "  case    upper" in capsys.readouterr().out


def test_stand_ins_and_papers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rendered set has a name of its own; a published figure stands only next to the same subset."""
    corpus = tmp_path / "corpus"
    for name in ("IC13_857", "IC13_900", "SVT"):
        write_words(corpus / "evaluation" / name, ["a", "b"])
    assert list(find_sets([corpus / "evaluation"])) == ["IC13_857", "IC13_900", "SVT"]
    monkeypatch.setitem(published.SIZES, "SVT", 2)
    toy_file = data.parent / "toy.pth"
    assert run(corpus / "evaluation", "--paper", "siga_r", checkpoint=toy_file) == 0
    out = capsys.readouterr().out
    assert "IC13_857: 2 words, IC13_857 has 857: another subset, not compared" in out
    assert "IC13_900: the published figure is for IC13_857, IC13_1015, another subset; not compared" in out
    assert "SVT                2 words: here " in out and "SIGA_R as published" in out
    (corpus / "corpus.json").write_text('{"renderer": 1}')
    assert list(find_sets([corpus / "evaluation"])) == ["synth-IC13_857", "synth-IC13_900", "synth-SVT"]
    assert run(corpus / "evaluation", "--paper", "SIGA_R", checkpoint=toy_file) == 0
    assert "synth-SVT: rendered stand-in" in capsys.readouterr().out
    assert run(corpus / "evaluation", "--paper", "SIGA_X", checkpoint=toy_file) == 2
    assert "SIGA_R" in capsys.readouterr().err


def test_other_peoples_readers(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["eval", "--data", str(data / "one")]
    monkeypatch.setattr(peers, "_tesseract", lambda: lambda image: ("A", 0.9) if image.mean() < 50 else ("c", 0.2))
    assert cli.main([*words, "--reader", "tesseract"]) == 0
    out = capsys.readouterr().out
    assert "model tesseract" in out and "66.67" in out and "-" not in out.splitlines()[1].split()[2:6]
    monkeypatch.undo()
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for name in ("tesseract", "rapidocr", "nano-ocr"):
        assert cli.main([*words, "--reader", name]) == 2 and "not installed" in capsys.readouterr().err
    table = [{"text": "he", "conf": "90"}, {"text": "llo", "conf": "70"}, {"text": "", "conf": "-1"}]
    assert peers.joined(table) == ("hello", 0.8) and peers.joined([]) == ("", 0.0)


def test_an_empty_set_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LmdbWriter(data / "empty"):
        pass
    assert run(data, "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "empty: the set is empty; exclude it with --select" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "eval.json").exists()


def test_foreign_files_are_kept(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("mine")
    assert run(data, "--out", str(tmp_path / "out")) == 2 and "--force" in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.csv").read_text() == "mine"
    assert run(data, "--out", str(tmp_path / "out"), "--force") == 0 and run(data, "--out", str(tmp_path / "out")) == 0


def test_calibration() -> None:
    assert calibration.expected_calibration_error([1, 1, 0, 0], [1, 1, 0, 0]) == 0
    assert calibration.expected_calibration_error([1, 1], [0, 0]) == 1
    sure = calibration.calibration([0.9, 0.8, 0.3, 0.2], [True, True, False, True])
    assert sure["words"] == 4 and sure["accuracy_at"] == {"50": 100.0, "80": 66.67, "95": 75.0}
    assert not doctest.testmod(calibration).failed


@pytest.mark.parametrize("charset, names", [
    ("0123456789abc", {"36", "exact"}), ("abcABC", {"36", "62", "exact"}), ("abcABC!", {"36", "62", "94", "exact"}),
    ("", {"36", "62", "94", "exact"}), ("京沪", {"36", "62", "94", "exact"}),
])  # fmt: skip
def test_what_a_reader_can_write(charset: str, names: set[str]) -> None:
    assert {name for name in ("36", "62", "94", "exact") if writes(charset, name)} == names
