"""Training from every form of word set ends in the same states, bit for bit; so does training without listed words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.cli import main
from common.train.checkpoint import load
from tests.common.compare import same
from tests.common.forms import as_lmdb, as_parquet, as_tab_list, as_tar
from tests.common.lmdbs import encoded, noise
from tests.common.test_compact_reader import command
from tests.runs.scripts import SCRIPTS, WORDS, Script

PICTURES = [encoded(noise(number, 32, 128)) for number in range(16)]
LABELS = [WORDS[number % len(WORDS)] for number in range(16)]
FORMS = (as_tab_list, as_tar, as_parquet)
QUICK = ("siga", "mgpstr", "dig pre-training")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("dig fine-tuning", "ssm pre-training"))]


def state(folder: Path, pattern: str = "training_state*.pth") -> dict[str, object]:
    """What decides how a run continues, from the last state in its folder."""
    content = load(sorted(folder.glob(pattern))[-1])
    return {part: content[part] for part in ("step", "model", "optimizer", "parts", "rng")}


def trained(script: Script, data: Path, out: Path, *more: str, **sizes: int) -> dict[str, object]:
    """The last training state of a short run on `data`."""
    assert script.main(script.command(data, data, out, *more, **sizes)) == 0
    return state(out / script.run, script.states)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_the_same_words_trains_alike(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    expected = trained(script, as_lmdb(tmp_path / "as_lmdb" / "words", PICTURES, LABELS), tmp_path / "out", steps=2)
    for form in FORMS:
        data = form(tmp_path / form.__name__ / "words", PICTURES, LABELS)
        same(trained(script, data, tmp_path / f"out_{form.__name__}", steps=2), expected)


def test_a_run_on_shards_resumes_exactly(tmp_path: Path) -> None:
    script = SCRIPTS["dig pre-training"]
    data = as_tar(tmp_path / "tar" / "words", PICTURES, LABELS)
    expected = trained(script, data, tmp_path / "whole")
    stopped = script.command(data, data, tmp_path / "out", "--max_steps", "2")
    assert script.main(stopped) == 0
    same(trained(script, data, tmp_path / "out", *script.resume.split()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_listed_words_are_not_trained_on(name: str, tmp_path: Path) -> None:
    """A run without the last four of sixteen words is that on twelve words."""
    script = SCRIPTS[name]
    whole = as_lmdb(tmp_path / "whole" / "words", PICTURES, LABELS)
    rows = "".join(f"{whole},{number}\n" for number in (13, 14, 15, 16))
    (tmp_path / "leaks.csv").write_text(f"path,number\n{rows}")
    found = trained(script, whole, tmp_path / "out", f"--exclude={tmp_path}/leaks.csv", steps=2)
    twelve = as_lmdb(tmp_path / "twelve" / "words", PICTURES[:12], LABELS)
    same(found, trained(script, twelve, tmp_path / "expected", steps=2))


@pytest.mark.slow
def test_fine_tuning_of_ssm(tmp_path: Path) -> None:
    """Lightning's checkpoints from LMDBs and from other forms, and without four listed words."""
    from projects.ssm.finetune.run import run
    from tests.ssm.runs import configuration

    def checkpoint(root: Path, out: str, *more: str) -> dict[str, object]:
        run(configuration(root, "trainer.max_epochs=1", *more), tmp_path / out)
        return load(tmp_path / out / "checkpoints" / "last.ckpt")["state_dict"]

    def corpus(form, count: int = 16) -> Path:
        root = tmp_path / f"{form.__name__}{count}"
        form(root / "training" / "words", PICTURES[:count], LABELS[:count])
        form(root / "validation" / "words", PICTURES[:12], LABELS[:12])
        return root

    expected = checkpoint(corpus(as_lmdb), "out")
    for form in FORMS:
        same(checkpoint(corpus(form), f"out_{form.__name__}"), expected)
    rows = "".join(f"{tmp_path}/as_lmdb16/training/words,{number}\n" for number in (13, 14, 15, 16))
    (tmp_path / "leaks.csv").write_text(f"path,number\n{rows}")
    found = checkpoint(tmp_path / "as_lmdb16", "excluded", f"data.exclude={tmp_path}/leaks.csv")
    same(found, checkpoint(corpus(as_lmdb, 12), "twelve"))


@pytest.mark.slow
def test_the_default_reader(tmp_path: Path) -> None:
    """`strlab train` on real words in several forms, some of them validation words by their labels."""
    labels = [f"{a}{b}" for a in "abcd" for b in "wxyz"]

    def trained(data: Path, out: str, *more: str) -> dict[str, object]:
        assert main(command(tmp_path / out, "--real", str(data), "--real_share", "0.5", *more)) == 0
        return state(tmp_path / out)

    expected = trained(as_lmdb(tmp_path / "as_lmdb", PICTURES, labels), "out")
    for form in FORMS:
        data = form(tmp_path / form.__name__, PICTURES, labels)
        same(trained(data, f"out_{form.__name__}"), expected)
    (tmp_path / "leaks.csv").write_text(f"path,number\n{tmp_path}/as_lmdb,1\n")
    excluded = trained(tmp_path / "as_lmdb", "excluded", "--exclude", str(tmp_path / "leaks.csv"))
    assert any(not torch.equal(tensor, expected["model"][name]) for name, tensor in excluded["model"].items())
    assert main(["train", "--out", f"{tmp_path}/none", "--exclude", f"{tmp_path}/leaks.csv"]) == 2
