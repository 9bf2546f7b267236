"""Writing files so that a reader sees the old content or the new one, never a half."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common.errors import UserError


def write_bytes(path: Path, data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush it to the disk, and rename it. Raises `UserError` naming the path."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error}, {len(data)} bytes needed)") from None
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text; lone surrogates are written as replacement characters."""
    return write_bytes(path, text.encode("utf-8", "replace"))
