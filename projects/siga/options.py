"""Parsing of SIGA's command lines: defaults by variant, every published spelling, and words for what has no effect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf

from common.errors import UserError
from common.text.charset import SIGA_94
from projects.siga.flags import TRAIN, Flag
from projects.siga.model.variants import Variant, variant

SELECTIONS = {
    "synth": ["MJ", "ST"],
    "synth_SA": ["MJ", "ST", "SA"],
    "SD": ["train"],
    "label": [
        "1.SVT",
        "2.IIIT",
        "3.IC13",
        "4.IC15",
        "5.COCO",
        "6.RCTW17",
        "7.Uber",
        "8.ArT",
        "9.LSVT",
        "10.MLT19",
        "11.ReCTS",
    ],
}
SHARES = {"synth_SA": [0.4, 0.4, 0.2]}
SELECTIONS["mix"] = [*SELECTIONS["label"], "MJ", "ST"]
SELECTIONS["mix_SA"] = [*SELECTIONS["mix"], "SA"]


def parse(
    argv: Sequence[str] | None,
    flags: Sequence[Flag] = TRAIN,
    *,
    prog: str,
    description: str,
    model_name: str | None = None,
) -> argparse.Namespace:
    """Parse a command line.

    Two passes: the first finds the model and so the family, the second has that family's flags and defaults. The result
    also has `variant` (its `Variant`), `family`, and `given`: the names of what was on the command line.

    Args:
        argv: arguments; None takes the process's.
        flags: options to define.
        prog, description: for --help.
        model_name: model if none is named; None makes it required.

    Raises:
        UserError: unknown model or impossible values.
    """
    settings = _find_variant(argv, model_name)
    family = settings.family if settings else "R"
    parser = build_parser(family, flags, prog=prog, description=description)
    options = parser.parse_args(argv)
    if settings is None:
        raise UserError("--model_name: not given; choose TRBA, RBA, TSBA or char_str_base_patch4_3_32_128")
    options.given = set(vars(build_parser(family, flags, prog=prog, suppress=True).parse_args(argv)))
    options.variant, options.family = settings, family
    options.model_name = settings.name
    _small_sizes(options)
    if options.sensitive and "character" not in options.given:
        options.character = SIGA_94
    return options


def _find_variant(argv: Sequence[str] | None, default: str | None) -> Variant | None:
    """The variant that the command line names, in any of the spellings; None if it names none."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model_name")
    first.add_argument("--TransformerModel", default="")
    first.add_argument("--Transformer")
    known, _ = first.parse_known_args(argv)
    if known.Transformer not in (None, "char-str"):
        raise UserError(f"--Transformer: {known.Transformer}: SIGA has char-str only; mgp-str is in projects/mgpstr")
    name = known.model_name or known.TransformerModel or default
    if not name and known.Transformer:
        name = "char_str_base_patch4_3_32_128"
    return variant(name) if name else None


def build_parser(
    family: str, flags: Sequence[Flag] = TRAIN, *, prog: str, description: str = "", suppress: bool = False
) -> argparse.ArgumentParser:
    """The parser of one family; with `suppress` no defaults, so that the result holds only what was given."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        epilog=f"Defaults shown are those of family {family}; name a model to see its own.",
    )
    live = parser.add_argument_group("options")
    dead = parser.add_argument_group("accepted for compatibility, no effect")
    for flag in flags:
        if family in flag.families:
            _add(dead if family in flag.dead else live, flag, family, suppress)
    return parser


def _add(group: argparse._ArgumentGroup, flag: Flag, family: str, suppress: bool) -> None:
    """Define one flag in an argparse group."""
    value = flag.value(family)
    words = {"dest": flag.dest, "default": argparse.SUPPRESS if suppress else value}
    if flag.kind is bool:
        words["default"] = argparse.SUPPRESS if suppress else False
        group.add_argument(*flag.names.split(), action="store_true", help=flag.help, **words)
        return
    shown = "" if value in (None, "", False) else " (default: %(default)s)"
    text = flag.help.replace("%", "%%") + shown
    for key in ("nargs", "choices", "const"):
        if getattr(flag, key) is not None:
            words[key] = getattr(flag, key)
    group.add_argument(*flag.names.split(), type=None if flag.kind is str else flag.kind, help=text, **words)


def _small_sizes(options: argparse.Namespace) -> None:
    """The small variants have their own sizes where the command line does not say otherwise."""
    settings = options.variant
    own = {
        "imgH": settings.image_size[0],
        "imgW": settings.image_size[1],
        "output_channel": settings.columns,
        "hidden_size": settings.hidden,
    }
    for name, value in own.items():
        if name not in options.given:
            setattr(options, name, value)


def note_dead(options: argparse.Namespace, flags: Sequence[Flag] = TRAIN) -> None:
    """One line for flags that were given with another value than the default and that nothing reads."""
    ignored = [
        f"--{flag.dest}"
        for flag in flags
        if options.family in flag.families
        and options.family in flag.dead
        and flag.dest in options.given
        and getattr(options, flag.dest) != flag.value(options.family)
    ]
    if ignored:
        print(f"no effect for {options.model_name} (accepted for compatibility): {' '.join(ignored)}")


def selection(select_data: str) -> list[str] | None:
    """Folder names that `--select_data` stands for; None for "/", which takes every set."""
    if select_data == "/":
        return None
    return SELECTIONS.get(select_data) or select_data.split("-")


def ratios(options: argparse.Namespace, sources: list[str]) -> list[float]:
    """Shares of a batch by source: `--batch_ratio`, else those published with the selection, else equal ones.

    Raises:
        UserError: not numbers, or another count than sources.
    """
    if "batch_ratio" not in options.given and options.select_data in SHARES:
        return SHARES[options.select_data]
    if not options.batch_ratio or (len(sources) == 1 and "batch_ratio" not in options.given):
        return [1.0 / len(sources)] * len(sources)
    try:
        shares = [float(share) for share in options.batch_ratio.split("-")]
    except ValueError:
        raise UserError(f"--batch_ratio: {options.batch_ratio!r} are no numbers joined by -, as 0.5-0.5") from None
    if len(shares) != len(sources) or min(shares) <= 0:
        raise UserError(
            f"--batch_ratio: {len(shares)} shares for {len(sources)} sources ({'-'.join(sources)}); give each one"
        )
    return shares


def data_usage(options: argparse.Namespace) -> float:
    """`--total_data_usage_ratio` of T in (0, 1]: the first part of every source that is used. R and S use all."""
    if options.family != "T":
        return 1.0
    try:
        usage = float(options.total_data_usage_ratio)
    except ValueError:
        usage = 0.0
    if not 0 < usage <= 1:
        raise UserError(f"--total_data_usage_ratio: {options.total_data_usage_ratio!r}: give a number in (0, 1]")
    return usage


def check(options: argparse.Namespace) -> None:
    """Refuse values that cannot be, before anything is built. Raises `UserError` naming the flag."""
    if not options.train_data:
        raise UserError("--train_data: not given; name the root of the training LMDBs (`strlab data synth` makes one)")
    check_ranges(options)
    if not options.lr > 0:
        raise UserError(f"--lr: {options.lr} must be positive")
    if options.family != "T" and options.hidden_size != options.variant.hidden:
        raise UserError(f"--hidden_size: {options.hidden_size}: {options.model_name} has {options.variant.hidden} only")
    if options.family == "R" and options.output_channel != options.variant.columns:
        raise UserError(
            f"--output_channel: {options.output_channel}: {options.model_name} has {options.variant.columns} only"
        )
    if options.input_channel != 3:
        raise UserError(f"--input_channel: {options.input_channel}: images are read in colour; give 3")
    if len(set(options.character)) != len(options.character) or not options.character:
        raise UserError("--character: empty, or a character stands in it twice")
    if options.optimizer.lower() not in ("adam", "adamw", "adadelta"):
        raise UserError(f"--optimizer: {options.optimizer!r}: choose adam, adamw or adadelta")
    if options.family == "T" and options.PAD:
        raise UserError("--PAD: glyph masks fill the whole input, so padded training never worked; leave it out")
    if options.family != "T":
        fractions(options)
    data_usage(options)


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "num_iter", "val_interval", "log_interval", "print_interval"), (1, inf)),
    **dict.fromkeys(("accumulate", "data_ratio", "batch_max_length"), (1, inf)),
    **dict.fromkeys(("workers", "test_batch_size", "save_interval", "keep_states", "check_data"), (0, inf)),
    **dict.fromkeys(("bad_share", "unsupported_share", "intact_prob", "lr_drop_rate"), (0, 1)),
    "manual_seed": (0, 2**32 - 1),
    "augs_mag": (0, 2),
    "augs_num": (1, inf),
    "grad_clip": (1e-12, inf),
}
"""Least and greatest value of the flags that have one; None (not given) is always right."""


def check_ranges(options: argparse.Namespace) -> None:
    """Raise `UserError` for a number outside its `RANGES`."""
    for name, (least, most) in RANGES.items():
        value = getattr(options, name, None)
        if value is not None and not least <= value <= most:
            words = f"at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
            raise UserError(f"--{name}: {value} must be {words}")


def fractions(options: argparse.Namespace) -> list[float] | None:
    """`--schedule` as fractions of the steps, None for "super". 1 is the end of the run: the rate stays as it is.

    Raises `UserError` for anything else.
    """
    given = options.schedule if isinstance(options.schedule, list) else [options.schedule]
    if given == ["super"]:
        return None
    try:
        values = [float(value) for item in given for value in item.strip("[]").replace(",", " ").split()]
    except ValueError:
        values = [-1.0]
    if not values or not all(0 < value <= 1 for value in values):
        raise UserError(f"--schedule: {' '.join(given)!r}: give super, 1 for a constant rate, or fractions as 0.6 0.8")
    return values
