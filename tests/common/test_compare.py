"""`strlab compare`: the statistics, the refusals and the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.cli import main
from common.metrics.intervals import mcnemar
from common.models.compact import CompactReader
from common.report import compare
from common.report.compare_page import accuracy_table, latex, seeds_table
from common.report.compared import Entry, Word, paired
from tests.common.lmdbs import write_words


def entry(label: str, marks: list[bool]) -> Entry:
    words = [Word("set", i, "abc", "abc" if ok else "abd", 0.5, {"36": ok}) for i, ok in enumerate(marks)]
    return Entry(label, Path("x"), "siga/TRBA", "d", 1, "c", "s", words=words)


def test_the_paired_test_counts_words_that_one_reader_alone_gets_right() -> None:
    first, other = entry("a", [True] * 12 + [False] * 4), entry("b", [True] * 6 + [False] * 8 + [True] * 2)
    assert paired(first, other)[:2] == (6, 2)
    assert paired(first, other)[2] == pytest.approx(mcnemar(6, 2)) == pytest.approx(0.2890625)
    assert paired(first, first) == (0, 0, 1.0)


def test_tables_name_the_words_and_group_the_seeds() -> None:
    entries = [entry("a", [True] * 8 + [False] * 2), entry("a", [True] * 6 + [False] * 4), entry("b", [True] * 10)]
    header, rows = accuracy_table(entries, ["set"])
    assert header == ["reader", "set (n=10)", "all words"] and rows[0][1] == "80.0 (49.0 to 94.3)"
    assert seeds_table(entries)[1] == [["a", 2, 70.0, 60.0, 80.0]]
    assert r"80.0 (49.0 to 94.3)" in latex(header, rows) and r"\%" in latex(["a%"], [])


@pytest.fixture
def two_readers(tmp_path: Path) -> tuple[list[Path], Path]:
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        file = tmp_path / f"reader{seed}.pth"
        torch.save(CompactReader(95).state_dict(), file)
        about = {"model": "strlab/compact", "options": {}, "data": f"words {seed}", "images_seen": 100}
        Path(f"{file}.json").write_text(json.dumps(about))
        files.append(file)
    write_words(tmp_path / "data" / "one", ["cat", "dog", "Fig", "!!"])
    return files, tmp_path / "data"


def test_readers_of_different_data_are_refused(two_readers, capsys, tmp_path) -> None:
    files, data = two_readers
    assert main(["compare", *map(str, files), "--data", str(data), "--out", str(tmp_path / "out"), "--no-speed"]) == 2
    assert "--any-data" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_files_are_written_and_reading_is_not_repeated(two_readers, capsys, tmp_path) -> None:
    files, data = two_readers
    out = tmp_path / "out"
    command = ["compare", f"first={files[0]}", f"second={files[1]}", "--data", str(data), "--out", str(out)]
    assert main([*command, "--no-speed", "--any-data"]) == 0
    page = (out / "index.html").read_text()
    assert "not all trained on the same data" in page and "McNemar" in page and "data:image/png" in page
    assert "https://" not in page and "n=3" in page  # "!!" has no character of the protocol
    assert (out / "compare.csv").read_text().startswith("reader,one (n=3)")
    assert "\\toprule" in (out / "compare.tex").read_text() and (out / "compare.md").is_file()
    capsys.readouterr()
    assert main([*command, "--no-speed", "--any-data"]) == 0
    assert capsys.readouterr().out.count("read before") == 2


def test_the_speed_of_a_method_is_measured_once_for_all_seeds(two_readers, tmp_path, monkeypatch) -> None:
    files, data = two_readers
    measured: list[float] = []
    monkeypatch.setattr(compare, "measure_speed", lambda *_: measured.append(1) or {1: 7.0, 32: 70.0})
    words = ["--data", str(data), "--any-data", "--out", str(tmp_path / "out")]
    assert main(["compare", *(f"net={file}" for file in files), *words]) == 0
    table = (tmp_path / "out" / "compare.csv").read_text()
    assert "net #1," in table and "net #2," in table
    assert len(measured) == 1 and (tmp_path / "out" / "compare.md").read_text().count("70") >= 2
    assert main(["compare", *map(str, files), *words]) == 0
    assert len(measured) == 3  # other labels are other methods


def test_peers_take_part_whatever_they_were_trained_on(two_readers, capsys, tmp_path, monkeypatch) -> None:
    from common.infer import peers
    from common.report import compare

    files, data = two_readers
    reader = peers.PeerRecognizer(
        peers.PeerReader("tesseract", lambda image: ("cat", 0.5)), name="tesseract", workers=1
    )
    monkeypatch.setattr(compare, "open_peer", lambda name: reader)
    monkeypatch.setattr(compare, "peer_version", lambda name: "9.9")
    words = ["compare", str(files[0]), "tesseract", "--data", str(data), "--out", str(tmp_path / "out"), "--no-speed"]
    assert main(words) == 0
    assert "33.3" in (tmp_path / "out/compare.csv").read_text().splitlines()[2]  # "cat" of cat, dog, Fig
    assert "tesseract 9.9" in (tmp_path / "out/index.html").read_text()


def test_a_set_without_letters_and_a_file_without_metadata_are_refused(two_readers, capsys, tmp_path) -> None:
    files, _ = two_readers
    marks = write_words(tmp_path / "marks", ["!!", "?"])
    words = ["compare", str(files[0]), "--data", str(marks), "--out", str(tmp_path / "out"), "--no-speed"]
    assert main(words) == 2
    assert "no label has a letter or digit" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()
    assert main(["compare", str(tmp_path / "absent.pth"), *words[2:]]) == 2
    assert "absent.pth does not exist" in capsys.readouterr().err
    Path(f"{files[0]}.json").unlink()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no metadata file" in error and len(error.splitlines()) == 1


def test_a_checkpoint_of_a_reproduction_states_the_data_of_its_run(two_readers, tmp_path) -> None:
    from common.report.compare import _about_run

    file = tmp_path / "run" / "saved_models" / "R-1" / "best.pth"
    assert _about_run(file) == {}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "about.json").write_text('{"data": "rendered words", "images_seen": 5}')
    assert _about_run(file) == {"data": "rendered words", "images_seen": 5}


def test_operations_are_counted_of_a_reader_that_slices_its_parameters() -> None:
    from types import SimpleNamespace

    from common import registry
    from common.report.compare import _measure_size

    row = registry.find("ssm/PARSeq")
    model = row.make(**row.test_options).eval()

    def read_batch(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(images.permute(0, 3, 1, 2).float())

    measured = entry("PARSeq", [True])
    reader = SimpleNamespace(model=model)
    _measure_size(measured, SimpleNamespace(reader=reader, image_size=row.image_size, read_batch=read_batch))
    assert measured.parameters == sum(p.numel() for p in model.parameters()) and measured.flops > 0
