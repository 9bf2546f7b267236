"""`strlab doctor`: faults, leaks, likely label errors and statistics of word sets."""

from __future__ import annotations

from common.report.doctor.command import add_parser

__all__ = ["add_parser"]
