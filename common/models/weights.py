"""Published state dicts -> our modules, strictly, with an error that can be acted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import nn

from common.errors import UserError


@dataclass(frozen=True)
class LoadReport:
    """What a load did: names taken over, names of the module left as they were, names of the file not used."""

    kept: list[str]
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Names that are in both with another shape: (in the file, here). They count as missing and as unexpected."""
    tokens: tuple[list[str], list[str], list[str]] | None = None
    """Characters kept, new and dropped, where rows were moved by character."""

    def table(self) -> str:
        """Kept, new and dropped tensors, a line each, the names summed up by module."""
        rows = [("kept", self.kept), ("new", self.missing), ("dropped", self.unexpected)]
        lines = [f"{label:8}{len(names):5} tensors  {summed_up(names)}".rstrip() for label, names in rows]
        other = [f"{'':8}other shape: {name} {theirs}, here {ours}" for name, (theirs, ours) in self.shapes.items()]
        lines += other[:6] + ([f"{'':8}and {len(other) - 6} more of another shape"] if len(other) > 6 else [])
        if self.tokens is not None:
            for label, tokens in zip(("kept", "new", "dropped"), self.tokens):
                shown = " ".join(tokens[:40]) + (" …" if len(tokens) > 40 else "")
                lines.append(f"{label:8}{len(tokens):5} characters  {shown}".rstrip())
        return "\n".join(lines)


def summed_up(names: Collection[str], limit: int = 8) -> str:
    """`encoder.blocks.* (144), head.* (2)`: names by their first two parts, with numbers."""
    counts = Counter(".".join(name.split(".")[:2]) + (".*" if name.count(".") > 1 else "") for name in names)
    shown = [f"{group} ({count})" if count > 1 else group for group, count in counts.items()]
    return ", ".join(shown[:limit]) + (f", and {len(shown) - limit} more groups" if len(shown) > limit else "")


WRAPPERS = ("module", "model")  # (Distributed)DataParallel; Lightning and other trainers
COMPILED = "_orig_mod"  # torch.compile


def _compiled_off(name: str) -> str:
    """`name` without torch.compile's prefix anywhere. Raises UserError for what is no name."""
    if not isinstance(name, str):
        raise UserError(f"the checkpoint holds no weights: {name!r} is no name of a tensor; give one of this model")
    return ".".join(part for part in name.split(".") if part != COMPILED)


def unwrapped(state: Mapping[str, torch.Tensor], own: Collection[str]) -> dict[str, torch.Tensor]:
    """The names without what trainers put around a model: `_orig_mod.`, `module.` and `model.`, in any nesting.

    `own` are the names that are wanted: a leading `model.` or `module.` that belongs to the model itself stays, because
    the depth is taken at which most names are known.
    """
    plain = {_compiled_off(name): value for name, value in state.items()}
    best, own, deeper = plain, set(own), plain
    # takes off one wrapper after the other and keeps the depth at which the most names are known; a depth at which two
    # names would become one is no candidate
    while any(name.split(".", 1)[0] in WRAPPERS and "." in name for name in deeper):
        deeper = {_inside(name): value for name, value in deeper.items()}
        if len(deeper) == len(plain) and len(own & deeper.keys()) > len(own & best.keys()):
            best = deeper
    return dict(best)


def _inside(name: str) -> str:
    """`name` without one leading wrapper."""
    first, _, rest = name.partition(".")
    return rest if first in WRAPPERS and rest else name


def strip_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without wrappers where the model's own names are not at hand (`unwrapped` is surer where they are).

    `_orig_mod.` goes everywhere, a leading `module.` as often as it stands there, and a leading `model.` where every
    name has it, as Lightning writes them.
    """
    names = {name: _compiled_off(name) for name in state}
    while True:
        if any(name.startswith("module.") for name in names.values()):
            names = {old: name.removeprefix("module.") for old, name in names.items()}
        elif names and all(name.startswith("model.") for name in names.values()):
            names = {old: name.removeprefix("model.") for old, name in names.items()}
        else:
            return {name: state[old] for old, name in names.items()}


def add_prefix(state: Mapping[str, torch.Tensor], prefix: str = "module.") -> dict[str, torch.Tensor]:
    """The names with `prefix` in front: the form in which the published trainers wrote their files."""
    return {prefix + name: tensor for name, tensor in state.items()}


def _some(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def rename_all(
    module: nn.Module, state: Mapping[str, torch.Tensor], rename: Callable[[str], str | None] | None
) -> dict[str, torch.Tensor]:
    """The state under our names: wrappers off, then `rename` (None drops a name)."""
    own = module.state_dict().keys()
    if rename is None:
        return unwrapped(state, own)
    # the depth of the wrappers is judged by what the names become
    known = {name for name in _depths(state) if rename(name) in own}
    renamed = {}
    for name, tensor in unwrapped(state, known).items():
        if (ours := rename(name)) is not None:
            renamed[ours] = tensor
    return renamed


def _depths(names: Collection[str]) -> set[str]:
    """Every name with every number of its leading wrappers taken off."""
    plain = {".".join(part for part in name.split(".") if part != COMPILED) for name in names}
    found = set(plain)
    while plain := {_inside(name) for name in plain} - found:
        found |= plain
    return found


def load_strict(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None] | None = None,
    *,
    what: str = "checkpoint",
    allow_missing: Callable[[str], bool] = lambda name: False,
    allow_unexpected: Callable[[str], bool] = lambda name: False,
) -> LoadReport:
    """Load `state` into `module`; every name and shape must agree, but for those the two `allow_*` rules let pass.

    What wrappers put before the names is removed first (`unwrapped`); `rename` then maps a published name to the one
    here (None: drop it). `what` stands at the head of the error.

    Raises UserError that lists the names missing, not known, or of another shape.
    """
    renamed = rename_all(module, state, rename)
    # Pre-hooks may accept names that are not in our state dict (constants), so they run before names are compared.
    accepted = dict(renamed)
    for prefix, child in module.named_modules():
        for hook in child._load_state_dict_pre_hooks.values():
            hook(accepted, prefix + "." if prefix else "", {}, True, [], [], [])
    own = module.state_dict()
    missing = [name for name in own if name not in accepted and not allow_missing(name)]
    unexpected = [name for name in accepted if name not in own and not allow_unexpected(name)]
    shapes = [
        f"{name} {tuple(accepted[name].shape)} here {tuple(own[name].shape)}"
        for name in own
        if name in accepted and accepted[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", missing), ("not known", unexpected), ("other shape", shapes))
        if names
    ]
    if problems:
        fix = "is it of another model, variant or character set?"
        raise UserError(f"{what}: weights: {'; '.join(problems)} ({fix})")
    module.load_state_dict({name: accepted[name] for name in own if name in accepted}, strict=False)
    kept = [name for name in own if name in accepted]
    left = [name for name in own if name not in accepted]
    return LoadReport(kept, left, [name for name in accepted if name not in own])


def load_partial(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None] | None = None,
    *,
    required: Callable[[str], bool],
    what: str = "checkpoint",
    say: Callable[[str], None] = print,
) -> LoadReport:
    """Load the tensors of `state` that `module` has in the same shape, and show kept, new and dropped ones.

    Args:
        module: keeps what it has where the file has nothing that fits.
        state: published names, with or without wrappers; `rename` maps them to the names here (None: drop).
        required: names of `module` without which the load is a mistake: every block and the patch embedding of an
            encoder, say.
        what: head of the lines and errors.
        say: where the table goes.

    Raises:
        UserError: a required tensor is missing or has another shape; the message holds the table, nothing was loaded.
    """
    renamed, own = rename_all(module, state, rename), module.state_dict()
    shapes = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in renamed.items()
        if name in own and tensor.shape != own[name].shape
    }
    kept = [name for name in own if name in renamed and name not in shapes]
    known = set(kept)
    report = LoadReport(
        kept, [name for name in own if name not in known], [name for name in renamed if name not in known], shapes
    )
    wanting = [name for name in report.missing if required(name)]
    if wanting or not kept:
        told = f"{len(wanting)} needed tensors do not fit ({_some(wanting)})" if wanting else "nothing fits"
        raise UserError(f"{what}: weights: {told}: is it of another model, size or image size?\n{report.table()}")
    module.load_state_dict({name: renamed[name] for name in kept}, strict=False)
    say(f"{what}:\n{report.table()}")
    return report


@dataclass(frozen=True)
class ClassAxis:
    """Parameters with one row (or column) for each class: `pattern` (as in a shell) of their names here, the axis of
    the classes, and the token of every index in the file (`before`) and here (`after`). Special tokens have names of
    their own, such as "[end]".
    """

    pattern: str
    axis: int
    before: Sequence[str]
    after: Sequence[str]


def position_axis(name: str, theirs: torch.Tensor, ours: torch.Tensor) -> ClassAxis:
    """The axis of a parameter that has a row for each position of the word: rows stay at their position."""
    return ClassAxis(name, 0, *([f"position {index}" for index in range(len(rows))] for rows in (theirs, ours)))


def load_by_character(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    axes: Sequence[ClassAxis],
    rename: Callable[[str], str | None] | None = None,
    *,
    required: Callable[[str], bool],
    what: str = "checkpoint",
    say: Callable[[str], None] = print,
) -> LoadReport:
    """`load_partial` for another character set: rows of the classes move to the index their character has here.

    A row whose character the file does not have keeps its fresh values. Raises UserError as `load_partial` does, and
    where a class axis of the file does not have as many rows as `before` has tokens.
    """
    moved, own = rename_all(module, state, rename), module.state_dict()
    for name in [name for name in moved if name in own]:
        found = next((axis for axis in axes if fnmatch(name, axis.pattern)), None)
        if found is not None:
            moved[name] = _move_rows(moved[name], own[name], found, f"{what}: {name}")
    tables = [axis for axis in axes if any(fnmatch(name, axis.pattern) for name in moved)]
    report = load_partial(module, moved, required=required, what=what, say=lambda text: None)
    if tables:
        before, after = tables[0].before, tables[0].after
        kept = [token for token in after if token in set(before)]
        new = [token for token in after if token not in set(before)]
        dropped = [token for token in before if token not in set(after)]
        report = LoadReport(report.kept, report.missing, report.unexpected, report.shapes, (kept, new, dropped))
    say(f"{what}:\n{report.table()}")
    return report


def _move_rows(theirs: torch.Tensor, ours: torch.Tensor, axis: ClassAxis, what: str) -> torch.Tensor:
    """`ours` with the rows of `theirs` whose tokens both have."""
    counts = (theirs.shape[axis.axis], len(axis.before)), (ours.shape[axis.axis], len(axis.after))
    for found, expected in counts:
        if found != expected:
            raise UserError(f"{what}: {found} classes, but its character set makes {expected}: give the right charset")
    others = [tensor.shape[: axis.axis] + tensor.shape[axis.axis + 1 :] for tensor in (theirs, ours)]
    if others[0] != others[1]:
        return theirs  # another width: reported as another shape
    places = {token: index for index, token in enumerate(axis.before)}
    pairs = [(index, places[token]) for index, token in enumerate(axis.after) if token in places]
    result = ours.clone()
    if pairs:
        here, there = (torch.tensor(side, device=theirs.device) for side in zip(*pairs))
        rows = theirs.index_select(axis.axis, there).to(result.dtype)
        result.index_copy_(axis.axis, here.to(result.device), rows.to(result.device))
    return result
