#!/usr/bin/env python
"""CVL handwriting, one split."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from projects.dig.tools import sources
from projects.dig.tools.command_line import converter

main = converter(
    __doc__, sources.cvl, "folder with trainset/ and testset/", split={"choices": ("train", "test"), "help": "which"}
)

if __name__ == "__main__":
    sys.exit(main())
