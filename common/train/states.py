"""The training states of a run's folder: written each so often, the last few kept, the newest whole one found again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import DiskFull
from common.train.checkpoint import clear_unfinished, keep_last, latest
from common.train.distributed import Dist
from common.train.state import FORMAT, TrainingState

STATES = "training_state-*.pth"


def save_state(state: TrainingState, folder: Path, dist: Dist, keep: int = 2, on_full: str = "stop") -> bool:
    """Write the state of this step and delete all but the last `keep` (0: all stay). Collective.

    Returns False if the disk is full and `on_full` is "continue"; raises `DiskFull` otherwise.
    """
    try:
        state.save(folder / STATES.replace("*", f"{state.step:09d}"), dist)
    except DiskFull as error:
        if on_full == "stop":
            raise
        print(f"state not saved, going on: {error}")
        return False
    if dist.is_main:
        keep_last(folder, STATES, keep)
    return True


def newest_state(folder: Path, dist: Dist) -> tuple[Path, dict[str, Any]] | None:
    """The newest state of the folder that can be read, with its content; None where there is none."""
    if dist.is_main:
        clear_unfinished(folder)
    return latest(folder, STATES)


def is_state(content: Any) -> bool:
    """True for the content of a training state, False for that of a published checkpoint."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def same_options(content: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Raise `UserError` if one of these options of the state differs from the run's."""
    wrote = content.get("options", {})
    for name in names:
        if name in wrote and wrote[name] != now[name]:
            raise UserError(
                f"{what}: {name}: the state was written with {wrote[name]!r}, this run has {now[name]!r}; "
                f"give --{name} as then, or use --saved_model for weights only"
            )
