"""A corpus on disk: layout, disjoint splits, the same bytes for any number of processes, whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.cli import main
from common.data.decode import decode_rgb
from common.data.lmdb import WordLmdb
from common.data.synth import SynthOptions, corpus, render_corpus
from common.data.synth.options import EVALUATION_SHARES
from common.errors import UserError

SMALL = SynthOptions(
    difficulty="easy", train=130, validation=10, evaluation=70, max_length=5, vocabulary=4000,
    fonts=("roboto", "arvo", "poppins"),
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return render_corpus(tmp_path_factory.mktemp("synth") / "corpus", SMALL, workers=2, progress=False)


def leaves(root: Path) -> dict[str, Path]:
    return {str(file.parent.relative_to(root)): file for file in sorted(root.rglob("data.mdb"))}


def digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in leaves(root).items()}


def samples(root: Path, folder: str) -> list[tuple[str, dict]]:
    data = WordLmdb(root / folder)
    return [(data.label(i), json.loads(data.value("meta", i))) for i in range(len(data))]


def test_layout_says_that_it_is_synthetic(root):
    evaluation = {f"evaluation/synth-{name}" for name in EVALUATION_SHARES}
    assert set(leaves(root)) == {"training/MJ", "training/ST", "validation"} | evaluation
    card = json.loads((root / "corpus.json").read_text())
    assert "stand-ins" in card["synthetic"] and "not comparable" in (root / "README.md").read_text()
    assert sum(part["crops"] for part in card["parts"].values()) == 210
    assert Image.open(root / "contact_sheet.png").size[0] == 1400


def test_every_sample_is_whole(root):
    for folder in leaves(root):
        data = WordLmdb(root / folder)
        for i in range(len(data)):
            image, mask = decode_rgb(data.image_bytes(i)), np.asarray(Image.open(io.BytesIO(data.value("mask", i))))
            boxes = json.loads(data.value("boxes", i))
            assert image.shape[:2] == mask.shape and "".join(box[4] for box in boxes) == data.label(i)


def test_evaluation_shares_neither_words_nor_fonts_with_training(root):
    training = samples(root, "training/MJ") + samples(root, "training/ST")
    evaluation = [sample for name in EVALUATION_SHARES for sample in samples(root, f"evaluation/synth-{name}")]
    validation = samples(root, "validation")
    words = [{label.lower() for label, _ in part} for part in (training, validation, evaluation)]
    assert not words[0] & words[1] and not words[0] & words[2] and not words[1] & words[2]
    fonts = [{meta["font"].partition("-")[0] for _, meta in part} for part in (training, evaluation)]
    assert fonts[1] == {"Poppins"} and "Poppins" not in fonts[0]


def test_same_bytes_in_one_process_and_after_an_interruption(root, tmp_path, monkeypatch):
    out = tmp_path / "again"

    class Interrupted(corpus.LmdbWriter):
        def add(self, *args, **kwargs):
            if "validation" in str(self.path):
                raise KeyboardInterrupt
            return super().add(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "LmdbWriter", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_corpus(out, SMALL, workers=0, progress=False)
    assert not out.exists()  # never half a corpus under its name
    kept = (tmp_path / ".again.rendering" / "training/MJ/data.mdb").stat().st_mtime_ns
    render_corpus(out, SMALL, workers=0, progress=False)
    assert (out / "training/MJ/data.mdb").stat().st_mtime_ns == kept
    assert digests(out) == digests(root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_rendered_once_and_only_with_these_options(root, tmp_path):
    before = digests(root)
    render_corpus(root, SMALL, progress=False)
    assert digests(root) == before
    with pytest.raises(UserError, match="seed 1 -> 2"):
        render_corpus(root, SynthOptions(**{**vars(SMALL), "seed": 2}), progress=False)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        render_corpus(tmp_path, SMALL, progress=False)
    with pytest.raises(UserError, match="it is a file"):
        render_corpus(tmp_path / "mine.txt", SMALL, progress=False)


def test_too_little_space_is_said_first(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(corpus.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="MiB are free"):
        render_corpus(tmp_path / "corpus", SMALL, progress=False)


def test_command(tmp_path, capfd):
    out = str(tmp_path / "c")
    flags = [
        "--train",
        "20",
        "--validation",
        "0",
        "--evaluation",
        "0",
        "--fonts",
        "roboto",
        "arvo",
        "--vocabulary",
        "3000",
    ]
    assert main(["data", "synth", out, "--workers", "0", "--max-length", "4", *flags]) == 0
    assert "20 crops" in capfd.readouterr().out
    assert main(["data", "synth", out, "--workers", "0", "--max-length", "4", *flags]) == 0
    assert "already rendered" in capfd.readouterr().out
    assert main(["data", "synth", out, *flags]) == 2
    assert "max_length 4 -> 16" in capfd.readouterr().err


def test_cores_where_the_system_does_not_tell_which_are_ours(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert corpus.usable_cores() == os.cpu_count()
