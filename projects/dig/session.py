"""Start and end of a script; see `common.train.session`."""

from __future__ import annotations

from common.train.session import session

__all__ = ["session"]
