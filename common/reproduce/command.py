"""`strlab reproduce NAME`: run a project's recipe, evaluate, write the report."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from common.report.command import write_report
from common.reproduce import recipe as recipes
from common.reproduce import release, runner
from common.reproduce.recipe import Recipe
from common.reproduce.runner import clock, default_device


def pick_scale(name: str, recipe: Recipe) -> str:
    """`auto` is gpu where CUDA can be used and the recipe has that scale, else cpu."""
    if name != "auto":
        return name
    return "gpu" if default_device() == "cuda" and "gpu" in recipe.scales else "cpu"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("reproduce", help="run a project's recipe", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="project: siga, mgpstr, dig, ssm, textssr")
    parser.add_argument(
        "--scale",
        default="auto",
        metavar="SCALE",
        help=f"{', '.join(recipes.SCALES)}, or paper-NAME for another published model, cpu-NAME for another way "
        "of the recipe; "
        "default auto: gpu if CUDA is there, else cpu",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="training/ and evaluation/ below it; default: the embedded corpus"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/NAME/SCALE")
    parser.add_argument(
        "--pretrained",
        default="",
        metavar="FILE",
        help="weights that the paper starts from, for recipes that train with them; auto (default) looks in the caches",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="of --scale release: images that every reader sees, and the size of the corpus (default: "
        f"{release.FULL.images:,}, and {release.NUMBERS.images:,} with --words numbers); recipes with equal N can be "
        "compared",
    )
    parser.add_argument(
        "--words",
        choices=tuple(release.WORDS),
        help="of --scale release, the corpus: full (default) has words of up to 25 letters and takes hours for each "
        "reader; numbers has plain numbers of two digits and takes a minute for each",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start anew: earlier results get another name; a rendered corpus is kept"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.set_defaults(run=_reproduce)


def start_weights(given: str) -> str:
    """`--pretrained` as steps need it, which run elsewhere: absolute. Raises `UserError` for a missing file."""
    if given in ("", "auto", "none"):
        return given
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"--pretrained: {given} does not exist; give a weight file, auto or none")
    return str(path)


def _reproduce(args: argparse.Namespace) -> int:
    recipe = recipes.load(args.name)
    scale_name = pick_scale(args.scale, recipe)
    scale = recipe.scale(scale_name)
    if scale_name == "gpu" and default_device() != "cuda" and not args.dry_run:
        raise UserError(
            "--scale gpu: no CUDA device can be used here; take --scale cpu, or install a CUDA build of torch"
        )
    if scale_name == "release" and args.data is not None:
        raise UserError("--data: the readers of --scale release are compared and all learn from the rendered corpus")
    for flag, given in (("--images", args.images), ("--words", args.words)):
        if given is not None and scale_name != "release":
            raise UserError(f"{flag}: only --scale release has it; {scale_name} has none")
    if scale_name == "release":
        scale = replace(scale, **release.budget(args.words or "full", args.images))
    out = (args.out or runner.usual_out(recipe.name, scale_name, scale)).absolute()
    print(f"{recipe.title}\nscale {scale_name}: {scale.note}", flush=True)
    # A terminated run ends its child, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    data, start = args.data.absolute() if args.data else None, start_weights(args.pretrained)
    finished = runner.Runner(recipe, scale_name, scale, out, data, start).run(args.dry_run, args.fresh)
    if args.dry_run:
        return 0
    finished.save()
    html, markdown = write_report(finished)
    print(f"all done in {clock(time.monotonic() - started)}\nreport: {html}\n        {markdown}")
    return 0
