"""Public data sets -> word LMDBs. `strlab data convert KIND …`; projects add kinds of their own."""

from __future__ import annotations

from common.data.convert.gt import add_parser

__all__ = ["add_parser"]
