"""Pictures and records from outside, which may be anything: what every converter does with a bad one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from common.data.decode import BadImage, decode_rgb
from common.errors import UserError
from common.files import read_below

Record, Made = TypeVar("Record"), TypeVar("Made")
# What Python raises where a record lacks a field, has one of another kind, or a number that is none.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Unusable(Exception):
    """Why a record or picture cannot be used."""


def picture_below(root: Path, name: str, check: bool = True) -> bytes:
    """The bytes of the picture `name` below `root`; `check` decodes it. Raises `Unusable`."""
    try:
        data = read_below(root, name)
        if check:
            decode_rgb(data)
    except BadImage as error:
        raise Unusable(f"not a readable picture: {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise Unusable(f"no readable file ({getattr(error, 'strerror', None) or error})") from None
    return data


def each(
    records: Iterable[tuple[str, Record]],
    read: Callable[[Record], Iterable[Made]],
    bad: Callable[[str, str], Made],
) -> Iterator[Made]:
    """What `read` makes of every record; for a malformed one `bad(where, reason)`, so that one cannot end all.

    records: (file and line, record) pairs.
    """
    for where, record in records:
        try:
            yield from list(read(record))
        except UserError as error:
            yield bad(where, str(error))
        except MALFORMED as error:
            yield bad(where, malformed(error))


def malformed(error: Exception) -> str:
    """What is wrong with a record that lacks a field or holds another kind of value."""
    return f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
