"""The registry entry of the default reader."""

from __future__ import annotations

from common.registry import ModelRow
from common.text.charset import CHARSET_94

ROWS = [
    ModelRow(
        name="strlab/compact",
        kind="recogniser",
        image_size=(32, 128),
        charset=CHARSET_94,
        build="common.reader.reader:build",
        open="common.reader.reader:open_reader",
        paper="none: a small convolutional CTC reader, the default of `strlab read`",
        status="additional (not from a paper)",
    )
]
