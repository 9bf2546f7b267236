"""Published command lines as tables: one row a flag, from which the parser, its `--help`, ranges and notices are made.

TABLE = Table({
    "data": (
        Flag("--train_data", help="root of the training LMDBs"),
        Flag("--batch_size", int, per(RT=384, S=288), "images a step", range=(1, inf)),
    ),
    "steps": (Flag("--valInterval --val_interval", int, 2000, "steps between evaluations", free=True),),
}, variants="RST")

values, given = TABLE.parse(argv, prog="train.py", description="Train SIGA.", variant="R")
options = fill(Options, values)               # a frozen dataclass with the fields that the script reads
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from common.errors import UserError, is_first

NO_EFFECT_TITLE = "accepted for compatibility, no effect"
LONGEST_CHOICES = 28  # characters of "{a,b,c}" that fit next to a flag


def at_home(value: Any) -> Any:
    """A path or a text, or a list of them, in which a leading `~` or `~/` is the home folder.

    Shells leave it alone in `--out=~/x`, in `key=~/x` and in quotes. Other texts that begin with `~` stay as they are.
    """
    if isinstance(value, Path):
        return Path(at_home(str(value)))
    if isinstance(value, str):
        return str(Path(value).expanduser()) if value == "~" or value.startswith("~/") else value
    return type(value)(map(at_home, value)) if type(value) in (list, tuple) else value


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

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """Not the flag's name a second time."""
        return {int: "N", float: "X", Path: "PATH"}.get(action.type, "VALUE")

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


class Parser(argparse.ArgumentParser):
    """An argparse parser that puts the home folder in place of `~` in every value, and refuses in one line.

    `literal` names the options whose text is no path, as a charset.
    """

    literal: tuple[str, ...] = ("character", "charset", "text")

    def __init__(self, *args: Any, formatter_class: type[argparse.HelpFormatter] = HelpFormatter, **more: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **more)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse as argparse does; `--batch-size` and `--batch_size` are one flag, and values that are paths get the
        home folder in place of `~`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        namespace, rest = super().parse_known_args([*map(self._spelt, words[:end]), *words[end:]], namespace)
        for name, value in vars(namespace).items():
            if name not in self.literal:
                setattr(namespace, name, at_home(value))
        return namespace, rest

    def _spelt(self, word: str) -> str:
        """A word of the command line with its flag as it is defined, where only `-` and `_` differ."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        bare = flag[2:].replace("_", "-")
        same = (known for known in self._option_string_actions if known[2:].replace("_", "-") == bare)
        return f"{next(same, flag)}{equals}{value}"

    def error(self, message: str) -> NoReturn:
        """Print one line, with the nearest flag or choice where one was mistyped, and leave with status 2."""
        message, known = message.removeprefix("argument "), list(self._option_string_actions)
        words = message.removeprefix("unrecognized arguments: ").split() if message.startswith("unrecognized") else []
        for flag in (word.split("=")[0] for word in words if word.startswith("-")):
            if near := difflib.get_close_matches(flag, known, 1):
                message += f" (did you mean {near[0]}?)"
                break
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            choices = re.findall(r"[^\s,']+", wrong[2])
            if near := difflib.get_close_matches(wrong[1], choices, 1):
                message = f"{message[: wrong.start()]}invalid choice: {wrong[1]!r} (did you mean {near[0]}?)"
        print(f"error: {' '.join(message.split())}; `{self.prog} --help` lists what it takes", file=sys.stderr)
        self.exit(2)


def new_parser(script: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults; flags cannot be shortened, as two published ones often share a beginning."""
    return Parser(script, description=description, formatter_class=DefaultsFormatter, allow_abbrev=False)


Options = TypeVar("Options")


def per(**values: Any) -> dict[str, Any]:
    """Default values by variant, each variant a letter: `per(RS=1, T=2)`."""
    return {variant: value for variants, value in values.items() for variant in variants}


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        names: its spellings, separated by blanks; the first one names the option.
        type: int, float, str, or a function of the text; bool is a switch (with `const=False` one that turns off).
        default: a value, or values by variant (`per`).
        help: one line.
        range: least and greatest value of a number; None (not given) is always right.
        dead: the published code takes the flag and never uses it; a string of letters: in these variants.
        variants: letters of the variants that have the flag; "" for all.
        free: a resumed run may have another value, for the numbers that are trained do not depend on it.
        choices, nargs, const: as argparse has them.
        dest: name of the option where it is not the first spelling.
        required: the command line must have it.
    """

    names: str
    type: Callable[[str], Any] = str
    default: Any = None
    help: str = ""
    range: tuple[float, float] | None = None
    dead: bool | str = False
    variants: str = ""
    free: bool = False
    choices: Sequence[Any] | None = None
    nargs: int | str | None = None
    const: Any = None
    dest: str = ""
    required: bool = False

    @property
    def name(self) -> str:
        """Attribute of the options that holds the value."""
        return self.dest or self.names.split()[0].lstrip("-").replace("-", "_")

    def value(self, variant: str) -> Any:
        """The default of a variant."""
        return self.default.get(variant) if isinstance(self.default, dict) else self.default

    def is_dead(self, variant: str) -> bool:
        """True where the flag has no effect."""
        return variant in self.dead if isinstance(self.dead, str) and variant else bool(self.dead)

    def add(self, group: argparse._ArgumentGroup, variant: str, suppress: bool) -> None:
        """Define the flag in a group of an argparse parser; with `suppress` it has no default."""
        value = self.value(variant)
        words: dict[str, Any] = {"dest": self.name, "help": self.help.replace("%", "%%")}
        if self.type is bool and self.nargs is None:
            value = bool(value)
            words["action"] = "store_false" if self.const is False else "store_true"
        else:
            words["type"] = self.type
            words |= {
                key: getattr(self, key) for key in ("nargs", "choices", "const") if getattr(self, key) is not None
            }
            if value not in (None, "", False):
                words["help"] += " (default: %(default)s)"
        if self.required and not suppress:
            words["required"] = True
        group.add_argument(*self.names.split(), default=argparse.SUPPRESS if suppress else value, **words)

    def check(self, value: Any) -> None:
        """Raise `UserError` for a number outside the range, or one that is not finite."""
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, float) and not isfinite(number):
                raise UserError(f"--{self.name}: {number} is not a finite number")
            if self.range is None or number is None or not isinstance(number, (int, float)):
                continue
            least, most = self.range
            if not least <= number <= most:
                words = f"at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
                raise UserError(f"--{self.name}: {number} must be {words}")


@dataclass(frozen=True)
class Table:
    """The flags of a script in groups, for all its variants.

    Attributes:
        groups: title in `--help` -> flags.
        epilog: printed below `--help`.
    """

    groups: Mapping[str, Sequence[Flag]]
    epilog: str = ""

    def flags(self, variant: str = "") -> Iterator[Flag]:
        """The flags that a variant has."""
        for group in self.groups.values():
            yield from (flag for flag in group if not flag.variants or variant in flag.variants)

    def parser(self, prog: str, description: str, variant: str = "", suppress: bool = False) -> Parser:
        """The parser of a variant. Flags cannot be shortened, as two published ones often share a beginning."""
        required = [flag for flag in self.flags(variant) if flag.required and not suppress]
        words = [f"{flag.names.split()[0]} VALUE" for flag in required]  # dozens of flags are no usage
        usage = " ".join(["%(prog)s", *words, "[options]"])
        parser = Parser(prog, usage=usage, description=description, epilog=self.epilog, allow_abbrev=False)
        dead = []
        for title, group in self.groups.items():
            here = parser.add_argument_group(title)
            for flag in group:
                if flag.variants and variant not in flag.variants:
                    continue
                if flag.is_dead(variant):
                    dead.append(flag)
                else:
                    flag.add(here, variant, suppress)
        if dead:
            here = parser.add_argument_group(NO_EFFECT_TITLE)
            for flag in dead:
                flag.add(here, variant, suppress)
        return parser

    def parse(
        self, argv: Sequence[str] | None, prog: str, description: str, variant: str = "", quiet: bool = False
    ) -> tuple[dict[str, Any], set[str]]:
        """Parse a command line: (value of every flag, names of those that were given).

        Unless `quiet`, the first process prints one line that names the flags without effect that were given with
        another value than their default.
        Raises `UserError` for a number outside its range.
        """
        values = vars(self.parser(prog, description, variant).parse_args(argv))
        given = set(vars(self.parser(prog, description, variant, suppress=True).parse_args(argv)))
        ignored = []
        for flag in self.flags(variant):
            value = values[flag.name]
            if not flag.is_dead(variant):
                if value != flag.value(variant):  # a published default may be infinite
                    flag.check(value)
            elif flag.name in given and value != flag.value(variant):
                ignored.append(f"--{flag.name}")
        if ignored and not quiet and is_first():
            print(f"no effect (accepted for compatibility): {' '.join(ignored)}")
        return values, given

    def changed(self, before: Mapping[str, Any], now: Mapping[str, Any], variant: str = "") -> list[str]:
        """`--flag: old -> new` for every flag that decides what is trained and differs between two runs."""
        live = (flag for flag in self.flags(variant) if not flag.free and not flag.is_dead(variant))
        return [
            f"--{flag.name}: {before[flag.name]!r} -> {now[flag.name]!r}"
            for flag in live
            if flag.name in before and flag.name in now and as_plain(before[flag.name]) != as_plain(now[flag.name])
        ]


def as_plain(value: Any) -> Any:
    """A value as a stored state has it: tuples are lists, and what is no plain value is text."""
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def fill(kind: type[Options], values: Mapping[str, Any], **more: Any) -> Options:
    """An instance of a (frozen) dataclass whose fields are filled by name from the parsed values, and from `more`."""
    known = {**values, **more}
    return kind(**{field.name: known[field.name] for field in fields(kind) if field.init and field.name in known})


def device_of(name: str, given: bool) -> str:
    """The one rule for `--device`: a published default, cuda, means CUDA if there is any; a line says when there is
    none. A device that was asked for is taken at its word."""
    import torch  # `strlab --help` does not need it

    if given or name != "cuda" or torch.cuda.is_available():
        return name
    if is_first():
        print("no CUDA device: training on the CPU")
    return "cpu"


LAUNCH = (
    Flag("--dist_url", default="env://", help="rendezvous of the process group", free=True),
    Flag(
        "--local_rank --local-rank",
        int,
        -1,
        "given by torch.distributed.launch; used where LOCAL_RANK is not in the environment",
        free=True,
    ),
    Flag(
        "--dist_timeout",
        float,
        10.0,
        "minutes after which a process that hears nothing of another one ends",
        range=(0.01, inf),
        free=True,
    ),
)
"""Flags of every script that can be started as several processes."""


def share(values: Mapping[str, Any], name: str) -> float:
    """The value of a flag that the originals take as text, as a number in (0, 1]. Raises `UserError`."""
    try:
        number = float(values[name])
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise UserError(f"--{name}: {values[name]!r}: give a number above 0, at most 1")
    return number
