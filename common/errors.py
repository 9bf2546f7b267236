"""The one kind of error that a user caused and can cure, and how a command shows it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file or flag, the field, and the cure, in one line."""


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a script's `main` so that a `UserError` prints one line and gives exit status 2, without a traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130

    return wrapped
