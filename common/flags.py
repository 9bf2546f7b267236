"""Published command lines: a parser like theirs, and how flags without effect are taken."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch

NO_EFFECT_TITLE = "accepted for compatibility, no effect"


def new_parser(script: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults; flags cannot be shortened, as two published ones often share a beginning."""
    kind = argparse.ArgumentDefaultsHelpFormatter
    return argparse.ArgumentParser(script, description=description, formatter_class=kind, allow_abbrev=False)


def add_no_effect(parser: argparse.ArgumentParser, table: Mapping[str, tuple]) -> None:
    """Add flags that the published script parses and never reads: name -> (type, default[, nargs]); bool: a switch."""
    group = parser.add_argument_group(NO_EFFECT_TITLE)
    for name, (kind, default, *nargs) in table.items():
        if kind == "switch":
            group.add_argument(f"--{name}", action="store_true", default=default, help="no effect")
        else:
            more = {"nargs": nargs[0]} if nargs else {}
            group.add_argument(f"--{name}", type=kind, default=default, help="no effect", **more)


def note_no_effect(options: argparse.Namespace, table: Mapping[str, tuple]) -> None:
    """One line that names the flags of `table` that were given another value than their default."""
    given = [f"--{name}" for name, (_, default, *_) in table.items() if getattr(options, name) != default]
    if given:
        print(f"no effect (accepted for compatibility): {' '.join(given)}")


def settle_device(options: argparse.Namespace, argv: Sequence[str] | None) -> None:
    """Without `--device` the published default, cuda, means CUDA if there is any; one line says when there is none."""
    given = any(word.split("=")[0] == "--device" for word in (sys.argv[1:] if argv is None else argv))
    if not given and not torch.cuda.is_available():
        print("no CUDA device: training on the CPU")
        options.device = "cpu"
