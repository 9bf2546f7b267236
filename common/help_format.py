"""How `strlab` shows help: never wider than 80 columns, docstrings wrapped anew, long lists of choices out of the
way."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

LONGEST_CHOICES = 28  # characters of "{a,b,c}" that fit next to a flag


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the paragraphs of a description and wraps each; lines that are indented keep their place and hang."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 24, width: int | None = None):
        width = min(width or shutil.get_terminal_size().columns, 80)
        super().__init__(prog, indent_increment, max_help_position, width - 1)

    def add_argument(self, action: argparse.Action) -> None:
        """Count the indentation of the commands too: argparse does not, and breaks the line after the longest one."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            longest = max((len(name) for name in action.choices), default=0)
            indent = self._current_indent + self._indent_increment
            self._action_max_length = max(self._action_max_length, longest + indent)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks: list[str] = []
        for block in re.split(r"\n\s*\n", text.strip("\n")):
            plain: list[str] = []
            for line in [*block.splitlines(), None]:
                if line is not None and not line.startswith("    "):
                    plain.append(line)
                    continue
                if plain:
                    blocks.append(textwrap.fill(" ".join(plain), width, break_on_hyphens=False))
                    plain = []
                if line is not None:
                    column = len(line) - len(line.lstrip())
                    hang = column + (match.end() if (match := re.match(r"\S+( \S+)*? {2,}", line.lstrip())) else 4)
                    blocks.append(textwrap.fill(line.strip(), width, initial_indent=" " * column,
                                                subsequent_indent=" " * hang, break_on_hyphens=False))  # fmt: skip
            blocks.append("")
        return "\n".join(blocks).rstrip()

    def _long_choices(self, action: argparse.Action) -> bool:
        named = action.metavar is None and action.choices is not None and bool(action.option_strings)
        longest = LONGEST_CHOICES if action.nargs is None else LONGEST_CHOICES // 4  # a repeated one is shown twice
        return named and len(",".join(map(str, action.choices))) > longest

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str):
        if not self._long_choices(action):
            return super()._metavar_formatter(action, default_metavar)
        return lambda size: ("NAME",) * size

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if self._long_choices(action):
            text = f"{text + '; ' if text else ''}one of {', '.join(map(str, action.choices)).replace('%', '%%')}"
        return text


class DefaultsFormatter(HelpFormatter):
    """Also shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        has = action.default not in (None, False, "", argparse.SUPPRESS) and "(default" not in text
        return f"{text} (default: %(default)s)".strip() if has and action.option_strings else text


def use_everywhere(parser: argparse.ArgumentParser) -> None:
    """Let a parser and all of its subparsers show their help in this way."""
    parser.formatter_class = HelpFormatter
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                use_everywhere(inner)
