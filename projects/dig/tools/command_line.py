"""The one command line of the converters: arguments of a source, and the LMDB folder to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.data.convert.samples import Source, write_samples
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
    """

    @command
    def main(argv: Sequence[str] | None = None) -> None:
        parser = Parser(description=description)
        parser.add_argument("root", type=Path, help=root)
        for name, words in arguments.items():
            parser.add_argument(name, **words)
        parser.add_argument("out", type=Path, help="LMDB folder to make; must not exist")
        options = parser.parse_args(argv)
        write_samples(options.out, source(options.root, *(getattr(options, name) for name in arguments)))

    return main
