"""Training from every form of word set ends in the same states, bit for bit; so does training without listed words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.cli import main
from common.train.checkpoint import load
from tests.common.forms import as_lmdb, as_parquet, as_tab_list, as_tar
from tests.common.lmdbs import encoded, noise
from tests.common.test_compact_reader import command
from tests.runs.scripts import SCRIPTS, WORDS, Script

PICTURES = [encoded(noise(number, 32, 128)) for number in range(16)]
LABELS = [WORDS[number % len(WORDS)] for number in range(16)]
FORMS = (as_tab_list, as_tar, as_parquet)
QUICK = ("siga", "mgpstr", "dig pre-training")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("dig fine-tuning", "ssm pre-training"))]


def tensors(value: object, place: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a stored state, by their place."""
    if isinstance(value, torch.Tensor):
        return {place: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, item in items for name, tensor in tensors(item, f"{place}/{key}").items()}


def trained(script: Script, data: Path, out: Path, *more: str, **sizes: int) -> dict[str, torch.Tensor]:
    """The last training state of a short run on `data`."""
    assert script.main(script.command(data, data, out, *more, **sizes)) == 0
    *_, last = sorted((out / script.run).glob(script.states), key=lambda path: path.stat().st_mtime_ns)
    found = tensors(load(last))
    assert sum(tensor.is_floating_point() for tensor in found.values()) > 20, "a state holds weights and moments"
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_the_same_words_trains_alike(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    expected = trained(script, as_lmdb(tmp_path / "as_lmdb" / "words", PICTURES, LABELS), tmp_path / "out", steps=2)
    for form in FORMS:
        data = form(tmp_path / form.__name__ / "words", PICTURES, LABELS)
        assert_equal(trained(script, data, tmp_path / f"out_{form.__name__}", steps=2), expected)


def test_a_run_on_shards_resumes_exactly(tmp_path: Path) -> None:
    script = SCRIPTS["dig pre-training"]
    data = as_tar(tmp_path / "tar" / "words", PICTURES, LABELS)
    expected = trained(script, data, tmp_path / "whole")
    stopped = script.command(data, data, tmp_path / "out", "--max_steps", "2")
    assert script.main(stopped) == 0
    assert_equal(trained(script, data, tmp_path / "out", *script.resume.split()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_listed_words_are_not_trained_on(name: str, tmp_path: Path) -> None:
    """A run without the last four of sixteen words is that on twelve words."""
    script = SCRIPTS[name]
    whole = as_lmdb(tmp_path / "whole" / "words", PICTURES, LABELS)
    rows = "".join(f"{whole},{number}\n" for number in (13, 14, 15, 16))
    (tmp_path / "leaks.csv").write_text(f"path,number\n{rows}")
    found = trained(script, whole, tmp_path / "out", f"--exclude={tmp_path}/leaks.csv", steps=2)
    twelve = as_lmdb(tmp_path / "twelve" / "words", PICTURES[:12], LABELS)
    assert_equal(found, trained(script, twelve, tmp_path / "expected", steps=2))


@pytest.mark.slow
def test_fine_tuning_of_ssm(tmp_path: Path) -> None:
    """Lightning's checkpoints from LMDBs and from other forms, and without four listed words."""
    from projects.ssm.finetune.run import run
    from tests.ssm.runs import configuration

    def checkpoint(root: Path, out: str, *more: str) -> dict[str, torch.Tensor]:
        run(configuration(root, "trainer.max_epochs=1", *more), tmp_path / out)
        return tensors(load(tmp_path / out / "checkpoints" / "last.ckpt")["state_dict"])

    def corpus(form, count: int = 16) -> Path:
        root = tmp_path / f"{form.__name__}{count}"
        form(root / "training" / "words", PICTURES[:count], LABELS[:count])
        form(root / "validation" / "words", PICTURES[:12], LABELS[:12])
        return root

    expected = checkpoint(corpus(as_lmdb), "out")
    for form in FORMS:
        assert_equal(checkpoint(corpus(form), f"out_{form.__name__}"), expected)
    rows = "".join(f"{tmp_path}/as_lmdb16/training/words,{number}\n" for number in (13, 14, 15, 16))
    (tmp_path / "leaks.csv").write_text(f"path,number\n{rows}")
    found = checkpoint(tmp_path / "as_lmdb16", "excluded", f"data.exclude={tmp_path}/leaks.csv")
    assert_equal(found, checkpoint(corpus(as_lmdb, 12), "twelve"))


@pytest.mark.slow
def test_the_default_reader(tmp_path: Path) -> None:
    """`strlab train` on real words in several forms, some of them validation words by their labels."""
    labels = [f"{a}{b}" for a in "abcd" for b in "wxyz"]

    def state(data: Path, out: str, *more: str) -> dict[str, torch.Tensor]:
        words = command(tmp_path / out, "--real", str(data), "--real_share", "0.5", *more)
        assert main(words) == 0
        *_, last = sorted((tmp_path / out).glob("training_state*.pth"), key=lambda path: path.stat().st_mtime_ns)
        return tensors(load(last))

    expected = state(as_lmdb(tmp_path / "as_lmdb", PICTURES, labels), "out")
    for form in FORMS:
        data = form(tmp_path / form.__name__, PICTURES, labels)
        assert_equal(state(data, f"out_{form.__name__}"), expected)
    (tmp_path / "leaks.csv").write_text(f"path,number\n{tmp_path}/as_lmdb,1\n")
    excluded = state(tmp_path / "as_lmdb", "excluded", "--exclude", str(tmp_path / "leaks.csv"))
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in excluded.items())
    assert main(["train", "--out", f"{tmp_path}/none", "--exclude", f"{tmp_path}/leaks.csv"]) == 2
