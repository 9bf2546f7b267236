"""Build options that a user gives for a reader: one that the model does not know is refused, not passed over."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from common import registry
from common.errors import UserError


class Asked(dict):
    """Options that remember in `names` which of them were asked for, and in `whole` if all were taken at once."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.names: set[str] = set()
        self.whole = False

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's."""
        self.names.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.whole = True
        return super().__iter__()

    def keys(self) -> Any:
        """As a dict's; `**options` comes here."""
        self.whole = True
        return super().keys()

    def items(self) -> Any:
        """As a dict's."""
        self.whole = True
        return super().items()


def open_with_options(
    row: registry.ModelRow, checkpoint: Path, options: dict[str, Any], device: torch.device, given: set[str]
) -> Any:
    """The reader that the row's `open` makes. Raises `UserError` for options in `given` that it refuses or never reads.

    A reader that takes all options at once and passes some over is believed.
    """
    asked = Asked(options)
    try:
        reader = registry.resolve(row.open)(checkpoint, asked, device)
    except TypeError as error:
        found = re.match(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if found is None or found[2] not in options:
            raise
        *_, (caller, _) = traceback.walk_tb(error.__traceback__)
        refusing = {**caller.f_globals, **caller.f_locals}.get(found[1].split(".")[0])
        known = {name for function in (registry.resolve(row.build), refusing) for name in _parameters(function)}
        raise UserError(_refusal(row, found[2], known)) from None
    unread = sorted(given - asked.names)
    if unread and not asked.whole:
        raise UserError(_refusal(row, unread[0], asked.names))
    return reader


def _parameters(function: Callable | None) -> list[str]:
    """Names of the arguments of a function or class that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.values() if callable(function) else ()
    return [parameter.name for parameter in found if parameter.kind in kinds]


def _refusal(row: registry.ModelRow, name: str, known: Iterable[str]) -> str:
    """What is told about an option that a model has not."""
    return f"--option: {row.name} has no option {name!r}; it takes {', '.join(sorted(known)) or 'none'}"
