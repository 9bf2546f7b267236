"""Tables of published flags: parsing, help, ranges, notices, what may change when a run resumes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest
import torch

from common.errors import UserError
from common.flags import LAUNCH, Flag, Table, device_of, fill, per

TABLE = Table(
    {
        "data": (
            Flag("--data", help="100 % of the words"),
            Flag("--size", int, per(A=32, B=48), "pixels", range=(1, inf)),
            Flag("--share", float, 0.5, range=(0, 1), free=True),
            Flag("--old", int, 3, "was never read", dead="A"),
            Flag("--gone", float, 1.0, dead=True),
        ),
        "run": (
            Flag("--valInterval --val_interval", int, 10, "steps"),
            Flag("--pin_mem", bool, True),
            Flag("--no_pin_mem", bool, const=False, dest="pin_mem"),
            Flag("--fast", bool, variants="B"),
            Flag("--betas", float, None, nargs=2),
            *LAUNCH,
        ),
    }
)


@dataclass(frozen=True)
class Options:
    data: str
    size: int
    pin_mem: bool
    seen: int = 0


def parse(*argv: str, variant: str = "A") -> tuple[dict, set]:
    return TABLE.parse(argv, "x.py", "what it does", variant)


def test_values_by_variant_and_what_was_given() -> None:
    values, given = parse("--val_interval", "5", "--no_pin_mem", "--local-rank=1")
    assert values["size"] == 32 and values["valInterval"] == 5 and values["pin_mem"] is False
    assert given == {"valInterval", "pin_mem", "local_rank"} and "fast" not in values
    values, given = parse(variant="B")
    assert values["size"] == 48 and values["fast"] is False and values["pin_mem"] is True and not given


def test_help_is_grouped_and_shows_defaults(capsys) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    live, dead = text.split("accepted for compatibility, no effect")
    assert "data:" in live and "run:" in live and "pixels (default: 32)" in live and "100 % of" in live
    assert "--gone" in dead and "--old" in dead and "--gone" not in live.split("data:")[1]


def test_flags_without_effect_are_named_once(capsys) -> None:
    parse("--gone", "2", "--old", "4")
    assert capsys.readouterr().out == "no effect (accepted for compatibility): --old --gone\n"
    parse("--gone", "1.0", "--old", "4", variant="B")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "0"], "--size: 0 must be at least 1"),
        (["--share", "1.5"], "--share: 1.5 must be from 0 to 1"),
        (["--share", "nan"], "not a finite number"),
        (["--betas", "0.9", "inf"], "--betas: inf is not a finite number"),
    ],
)
def test_ranges(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(*words)


def test_options_are_filled_by_name() -> None:
    assert fill(Options, parse("--data", "x")[0], seen=2) == Options("x", 32, True, 2)


def test_what_decides_the_training_may_not_change_unseen() -> None:
    before, _ = parse("--size", "32", "--betas", "0.9", "0.99")
    stored = {**before, "betas": [0.9, 0.99]}
    assert TABLE.changed(stored, before, "A") == []
    now, _ = parse("--size", "40", "--share", "0.1", "--gone", "7", "--betas", "0.9", "0.99")
    assert TABLE.changed(stored, now, "A") == ["--size: 32 -> 40"]


def test_a_published_default_of_cuda_means_cuda_if_there_is_any(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("cuda", given=False) == "cpu" and "training on the CPU" in capsys.readouterr().out
    assert device_of("cuda", given=True) == "cuda" and device_of("cuda:1", given=True) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("cuda", given=False) == "cuda"
