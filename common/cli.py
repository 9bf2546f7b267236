"""`strlab`: the command that the library installs.

A subcommand's module is imported only when it is called, so that `strlab --help` is quick. Each module offers

    def add_parser(subparsers) -> None:
        parser = subparsers.add_parser("doctor", help="…", description=__doc__)
        parser.add_argument(…)
        parser.set_defaults(run=function)      # function(args: argparse.Namespace) -> int | None

A project adds its own subcommands of `strlab convert` and `strlab data convert` in `projects/<name>/convert.py` and
`projects/<name>/data_convert.py`, in the same form. A command that one project alone can offer (`strlab paint`) is in a
module of that project.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from common import __version__, registry
from common.errors import UserError, command
from common.flags import Parser


class Command(NamedTuple):
    """Where a subcommand lives: a module with `add_parser`, a module that each project may offer, or both; or the
    module that a single project offers."""

    help: str
    module: str = ""
    project_module: str = ""
    single_module: str = ""


COMMANDS: dict[str, Command] = {
    "data synth": Command("render the embedded corpus of word crops", "common.data.synth"),
    "data scenes": Command("render scenes with word polygons", "common.data.synth.scenes"),
    "data list": Command("list the public word sets", "common.data.sets.listing"),
    "data info": Command("what is known of a public word set", "common.data.sets.info"),
    "data verify": Command("check converted sets", "common.data.sets.verify"),
    "data annotate": Command("find and read the words of pictures: a scene file", "common.infer.annotate"),
    "data convert": Command("turn a public data set into a word LMDB", "common.data.convert", "data_convert"),
    "data augment-sheet": Command("draw what an augmentation recipe does", "common.augment.sheet"),
    "doctor": Command("check the word LMDBs below a folder, repair into a new one", "common.report.doctor"),
    "models": Command("list the registered models and their published weights", "common.infer.models_command"),
    "read": Command("read the text in images", "common.infer.read"),
    "eval": Command("accuracy of a checkpoint on every LMDB below a folder", "common.infer.evaluate"),
    "compare": Command("several readers on the same words: table, tests, page", "common.report.compare"),
    "paint": Command("paint a word into a picture", single_module="paint"),
    "export": Command("write a checkpoint as ONNX and check it", "common.infer.export"),
    "serve": Command("a web page and an HTTP API that read pictures", "common.serve.command"),
    "train": Command("train the small reader that ships; a paper: reproduce", "common.reader.train"),
    "report": Command("write the reports of finished runs again", "common.report.command"),
    "reproduce": Command("run a project's recipe, evaluate, write the report", "common.reproduce.command"),
    "curve": Command("how many labelled words are needed: table and chart", "common.reproduce.curve"),
    "sources": Command("which words are worth training on: table and chart", "common.reproduce.sources"),
    "sanity": Command("overfit 64 images with a project's reader", "common.reproduce.sanity"),
    "bench": Command("time the data path and the models against plain code", "common.bench.command"),
    "gpu-check": Command("checks and throughput of a GPU, as JSON", "common.bench.gpu_check"),
    "convert": Command("translate checkpoints between published forms", "", "convert"),
}
ABOUT = """Scene text recognition: five papers on one library.

Where to start:

    strlab read crop.png       the text in a picture
    strlab serve               a web page and an HTTP API
    strlab reproduce siga      a paper, from data to report
    strlab doctor FOLDER       is my data sound?
    strlab COMMAND --help      what a command takes"""
GROUPS = {"data": "make, convert and look at data"}


class CommandParser(Parser):
    """The parser of one command: flags that it does not know are its own error, so that its own are suggested."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse as `Parser` does, and leave nothing to the parser of all commands."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return namespace, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `strlab` command; returns the exit status."""
    return _main(list(sys.argv[1:] if argv is None else argv))


@command
def _main(argv: list[str]) -> int | None:
    """Parse and run; `UserError` becomes one line and status 2."""
    name = " ".join(argv[:2]) if argv[:1] and argv[0] in GROUPS else "".join(argv[:1])
    parser = build_parser(name)
    args = parser.parse_args(argv)
    run = getattr(args, "run", None)
    if run is None:
        _deepest(parser, argv).print_help()
        return 0 if not argv else 2
    return run(args)


def build_parser(wanted: str = "") -> argparse.ArgumentParser:
    """The parser with the full arguments of the subcommand `wanted` ("read", "data synth") and one line for the
    others."""
    parser = Parser(prog="strlab", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"strlab {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=CommandParser)
    groups = {}
    for group, help_text in GROUPS.items():
        groups[group] = subparsers.add_parser(group, help=help_text, description=help_text).add_subparsers(
            metavar="COMMAND", title="commands"
        )
    for name, entry in COMMANDS.items():
        group, _, leaf = name.rpartition(" ")
        place = groups[group] if group else subparsers
        if name == wanted:
            _add_full(place, leaf, entry)
        else:
            place.add_parser(leaf, help=entry.help, add_help=False)
    return parser


def _add_full(place, leaf: str, entry: Command) -> None:
    """Import the modules of one subcommand and let them add their arguments."""
    if entry.project_module:
        parser = place.add_parser(leaf, help=entry.help, description=entry.help)
        inner = parser.add_subparsers(metavar="KIND", title="kinds")
        for module in _kinds(entry):
            module.add_parser(inner)
        return
    try:
        module = importlib.import_module(entry.module) if entry.module else _offered(entry)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith(("common", "projects")):
            raise UserError(f"strlab {leaf}: the package {error.name!r} is not installed; run `make setup`") from error
        raise
    module.add_parser(place)


def _offered(entry: Command) -> ModuleType:
    """The module of the project that offers a command. Raises `UserError` where no installed project does."""
    module = registry.offered(entry.single_module)
    if module is None:
        raise UserError(f"strlab {entry.single_module}: no installed project offers it; run `make setup`")
    return module


def _kinds(entry: Command) -> list:
    """The modules that add kinds to a command: the library's own, then each project's."""
    modules = [importlib.import_module(entry.module)] if entry.module else []
    found = (registry.project_module(project, entry.project_module) for project in sorted(registry.project_modules()))
    return modules + [module for module in found if module is not None]


def _deepest(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the group that `argv` names, for its help."""
    for action in parser._subparsers._group_actions if argv and parser._subparsers else []:
        if argv[0] in action.choices:
            return _deepest(action.choices[argv[0]], argv[1:])
    return parser


if __name__ == "__main__":
    sys.exit(main())
