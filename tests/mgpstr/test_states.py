"""States after 4 and 8 steps, with a resume between, are bit for bit those of the first training loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.common.digests import key
from tests.mgpstr import states


@pytest.mark.parametrize(("name", "processes"), states.CASES)
def test_states_have_not_moved(name: str, processes: int, tmp_path: Path) -> None:
    case = f"{name} x{processes}"
    stored = json.loads(states.FILE.read_text("utf-8")).get(key(), {}).get(case)
    if stored is None:
        pytest.skip(f"no states of {case} recorded for {key()}")
    assert states.hashes(name, processes, tmp_path) == stored
