"""Build options that a user gives for a reader: one that the model does not know is refused, not skipped."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import registry
from common.errors import UserError


def open_with_options(
    row: registry.ModelRow, checkpoint: Path, options: Mapping[str, Any], device: torch.device, given: Mapping[str, Any]
) -> Any:
    """The reader that the row's `open` makes. Raises `UserError` for an option that its `build` does not take.

    `options` are those of registry entry, metadata and command line, `given` the last ones alone. A `build` that takes
    any name and itself skips what it does not know is believed.
    """
    build = registry.resolve(row.build)
    parameters = inspect.signature(build).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    unknown = sorted(set(given) - set(known))
    if unknown and len(known) == len(parameters):
        raise UserError(_refusal(row, unknown[0], f"it takes {', '.join(known)}"))
    try:
        return registry.resolve(row.open)(checkpoint, options, device)
    except TypeError as error:
        found = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
        if found is None or found[1] not in options:
            raise
        place = f"{build.__module__}.{build.__qualname__}"
        raise UserError(_refusal(row, found[1], f"see {place} for those that it takes")) from None


def _refusal(row: registry.ModelRow, name: str, fix: str) -> str:
    return f"{row.name} has no option {name!r} (--option, or the metadata of the checkpoint); {fix}"
