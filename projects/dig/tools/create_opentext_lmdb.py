#!/usr/bin/env python
"""Unlabelled word crops of OpenImages v5, for pre-training; every label is ###."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from projects.dig.tools import sources
from projects.dig.tools.command_line import converter

main = converter(__doc__, sources.opentext, "folder with training_1_set/ … validation_set/")

if __name__ == "__main__":
    sys.exit(main())
