"""Pre-training and pixel tasks train to the very bits of the loops that the present one replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ssm import states


@pytest.mark.slow
@pytest.mark.parametrize("case", states.CASES)
def test_states_are_those_of_the_old_loop(case: str, tmp_path: Path) -> None:
    expected = json.loads(states.FILE.read_text("utf-8")).get(states.key())
    if expected is None:
        pytest.skip(f"recorded on other machines, not on {states.key()}")
    assert states.hashes(case, tmp_path) == expected[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", states.FINETUNE)
def test_finetuning_leaves_what_it_left(case: str, tmp_path: Path) -> None:
    expected = json.loads(states.FILE.read_text("utf-8")).get(states.key(), {}).get(case)
    if expected is None:
        pytest.skip(f"recorded on other machines, not on {states.key()}")
    assert states.finetune_hashes(case, tmp_path) == expected
