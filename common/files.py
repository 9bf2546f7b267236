"""Small files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush it to the disk, rename it. Raises `UserError` naming the path."""
    from common.train.checkpoint import atomic_file

    with atomic_file(Path(path), len(data)) as file:
        file.write(data)
    return Path(path)


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text; lone surrogates are written as question marks."""
    return write_bytes(path, text.encode("utf-8", "replace"))
