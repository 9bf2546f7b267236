"""The states of short runs are, leaf by leaf, those of the loops that the present one replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dig import states


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), states.CASES)
def test_states_are_unchanged(name: str, processes: int, tmp_path: Path) -> None:
    expected = json.loads(states.FILE.read_text("utf-8")).get(states.key())
    if expected is None:
        pytest.skip(f"recorded on other machines only, not on {states.key()}")
    assert states.hashes(name, processes, tmp_path) == expected[f"{name} x{processes}"]
