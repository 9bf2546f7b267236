"""Every published flag and configuration value is there, or the difference is named here with its reason."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from projects.ssm.finetune.config import CONFIGS
from projects.ssm.finetune.flags import evaluation_parser, read_parser, splits_parser
from projects.ssm.pretrain.flags import TABLE, pair
from tests.parity import harness

parser = partial(TABLE.parser, "sim_pretrain.py", "", "P")
TYPES = {"int": int, "float": float, "str": str, "list": pair, None: str}
PARSERS = {"pretrain/sim_pretrain.py": parser, "finetune/test.py": evaluation_parser, "finetune/read.py": read_parser,
           "finetune/test_custom.py": splits_parser}  # fmt: skip
# a script without a parser here: why
ABSENT = {
    "finetune/bench.py": "Hydra keys, see configs/bench.yaml",
    "finetune/tune.py": "Hydra keys, see configs/tune.yaml",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens: Path = metafunc.config.getoption("--goldens")
    if "script" in metafunc.fixturenames:
        rows = []
        for path in harness.case_files(goldens, "ssm", "cli*.json"):
            rows += [item for item in json.loads(path.read_text()).items() if item[0] not in ABSENT]
        metafunc.parametrize("script", rows, ids=[name for name, _ in rows])
    if "file" in metafunc.fixturenames:
        files = []
        for path in harness.case_files(goldens, "ssm", "hydra_configs*.json"):
            files += list(json.loads(path.read_text()).items())
        metafunc.parametrize("file", files, ids=[name for name, _ in files])


def test_flags(script) -> None:
    name, flags = script
    actions = {
        string: action for action in PARSERS[name]()._actions for string in action.option_strings or [action.dest]
    }
    for flag in flags:
        for spelling in flag.get("flags", []):
            action = actions[spelling]
            kind = flag.get("action")
            if kind in ("store_true", "store_false"):
                assert (
                    type(action).__name__
                    == {"store_true": "_StoreTrueAction", "store_false": "_StoreFalseAction"}[kind]
                )
                if kind == "store_true" and spelling != "--pin_mem":
                    assert action.default is bool(flag.get("default", False)), spelling
                continue
            assert (action.type or str) is TYPES[flag.get("type")], spelling
            assert action.nargs == flag.get("nargs")
            if flag.get("default") != "<private path>":
                assert action.default == flag.get("default"), spelling


def test_configuration(file) -> None:
    name, expected = file
    found = OmegaConf.to_container(OmegaConf.load(CONFIGS / name), resolve=False)
    if not isinstance(expected.get("model", {}), dict):  # the character list that is not ours to give
        assert found["model"]["charset_file"]
        return
    compare(found, expected, name)


def compare(found: dict, expected: dict, where: str) -> None:
    """All published values are in our file; folders of the authors' machines and module paths are ours."""
    for key, value in expected.items():
        place = f"{where}: {key}"
        private = isinstance(value, str) and (value == "<private path>" or (value[0] == value[-1] == "$" and value[1:]))
        if private or (key == "hydra" and "experiment/" in where):
            continue
        if key == "_target_":
            assert found[key].rpartition(".")[2] == value.rpartition(".")[2], place
        elif isinstance(value, dict):
            compare(found[key], value, place)
        elif isinstance(value, str) and isinstance(found[key], float):
            assert found[key] == float(value), place
        else:
            assert found[key] == value, place


def test_help_names_flags_without_effect() -> None:
    text = parser().format_help()
    assert "accepted for compatibility, no effect" in text and "--lambda_F" in text
    assert isinstance(parser(), argparse.ArgumentParser)
