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
    """The reader that the row's `open` makes.

    Raises `UserError` for an option that its `build` does not take, and for a file that is no such reader.

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
    except UserError as error:
        if checkpoint.name in str(error):
            raise
        raise UserError(f"{checkpoint}: {error}") from None
    except Exception as error:  # a file from outside and its metadata can say anything
        found = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
        if found and found[1] in options:
            place = f"{build.__module__}.{build.__qualname__}"
            told = _refusal(row, found[1], f"see {place} for those that it takes")
            raise UserError(f"{checkpoint}: {told}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(
            f"{checkpoint}: does not open as {row.name} ({reason}); name its model with --model, or remove or correct "
            "its metadata file"
        ) from error


def _refusal(row: registry.ModelRow, name: str, fix: str) -> str:
    return f"{row.name} has no option {name!r} (--option, or the metadata of the checkpoint); {fix}"
