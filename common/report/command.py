"""`strlab report`: write the reports of finished reproductions again, for example after the report's form has
changed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import registry
from common.errors import UserError
from common.report.finished import Finished
from common.report.standard import standard_report


def write_report(finished: Finished) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the output folder.

    A project may offer `projects/<name>/report.py: build(run_dir: Path, finished: Finished) -> Report`; without it the
    report is the standard one.
    """
    module = registry.project_module(finished.project, "report")
    report = module.build(finished.run_dir, finished) if module else standard_report(finished)
    return report.write(finished.out)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("report", help="write the reports of finished runs again", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="searched for runs (default: outputs)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    folders = sorted(path.parent for path in args.folder.rglob("finished.json"))
    if not folders:
        raise UserError(f"{args.folder}: no finished reproduction below it; run `strlab reproduce NAME` first")
    failed = 0
    for folder in folders:
        try:
            html, _ = write_report(Finished.load(folder.absolute()))
            print(html)
        except UserError as error:  # the other runs have their reports all the same
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0
