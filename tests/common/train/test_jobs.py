"""Jobs between the steps: when they are due, states written once and kept by number, the best checkpoint, resuming."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.data.bad import BadSamples
from common.data.words import WordDataset
from common.errors import UserError
from common.train.checkpoint import complete, keep_last, latest, load, save_atomic
from common.train.distributed import Dist
from common.train.jobs import EpochFiles, EpochRun, Evaluate, States, each_epoch, every, save_published
from common.train.log import EpochLog
from common.train.loop import Clock, Job, Loop, Step
from common.train.optim import Precision, build_optimizer
from common.train.state import TrainingState, refuse_changes
from tests.common.compare import same
from tests.common.lmdbs import write_words
from tests.common.train.toy_run import ToyLoader, ToyMethod
from tests.common.train.toy_run import model as toy_model


def due(rule, total: int, per_epoch: int | None = None) -> list[int]:
    return [step for step in range(1, total + 1) if rule(Clock(total, per_epoch, step))]


def test_when_jobs_are_due() -> None:
    assert due(every(4), 10) == [4, 8, 10]
    assert due(every(4, last=False, first=True), 10) == [1, 4, 8]
    assert due(every(0), 10) == [10] and due(every(0, last=False), 10) == []
    assert due(each_epoch(), 8, 2) == [2, 4, 6, 8]
    assert due(each_epoch(3), 10, 2) == [6, 10] and due(each_epoch(3, last=False), 10, 2) == [6]


def state_of(extra: dict | None = None) -> TrainingState:
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer("adamw", model.parameters(), 0.1)
    parts = {"scaler": Precision("no", torch.device("cpu")), "log": EpochLog("")}
    return TrainingState(model, optimizer, parts, {"lr": 0.1}, extra=extra or {})


def test_states_are_kept_by_number_and_written_once(tmp_path: Path) -> None:
    states = States(state_of(), tmp_path, Dist(), BadSamples(10), keep=2)
    for step in (5, 9, 10, 10, 100):
        states(Clock(100, step=step))
    assert [path.name for path in complete(tmp_path, "training_state-*.pth")] == [
        "training_state-000000010.pth",
        "training_state-000000100.pth",
    ]
    before = (tmp_path / "training_state-000000100.pth").stat().st_mtime_ns
    states(Clock(100, step=100))
    assert (tmp_path / "training_state-000000100.pth").stat().st_mtime_ns == before


def test_the_newest_is_that_of_the_highest_number_whatever_the_clock_says(tmp_path: Path) -> None:
    for step, when in ((9, 3_000_000_000), (10, 2_000_000_000), (100, 1_000_000_000)):
        os.utime(save_atomic(tmp_path / f"s-{step}.pth", {"step": step}), (when, when))
    assert latest(tmp_path, "s-*.pth")[1] == {"step": 100}
    keep_last(tmp_path, "s-*.pth", 2)
    assert [path.name for path in complete(tmp_path, "s-*.pth")] == ["s-10.pth", "s-100.pth"]


def test_unreadable_states_alone_are_refused(tmp_path: Path) -> None:
    assert latest(tmp_path, "s-*.pth") is None
    (tmp_path / "s-1.pth").write_bytes(b"PK cut")
    (tmp_path / "s-2.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"s-2\.pth.*and 1 more: no state of this run can be read"):
        latest(tmp_path, "s-*.pth")
    save_atomic(tmp_path / "s-0.pth", {"step": 0})
    assert latest(tmp_path, "s-*.pth")[1] == {"step": 0}


def test_only_a_strictly_better_result_is_kept() -> None:
    kept, recorded, figures = [], [], iter([10.0, 10.0, 30.0, 20.0])
    state = state_of({"best_accuracy": -1.0})
    evaluate = Evaluate(
        measure=lambda: next(figures),
        accuracy=lambda figure: figure,
        state=state,
        dist=Dist(),
        keep_best=lambda clock, figure: kept.append((clock.step, figure)),
        record=lambda clock, figure: recorded.append((clock.step, state.extra["best_accuracy"])),
    )
    for step in range(4):
        evaluate(Clock(4, step=step))
    assert kept == [(0, 10.0), (2, 30.0)]
    assert recorded == [(0, 10.0), (1, 10.0), (2, 30.0), (3, 30.0)]


def test_a_published_checkpoint_has_its_metadata_next_to_it(tmp_path: Path) -> None:
    save_published(tmp_path / "iter_7.pth", lambda: {"w": torch.ones(1)}, Dist(), ("toy/Toy", {"width": 3}), step=7)
    assert load(tmp_path / "iter_7.pth")["w"].item() == 1.0
    about = json.loads((tmp_path / "iter_7.pth.json").read_text())
    assert about == {
        "model": "toy/Toy",
        "options": {"width": 3},
        "step": 7,
    }


def files(folder: Path, state: TrainingState) -> EpochFiles:
    state.extra["per_epoch"] = 4
    clock = Clock(12, 4)
    return EpochFiles(
        folder, Dist(), clock, state, ("toy/Toy", {}), lambda content, what: content["model"], BadSamples(10)
    )


def test_epochs_resume_from_the_state_and_from_the_published_checkpoint(tmp_path: Path) -> None:
    first = files(tmp_path, state_of())
    first.clock.step = 4
    first.checkpoint("0", 0)
    first.line(0, {"train_loss": 1.5})
    assert set(load(tmp_path / "checkpoint-0.pth")) == {"model", "optimizer", "epoch", "scaler", "args"}
    first.clock.step = first.state.step = 6
    first.line(1, {"train_loss": 1.0})
    first.state.save(tmp_path / "training_state.pth", Dist())

    second = files(tmp_path, state_of())
    second.resume("", auto=True)
    assert second.clock.step == 6 and json.loads((tmp_path / "log.txt").read_text())["epoch"] == 0
    assert torch.equal(second.state.model.weight, first.state.model.weight)
    third = files(tmp_path, state_of())
    third.resume(str(tmp_path / "checkpoint-0.pth"), auto=False)
    assert third.clock.step == 4 and torch.equal(third.state.model.weight, first.state.model.weight)
    fresh = files(tmp_path / "new", state_of())
    fresh.resume("", auto=True, start_epoch=2)
    assert fresh.clock.step == 8
    (tmp_path / "training_state.pth").write_bytes(b"PK")
    (tmp_path / "checkpoint-0.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match="no state of this run can be read"):
        files(tmp_path, state_of()).resume("", auto=True)


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    first = WordDataset([write_words(tmp_path / "a", ["ab", "cd", "ef"])])
    same_size = WordDataset([write_words(tmp_path / "b", ["ab", "cd", "xf"])])
    assert first.fingerprint == WordDataset([tmp_path / "a"]).fingerprint != same_size.fingerprint
    state = state_of()
    state.data = first.fingerprint
    state.save(tmp_path / "s.pth", Dist())
    again = state_of()
    again.data = first.fingerprint
    again.resume(tmp_path / "s.pth", Dist())
    again.data = same_size.fingerprint
    with pytest.raises(UserError, match=r"written with other training data \(3 samples, [0-9a-f]{8}; now 3 samples"):
        again.resume(tmp_path / "s.pth", Dist())


def test_options_that_differ_are_refused_or_told(capsys) -> None:
    refuse_changes("s.pth", [], allowed=False)
    with pytest.raises(UserError, match=r"s\.pth: written with other options: --lr: 0\.1 -> 0\.2.*--allow_changes"):
        refuse_changes("s.pth", ["--lr: 0.1 -> 0.2"], allowed=False)
    refuse_changes("s.pth", ["--lr: 0.1 -> 0.2"], allowed=True)
    assert "--lr: 0.1 -> 0.2" in capsys.readouterr().out


def epoch_run(folder: Path, **options: object) -> tuple[EpochRun, Loop]:
    """A run of two epochs of six steps, with its loop."""
    usual = {"output_dir": str(folder), "log_dir": None, "epochs": 2, "resume": "", "auto_resume": True, "amp": "no",
             "allow_changes": False, "start_epoch": 0, "state_steps": 0, "max_steps": 0, "compile": False}  # fmt: skip
    o, loader, model = SimpleNamespace(**{**usual, **options}), ToyLoader(), toy_model()
    loader.bad = BadSamples(10)
    folder.mkdir(exist_ok=True)
    run = EpochRun(
        o, vars(o), lambda before: [], Dist(), loader, 6, model, build_optimizer("adamw", model.parameters(), 0.1),
        EpochLog("", every=100), ("toy/Toy", {}), lambda content, what: content["model"],
    )  # fmt: skip

    def end_epoch(clock: Clock) -> None:
        averages, epoch = run.averages(), clock.epoch - 1
        run.files.checkpoint(str(epoch), epoch)
        run.end_epoch(averages)

    def note(clock: Clock, done: Step) -> None:
        run.log.step(clock, done, {"lr": done.lr, **done.means()})

    return run, run.loop(ToyMethod(run.model), note, [Job(each_epoch(), end_epoch)])


def test_an_epoch_run_resumes_where_it_was_left(tmp_path: Path) -> None:
    whole, loop = epoch_run(tmp_path / "whole")
    assert loop.run() and whole.clock.step == 12
    left, loop = epoch_run(tmp_path / "parts", max_steps=8)
    assert loop.run() is False and left.clock.step == 8
    resumed, loop = epoch_run(tmp_path / "parts")
    assert resumed.clock.step == 8 and loop.run()
    same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    rows = [
        [json.loads(line) for line in (run.folder / "log.txt").read_text().splitlines()] for run in (whole, resumed)
    ]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == [0, 1] and "train_loss" in rows[0][0]
    names = {path.name for path in resumed.folder.glob("*.pth")}
    assert names == {"checkpoint-0.pth", "checkpoint-1.pth", "training_state.pth"}
