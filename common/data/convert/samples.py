"""Any source of (picture, label) pairs -> a word LMDB: what the converters of single data sets share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from common.data.convert.gt import LOG_NAME, Converted
from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import LmdbWriter
from common.errors import UserError
from common.files import write_text


class Source(NamedTuple):
    """One pair to convert: a name for messages, the label, a function that gives the picture's file bytes, and what
    else to store with it (see `LmdbWriter.add`)."""

    name: str
    label: str
    read: Callable[[], bytes]
    extras: Mapping[str, bytes] = MappingProxyType({})

    @classmethod
    def file(cls, path: Path, label: str) -> Source:
        """A picture that is a file."""
        return cls(str(path), label, path.read_bytes)


def write_samples(out: str | Path, sources: Iterable[Source], say: Callable[[str], None] = print) -> Converted:
    """Write the LMDB folder `out`, which must not exist.

    Pairs with an empty label, a missing picture or one that cannot be decoded are skipped and listed in
    `error_image_log.txt`. `say` gets a line every 1,000 samples and the summary. Raises `UserError` for an unwritable
    place, or where nothing could be used.
    """
    out, result, number = Path(out), Converted(), 0
    with LmdbWriter(out) as writer:
        for number, source in enumerate(sources, 1):
            data, reason = _usable(source)
            if data is None:
                result.skipped.append((number, source.name, reason))
                continue
            writer.add(data, source.label, **source.extras)
            if writer.count % 1000 == 0:
                say(f"Written {writer.count}")
        result.written = writer.count
        if not writer.count:
            first = f"; the first: {result.skipped[0][1]}: {result.skipped[0][2]}" if result.skipped else ""
            raise UserError(f"{out}: none of {number} samples can be used{first}")
    if result.skipped:
        rows = "".join(f"{number}\t{name}\t{reason}\n" for number, name, reason in result.skipped)
        write_text(out / LOG_NAME, rows)
        say(f"{len(result.skipped)} of {number} samples skipped, listed in {out / LOG_NAME}")
    say(f"Created dataset with {result.written} samples")
    return result


def _usable(source: Source) -> tuple[bytes | None, str]:
    """The picture's bytes, or None and why not."""
    if not source.label:
        return None, "no label"
    try:
        data = source.read()
        decode_rgb(data)
    except (OSError, KeyError) as error:
        return None, f"no picture ({getattr(error, 'strerror', None) or error})"
    except BadImage as error:
        return None, f"not a readable picture: {error}"
    return data, ""
