"""Every published flag is accepted with its type and default; differences are listed here with their reason."""

from __future__ import annotations

import argparse
import json

import pytest

from projects.mgpstr.flags import build_parser, get_args
from tests.parity import harness

TYPES = {"int": int, "float": float, "str": str, None: str}
DIFFERENT = {
    "--device": "the published value is never used; here the default cuda means auto",
    "--TransformerModel": "choices: ours has two further models, and names the possible ones itself",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "script" in metafunc.fixturenames:
        rows = []
        for path in harness.case_files(metafunc.config.getoption("--goldens"), "mgpstr", "cli*.json"):
            rows += list(json.loads(path.read_text()).items())
        metafunc.parametrize("script", rows, ids=[name.split()[0] for name, _ in rows])


def test_flags(script) -> None:
    name, flags = script
    transformer = "ACDS-STR-Base" if name.startswith("ACDS") else "mgp-str"
    data = ["--train_data", "a", "--valid_data", "b"]
    options = get_args(["--Transformer", transformer, *data])
    actions = {string: action for action in build_parser(True, "x")._actions for string in action.option_strings}
    for flag in flags:
        for spelling in flag["flags"]:
            action = actions[spelling]
            if flag.get("action") == "store_true":
                assert isinstance(action, argparse._StoreTrueAction), spelling
                assert getattr(options, action.dest) is False
                continue
            assert (action.type or str) is TYPES[flag.get("type")], spelling
            if spelling not in DIFFERENT and not flag.get("required"):
                assert getattr(options, action.dest) == flag.get("default"), spelling
            if flag.get("required") is True:
                assert action.required
            if flag.get("required") == {"expr": "is_train"}:
                testing = {s: a for a in build_parser(False, "x")._actions for s in a.option_strings}
                assert action.required and not testing[spelling].required
