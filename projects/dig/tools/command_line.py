"""The one command line of the converters: arguments of a source, and the LMDB folder to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.data.convert.samples import Source, add_running_arguments, write_samples
from common.data.parts import find_shard
from common.errors import command
from common.flags import Parser


def converter(
    description: str, source: Callable[..., Iterable[Source]], root: str, **arguments: dict
) -> Callable[..., int]:
    """The `main` of a converter.

    Args:
        description: for `--help`.
        source: called with the root folder and the further arguments.
        root: help of the first argument.
        arguments: further positional arguments, name -> keywords of `add_argument`.

    A killed conversion resumes when the same command is given again; `--workers` and `--shard` share it.
    """

    @command
    def main(argv: Sequence[str] | None = None) -> None:
        parser = Parser(description=description)
        parser.add_argument("root", type=Path, help=root)
        for name, words in arguments.items():
            parser.add_argument(name, **words)
        parser.add_argument("out", type=Path, help="LMDB folder to make; must not exist")
        add_running_arguments(parser)
        options = parser.parse_args(argv)
        values = [getattr(options, name) for name in arguments]
        plan = {"tool": description, "root": str(options.root.absolute()), **dict(zip(arguments, map(str, values)))}
        how = {"workers": options.workers, "shard": find_shard(options.shard), "plan": plan}
        write_samples(options.out, source(options.root, *values), **how)

    return main
