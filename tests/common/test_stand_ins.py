"""Rendered stand-ins carry their prefix in folders and tables, and every project's evaluation finds them by it."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from common.data.sources import set_or_stand_in
from common.data.synth import SynthOptions, corpus
from common.data.synth.options import corpus_parts
from common.infer.evaluate import find_sets
from tests.common.lmdbs import write_words


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A rendered corpus of two sets, and a public set."""
    for name in ("synth-IIIT5k_3000", "synth-SVT", "CUTE80"):
        write_words(tmp_path / "evaluation" / name, ["ab", "cd"])
    (tmp_path / "corpus.json").write_text('{"renderer": 1}')
    return tmp_path / "evaluation"


def test_the_public_set_goes_first() -> None:
    assert set_or_stand_in("SVT", {"SVT", "synth-SVT"}) == "SVT"
    assert set_or_stand_in("SVT", {"synth-SVT"}) == "synth-SVT" and set_or_stand_in("SVT", {"SVTP"}) is None


def test_a_corpus_names_its_stand_ins_and_draws_what_it_always_drew() -> None:
    parts = [part for part in corpus_parts(SynthOptions()) if part.folder.startswith("evaluation/")]
    assert len(parts) == 6 and all(part.folder.startswith("evaluation/synth-") for part in parts)
    for part in parts:  # what decides the samples is the name without the prefix, as before there was one
        assert corpus._part_key(part) == zlib.crc32(f"evaluation/{part.style}".encode())


def test_eval_does_not_double_the_prefix(root: Path) -> None:
    assert sorted(find_sets([root])) == ["synth-CUTE80", "synth-IIIT5k_3000", "synth-SVT"]


def test_mgpstr(root: Path, capsys: pytest.CaptureFixture) -> None:
    from projects.mgpstr.data import FAST, evaluation_sets

    assert list(evaluation_sets(str(root), FAST)) == ["synth-SVT", "synth-IIIT5k_3000", "CUTE80"]
    assert "skipped: IC13_857, IC15_1811, SVTP" in capsys.readouterr().out


def test_siga(root: Path, capsys: pytest.CaptureFixture) -> None:
    from projects.siga.data import FAST, evaluation_sets

    sets = evaluation_sets(root, FAST, image_size=(32, 100), max_length=25, character="abcd", sensitive=False)
    assert list(sets) == ["synth-SVT", "synth-IIIT5k_3000", "CUTE80"]
    assert "skipped: IC13_857, IC15_1811, SVTP" in capsys.readouterr().out


def test_ssm(root: Path) -> None:
    from common.metrics.papers import SetMetrics
    from projects.ssm.finetune import table
    from projects.ssm.finetune.evaluate import test_root as folder_of

    assert folder_of(root.parent, "IIIT5k") == root / "synth-IIIT5k_3000"
    assert folder_of(root.parent, "CUTE80") == root / "CUTE80" and folder_of(root.parent, "SVTP") is None
    figures = SetMetrics(2, 50.0, 75.0, 80.0, 2.0)
    text = table.report({"synth-SVT": figures, "CUTE80": figures}, {"Benchmark": table.SUBSET})
    assert "| synth-SVT |" in text and "| CUTE80    |" in text and "| SVT " not in text
