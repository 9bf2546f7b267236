"""`strlab sanity NAME`: can a project's reader learn 64 words by heart? It runs the recipe's `[sanity]` steps and
evaluates.

A reader that cannot has a fault in its labels, loss or decoding; this shows it in minutes instead of days.
"""

from __future__ import annotations

import argparse

from common.errors import UserError
from common.reproduce import recipe as recipes
from common.reproduce import runner


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("sanity", help="overfit 64 images", description=__doc__)
    parser.add_argument("name", help="project: siga, mgpstr, dig, ssm, textssr")
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    recipe = recipes.load(args.name)
    if recipe.sanity is None:
        raise UserError(f"{recipe.path}: there is no [sanity] table")
    steps = runner.Runner(recipe, "sanity", recipe.sanity, runner.ROOT / "outputs" / recipe.name / "sanity", None)
    finished = steps.run(args.dry_run, args.fresh)
    evaluation = finished.evaluation
    if args.dry_run or evaluation is None:
        return 0
    reached = evaluation["totals"]["weighted"]["protocols"]["36"]["accuracy"] or 0.0
    passed = reached >= recipe.sanity.at_least
    verdict = "fine" if passed else "too little: look at labels, loss and decoding before training on more"
    wanted = f"{recipe.sanity.at_least:g} % are asked for"
    print(f"{recipe.name}: reads {reached:.1f} % of its own training words, {wanted}: {verdict}")
    return 0 if passed else 1
