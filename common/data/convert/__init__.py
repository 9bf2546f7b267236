"""Public data sets -> LMDBs. `strlab data convert KIND …`; projects add kinds of their own."""

from __future__ import annotations

import argparse

from common.data.convert import anyword, gt, lmdbs, public, scene_files

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    gt.add_parser(subparsers)
    anyword.add_parser(subparsers)
    scene_files.add_parser(subparsers)
    lmdbs.add_parser(subparsers)
    public.add_parser(subparsers)
