"""Every published flag is accepted with its type and default; differences are listed here with their reason."""

from __future__ import annotations

import argparse
import json

import pytest

from projects.mgpstr.flags import table
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


def actions_of(script: str, variant: str) -> dict[str, argparse.Action]:
    parser = table(script).parser("x", "STR", variant)
    return {string: action for action in parser._actions for string in action.option_strings}


def test_flags(script) -> None:
    name, flags = script
    variant = "A" if name.startswith("ACDS") else "M"
    actions, testing = actions_of("train_final_dist.py", variant), actions_of("test_final.py", variant)
    for flag in flags:
        for spelling in flag["flags"]:
            action = actions[spelling]
            if flag.get("action") == "store_true":
                assert action.nargs == 0 and action.const is True and action.default is False, spelling
                continue
            assert (action.type or str) is TYPES[flag.get("type")], spelling
            if spelling not in DIFFERENT and not flag.get("required"):
                assert action.default == flag.get("default"), spelling
            if flag.get("required") is True:
                assert action.required and testing[spelling].required
            if flag.get("required") == {"expr": "is_train"}:
                assert action.required and not testing[spelling].required
