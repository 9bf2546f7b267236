"""Colour and live tables where the output is a terminal; plain text everywhere else.

The text is the same in both cases: a terminal only gets styles in addition. NO_COLOR in the environment, or TERM=dumb,
switches them off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Rule = tuple[str, str]  # regular expression -> style of rich, such as "bold" or "green"
FIRST: Rule = (r"(?m)^[\w/.-]+(?=  )", "cyan")
TOTALS: Rule = (r"(?m)^(weighted|unweighted|all words|total)\b.*$", "bold")
NOTES: Rule = (r"(?m)^    .*$", "dim")


def is_terminal() -> bool:
    """Whether standard output is a terminal that may get colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def show(text: str, *rules: Rule, header: bool = False) -> None:
    """Print a text; on a terminal with the style of each rule where its pattern matches.

    Args:
        text: what is printed, also without a terminal.
        rules: patterns and their styles; later ones go over earlier ones.
        header: the first line is the head of a table.
    """
    if not is_terminal():
        print(text, flush=True)
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, file=sys.stdout).print(styled(text, *rules, header=header))


def styled(text: str, *rules: Rule, header: bool = False) -> Any:
    """The text as rich shows it: `rich.text.Text`."""
    from rich.text import Text

    made = Text(text)
    for pattern, style in rules:
        made.highlight_regex(pattern, style)
    if header:
        made.highlight_regex(r"\A.*", "bold underline")
    return made


@contextmanager
def live(draw: Callable[[], Any]) -> Iterator[None]:
    """On a terminal, keep what `draw` returns (anything that rich shows) in view and up to date; it vanishes at the
    end. Elsewhere nothing is shown."""
    if not is_terminal():
        yield
        return
    from rich.live import Live

    with Live(get_renderable=draw, refresh_per_second=4, transient=True):
        yield
