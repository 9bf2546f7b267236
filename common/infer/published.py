"""Published figures next to measured ones: only for the very subset that the paper used."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from common import registry
from common.errors import UserError

# Words of the public subsets whose names say which words they hold.
SIZES = {
    "IIIT5k_3000": 3000, "SVT": 647, "IC03_860": 860, "IC03_867": 867, "IC13_857": 857, "IC13_1015": 1015,
    "IC15_1811": 1811, "IC15_2077": 2077, "SVTP": 645, "CUTE80": 288,
}  # fmt: skip


class PaperRow(NamedTuple):
    """One row of a paper: its name, word accuracy in % by subset, and where the figures come from."""

    name: str
    accuracy: Mapping[str, float]
    data: str
    source: str


def paper_row(name: str) -> PaperRow:
    """Find a row by its name in the projects' recipes, in any case. Raises `UserError` with near names."""
    rows = {}
    for module in registry.project_modules().values():
        package = find_spec(module.rpartition(".")[0])
        path = Path(next(iter(package.submodule_search_locations or [""]))) / "recipe.toml" if package else Path()
        if not path.is_file():
            continue
        table = tomllib.loads(path.read_text("utf-8")).get("published", {})
        for row in table.get("rows", []):
            rows[row["name"].lower()] = PaperRow(
                row["name"], row["accuracy"], table.get("data", "not stated"), table.get("source", "not stated")
            )
    if name.lower() not in rows:
        near = get_close_matches(name.lower(), rows, n=4, cutoff=0.3) or list(rows)
        raise UserError(
            f"--paper: no published row is called {name!r}; there are: {', '.join(rows[n].name for n in near)}"
        )
    return rows[name.lower()]


def side_by_side(row: PaperRow, sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines for the console: each set with our figure and the paper's, or why they are not put side by side."""
    known = {name.casefold(): (name, figure) for name, figure in row.accuracy.items()}
    told = f"{row.name} as published (trained on {row.data}; source: {row.source})"
    lines = textwrap.wrap(told, 80, subsequent_indent="  ")
    for one in sets:
        name = one["name"].rsplit("/", 1)[-1]
        words = one["protocols"]["36"]["n"] + one["protocols"]["36"]["filtered"]
        ours = one["protocols"]["36"]["accuracy"]
        if name.casefold() in known:
            subset, figure = known[name.casefold()]
            size = SIZES.get(subset, words)
            if size == words:
                lines.append(f"  {subset:<14} {words:5d} words: here {ours or 0:.2f}, published {figure:.1f}")
            else:
                lines.append(f"  {name}: {words} words, {subset} has {size}: another subset, not compared")
        elif name.startswith("synth-"):
            lines.append(f"  {name}: rendered stand-in, not compared")
        else:
            family = name.split("_")[0].casefold()
            others = [subset for subset, _ in known.values() if subset.split("_")[0].casefold() == family]
            reason = (
                f"the published figure is for {', '.join(others)}, another subset" if others else "no published figure"
            )
            lines.append(f"  {name}: {reason}; not compared")
    return lines
