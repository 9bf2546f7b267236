"""The papers, one folder each. They stand on the package `common` that was installed with them."""

import sys
from pathlib import Path

import common

_OURS = Path(__file__).resolve().parent.parent
_FOUND = Path(next(iter(common.__path__))).resolve()
if _FOUND.parent != _OURS:  # another folder or package of that name comes first on sys.path
    _WORDS = f"error: {_FOUND} shadows strlab's package `common`; rename it or start from another folder"
    raise SystemExit(_WORDS) if sys.argv[:1] == ["-m"] else ImportError(_WORDS)
