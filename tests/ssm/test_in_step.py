"""Two processes stay in step where one has no readable picture, or fewer words to validate."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.bad import stored
from common.train.checkpoint import load
from projects.ssm.finetune.run import run
from tests.common import processes
from tests.common.compare import same
from tests.common.lmdbs import write_words
from tests.ssm.runs import WORDS, configuration, finetune

BAD = ("model.batch_size=1", "data.bad_share=0.5", "trainer.max_epochs=1")
CRNN = ("model._target_=projects.ssm.model.crnn.CRNN", "+model.hidden_size=16")  # buffers are broadcast in validation


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Six words to train, one of them unreadable, and five to validate: three and two on two ranks."""
    root = tmp_path_factory.mktemp("in-step")
    write_words(root / "training" / "MJ", WORDS[:6], broken=[2])
    write_words(root / "validation", WORDS[:5])
    return root


def test_two_processes_end(corpus: Path, tmp_path: Path) -> None:
    more = [
        *CRNN,
        "model.batch_size=1",
        "data.bad_share=0.5",
        "trainer.devices=2",
        "trainer.max_epochs=1",
        "trainer.val_check_interval=2",
    ]
    words = finetune(corpus, *more, f"hydra.run.dir={tmp_path}")
    done = processes.run(*processes.torchrun(), "projects/ssm/finetune/train.py", *words)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert [sample.number for sample in stored(tmp_path / "bad_samples.csv")] == [3]


def test_unreadable_validation_words_are_counted_and_stop_nothing(tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "training" / "MJ", WORDS[:4])
    write_words(tmp_path / "validation", WORDS[:6], broken=[2, 3])  # a whole batch of two
    out = tmp_path / "out"
    run(configuration(tmp_path, "model.batch_size=2", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"), out)
    told = f"validation: 2 samples skipped, first {tmp_path / 'validation'} 3: "
    assert told in capsys.readouterr().out and (out / "checkpoints" / "last.ckpt").is_file()


def test_one_process_takes_no_step(corpus: Path, tmp_path: Path) -> None:
    more = [
        "model.batch_size=1",
        "data.bad_share=0.5",
        "trainer.max_epochs=1",
        "trainer.val_check_interval=1.0",
        "model.weight_decay=0",
    ]
    trainer = run(configuration(corpus, *more), tmp_path)
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 6
    steps = load(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"][0]["step"]
    same(int(steps), 5)
