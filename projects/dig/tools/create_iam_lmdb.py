#!/usr/bin/env python
"""IAM handwriting, one split, from the word crops that it comes with."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from projects.dig.tools import sources
from projects.dig.tools.command_line import converter

SPLIT = {"choices": sources.IAM_SPLITS, "help": "list of form lines, <split>.txt in the folder"}
main = converter(__doc__, sources.iam, "folder with ascii/, words/ and the split files", split=SPLIT)

if __name__ == "__main__":
    sys.exit(main())
