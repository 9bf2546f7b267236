"""Every published flag is there with its type and default, or the difference is named here with its reason."""

from __future__ import annotations

import argparse
import json

import pytest

from projects.siga.flags import TRAIN
from projects.siga.flags_test import TEST
from tests.parity import harness

TYPES = {"int": int, "float": float, "str": str}
# (flag, what differs): why. "*" stands for every script.
DIFFERENCES = {
    ("--model_name", "required"): "T's spellings name the model too; without any the script says which there are",
    ("--Transformer", "required"): "--model_name may stand instead",
    ("--train_data", "required"): "checked with words of our own; the parser is shared with test.py",
    ("--valid_data", "required"): "training without evaluation is allowed",
    ("--TransformerModel", "choices"): "mgp_str_* are MGP-STR's and belong to projects/mgpstr",
    (
        "--saved_model",
        "default",
    ): "S's default names a file that is not published and hid the initialisation (test: ours is R's)",
    ("--eval_data", "default"): "S's default was a folder next to the script",
    ("--train_data", "default"): "S's default was a folder next to the script",
}


def cases(goldens) -> list:
    found = []
    for path in harness.case_files(goldens, "siga", "cli*.json"):
        for script, rows in json.loads(path.read_text()).items():
            found += [
                pytest.param(script, row, id=f"{path.stem}-{script.split(' ')[0]}-{row['flags'][0]}") for row in rows
            ]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize(("script", "row"), cases(metafunc.config.getoption("--goldens")))


def parser_of(script: str) -> list[argparse.ArgumentParser]:
    """Our parser(s) that stand for a published script; T's one parser serves training and testing."""
    family = script.split("/")[0].removeprefix("SIGA_")
    flags = {"train.py": [TRAIN], "test.py": [TEST]}.get(script.split("/")[1].split(" ")[0], [TRAIN, TEST])
    return [table.parser(script, "", family) for table in flags]


def difference(row: dict, what: str) -> bool:
    return (row["flags"][0], what) in DIFFERENCES


def test_flag(script: str, row: dict) -> None:
    actions = [parser._option_string_actions.get(flag) for parser in parser_of(script) for flag in row["flags"]]
    known = [action for action in actions if action is not None]
    assert known, f"{script}: {row['flags']} is not accepted"
    assert any(matches(action, row) for action in known), [describe(action) for action in known]


def describe(action: argparse.Action) -> dict:
    return {"type": action.type, "default": action.default, "nargs": action.nargs, "required": action.required}


def is_switch(action: argparse.Action) -> bool:
    """A flag that takes no value and means True."""
    return action.nargs == 0 and action.const is True


def matches(action: argparse.Action, row: dict) -> bool:
    """The action takes the published type, default and number of values, but for the differences listed above."""
    if row.get("action") == "store_true":
        return is_switch(action) and action.default is False
    if is_switch(action):
        return False
    default = row.get("default")
    same_default = default == "<private path>" or difference(row, "default") or action.default == default
    same_type = "type" not in row or action.type is TYPES[row["type"]] or (row["type"] == "str" and action.type is None)
    # An additive `--resume` without a value is allowed; a published count of values is not changed.
    same_count = action.nargs == row.get("nargs") or (row.get("nargs") is None and action.nargs == "?")
    required = row.get("required") in (None, False) or action.required or difference(row, "required")
    choices = "choices" not in row or difference(row, "choices") or list(action.choices or []) == row["choices"]
    return same_default and same_type and same_count and required and choices
