#!/usr/bin/env python
"""Reconstructed pictures with the labels of their originals, to measure how readable they are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from projects.dig.tools import sources
from projects.dig.tools.command_line import converter

INFO = {"type": Path, "help": "table path -> label: .json, or .npy as published"}
main = converter(__doc__, sources.reconstructions, "folder that the paths in the table start from", info=INFO)

if __name__ == "__main__":
    sys.exit(main())
