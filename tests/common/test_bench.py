"""The benchmark's arithmetic; no timing is judged here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from common import cli
from common.bench import command, units
from common.bench.memory import peak_of, resident_peak
from common.bench.rows import Bench, Result, Row


def test_units_are_positive_and_the_crop_is_always_the_same() -> None:
    assert units.decode_plainly().shape == (3, 32, 128)
    assert units.jpeg_crop() == units.jpeg_crop.__wrapped__() and units.measure_u() > 0


def test_a_row_is_measured_in_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # a clock that only the timed calls move

    def lasts(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(units, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(units, "measure_u", lambda: 0.001)
    fast = Bench().measure(Row("toy: u", lambda: lasts(0.004), "u", images_per_call=2, target=50))
    assert fast.value == pytest.approx(2) and fast.passed and fast.unit_drift == 0
    rate = Bench().measure(Row("toy: rate", lambda: lambda: lasts(0.002), "items/s", images_per_call=10, target=1e9))
    assert rate.value == pytest.approx(5000) and rate.passed is False
    ratio = Bench().measure(Row("toy: ratio", lambda: lasts(0.001), "x", target=2.0, versus=lambda: lasts(0.02)))
    assert ratio.value == pytest.approx(20) and ratio.passed


@pytest.mark.parametrize("unit, published, target, value, passed", [
    ("u", None, None, 3.0, None), ("u", 2.0, None, 1.9, True), ("v", 2.0, None, 2.0, False), ("u", 9.0, 1.0, 1.0, True),
    ("items/s", None, 100, 99, False), ("x", None, 3, 3.1, True),
])  # fmt: skip
def test_targets(unit: str, published: float | None, target: float | None, value: float, passed: bool | None) -> None:
    row = Row("toy", lambda: None, unit, published=published, target=target)
    assert Result(row, value, 1.0, 0.0, 0.0).passed is passed


def test_command_lists_measures_and_survives_a_broken_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("nothing here")

    rows = [Row("toy: one", lambda: None, "items/s", target=1), Row("toy: two", broken)]
    monkeypatch.setattr(command, "all_rows", lambda: rows)
    assert cli.main(["bench", "--list", "--only", "one|three"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == "toy: one"
    assert cli.main(["bench", "--strict"]) == 1
    out, err = capsys.readouterr()
    assert "toy: one" in out and "pass" in out and "nothing here" in err


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = bytearray(b"x") * (1 << 29)
    row = next(row for row in command.all_rows() if row.name == "data: decode + resize to 32x128")
    peak = peak_of(row)
    assert peak is not None and 0.1 < peak < resident_peak() and len(ballast) == 1 << 29
    assert peak_of(Row("no such row", lambda: None)) is None


def test_training_under_load_is_measured_and_leaves_no_process() -> None:
    from common.bench.load import Trainer

    trainer = Trainer(busy=True)
    child, choice = trainer.child, trainer.choice
    trainer()
    del trainer
    assert choice.startswith("threads: ") and child.returncode is not None
