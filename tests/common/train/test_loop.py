"""The training loop: equal to one written by hand, resumed anywhere, in step on all ranks, stopped in good order."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from common.train.loop import Clock, Job, StopRequest
from common.train.optim import NonFinite, build_optimizer
from tests.common.compare import same
from tests.common.processes import run, torchrun
from tests.common.train.toy_run import BATCHES, ToyLoader, build, model


def weights(loop) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): value for name, value in loop.engine.model.state_dict().items()}


def by_hand(steps: int, accumulate: int, max_norm: float | None, loaders: list[ToyLoader]) -> dict[str, torch.Tensor]:
    """The same training in plain torch; several loaders stand for several ranks, whose gradients are averaged."""
    net = model()
    optimizer = build_optimizer("adamw", net.parameters(), 0.1)
    sources = [iter(loader) for loader in loaders]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        batches = [next(source) for source in sources for _ in range(accumulate)]
        usable = [batch for batch in batches if batch.weight]
        for batch in usable:
            ((net(batch.x) - batch.y).square().mean() / len(usable)).backward()
        if max_norm:
            nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


@pytest.mark.parametrize(("accumulate", "max_norm"), [(1, None), (2, 0.5), (3, None)])
def test_equal_to_a_loop_by_hand(accumulate: int, max_norm: float | None) -> None:
    loop = build(7, accumulate=accumulate, max_norm=max_norm)
    assert loop.run() and loop.clock.done and loop.method.moved == 7
    same(weights(loop), dict(by_hand(7, accumulate, max_norm, [ToyLoader(endless=True)])))
    assert loop.method.seen == [(step, number) for step in range(7) for number in range(accumulate)]


def test_epochs_begin_anew_and_a_run_resumes_inside_one() -> None:
    whole = build(9, per_epoch=3, accumulate=2)
    whole.run()
    assert whole.loader.asked == [(epoch, position) for epoch in range(3) for position in range(6)]
    first = build(9, per_epoch=3, accumulate=2, stop_at=4)
    left = []
    first.leave = lambda clock: left.append((clock.step, clock.epoch, clock.inside))
    assert first.run() is False and left == [(4, 1, 1)]
    second = build(9, per_epoch=3, accumulate=2)
    second.clock.step = 4
    second.engine.model.load_state_dict(first.engine.model.state_dict())
    second.engine.optimizer.load_state_dict(first.engine.optimizer.state_dict())
    assert second.run() and second.loader.asked[0] == (1, 2)
    same(weights(second), weights(whole))


def test_leftover_batches_of_an_epoch_are_skipped_or_make_a_shorter_group() -> None:
    skipped = build(2, per_epoch=1, accumulate=4)
    skipped.run()
    assert skipped.method.seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    shorter = build(4, per_epoch=2, accumulate=4)
    shorter.run()
    four, two = range(4), range(2)
    assert shorter.method.seen == [(step, n) for step, group in enumerate((four, two, four, two)) for n in group]
    too_long = build(8, per_epoch=BATCHES + 1)
    with pytest.raises(RuntimeError, match="ended at step 6"):
        too_long.run()


def test_a_batch_without_a_readable_sample_trains_nothing(capsys) -> None:
    notes = []
    loop = build(5, empty={(0, 2)}, note=lambda clock, step: notes.append((clock.step, step.images, float(step.norm))))
    loop.run()
    assert [step for step, *_ in notes] == [1, 2, 4, 5] and all(images == 4 for _, images, _ in notes)
    assert "step 2: no sample of its batches can be read" in capsys.readouterr().out
    assert loop.method.moved == 4 and loop.method.seen == [(0, 0), (1, 0), (3, 0), (4, 0)]
    partly = build(3, empty={(0, 1)}, accumulate=2)
    partly.run()
    same(weights(partly), dict(by_hand(3, 2, None, [ToyLoader(empty={(0, 1)}, endless=True)])))


def test_nothing_is_stepped_after_a_loss_that_is_not_a_number(tmp_path: Path, capsys) -> None:
    loop = build(5, poison=(0, 3), folder=tmp_path)
    steps = []
    loop.engine.optimizer.register_step_post_hook(lambda *_: steps.append(loop.clock.step))
    with pytest.raises(NonFinite, match="step 3: loss is nan, nothing was stepped"):
        loop.run()
    assert steps == [0, 1, 2] and (tmp_path / "non_finite_3.json").is_file()
    assert "Loss is nan, stopping training" in capsys.readouterr().out


def test_a_gradient_that_is_not_a_number_stops_fp32_and_only_skips_a_step_of_fp16(tmp_path: Path) -> None:
    def poisoned(loop) -> list[int]:
        steps = []
        loop.engine.optimizer.register_step_post_hook(lambda *_: steps.append(loop.clock.step))
        bad = lambda gradient: gradient * float("inf") if loop.clock.step == 2 else gradient  # noqa: E731
        next(loop.engine.model.parameters()).register_hook(bad)
        return steps

    loop = build(5, folder=tmp_path)
    steps = poisoned(loop)
    with pytest.raises(NonFinite, match="step 2: gradient norm is"):
        loop.run()
    assert steps == [0, 1]
    half = build(5, folder=tmp_path)
    half.engine.precision.scaler = torch.amp.GradScaler("cpu", enabled=True)  # as `--amp fp16` has it on CUDA
    steps = poisoned(half)
    assert half.run() and steps == [0, 1, 3, 4]
    assert half.engine.precision.scaler.get_scale() == 2.0**15


def test_sigterm_ends_after_the_step_with_its_state() -> None:
    left = []
    loop = build(50, leave=lambda clock: left.append(clock.step))
    loop.jobs = [Job(lambda clock: clock.step == 3, lambda clock: os.kill(os.getpid(), signal.SIGTERM))]
    before = signal.getsignal(signal.SIGTERM)
    assert loop.run() is False and left == [4]
    assert signal.getsignal(signal.SIGTERM) is before
    done = build(4, stop_at=4, leave=lambda clock: left.append("the last step needs no leaving"))
    assert done.run() is True and left == [4]


def test_a_second_signal_ends_at_once() -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.requested and not seen
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_jobs_come_in_order_after_the_meters() -> None:
    order = []
    loop = build(4, per_epoch=2, note=lambda clock, step: order.append(("note", clock.step)))
    loop.jobs = [
        Job(lambda clock: clock.inside == 0, lambda clock: order.append(("epoch", clock.epoch - 1))),
        Job(lambda clock: True, lambda clock: order.append(("each", clock.step))),
    ]
    loop.run()
    first = [("note", 1), ("each", 1), ("note", 2), ("epoch", 0), ("each", 2)]
    assert order == [*first, ("note", 3), ("each", 3), ("note", 4), ("epoch", 1), ("each", 4)]


def test_clock() -> None:
    clock = Clock(10, 4, step=9)
    assert (clock.epoch, clock.inside, clock.done) == (2, 1, False)
    assert (Clock(10, step=9).epoch, Clock(10, step=9).inside) == (0, 9)


def launch(out: Path, *settings: str) -> subprocess.CompletedProcess:
    """The toy on two processes."""
    return run(*torchrun(), "-m", "tests.common.train.toy_run", out, *settings)


def test_a_rank_without_a_readable_sample_stays_in_step(tmp_path: Path) -> None:
    done = launch(tmp_path / "w", "total=4", "accumulate=2", "empty=1,3")
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"w.{rank}")["weights"] for rank in (0, 1)]
    same(dict(ranks[0]), dict(ranks[1]))
    loaders = [ToyLoader(0, endless=True), ToyLoader(1, empty={(1, 3)}, endless=True)]
    expected = by_hand(4, 2, 1.0, loaders)
    for name, value in ranks[0].items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_no_number_on_one_rank_stops_both_before_the_step(tmp_path: Path) -> None:
    done = launch(tmp_path / "w", "total=4", "poison=1,2")
    assert done.returncode != 0
    assert [torch.load(tmp_path / f"w.{rank}")["steps"] for rank in (0, 1)] == [[0, 1], [0, 1]]
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert told and all("step 2: loss is nan" in line for line in told), done.stderr
