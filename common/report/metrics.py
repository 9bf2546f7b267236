"""What a training run left behind: its scalars and its options, for curves and tables.

`metrics.jsonl` is written by `common.train.log.MetricsLog`: one JSON object a line with `step` and any numbers
(`loss` and its terms, `accuracy`, `one_minus_ned`, `lr`, `images_per_second`, `data_wait`,
`sets: {name: accuracy}`, …).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.files import json_lines
from common.report.charts import Curve

NOT_CURVES = {"step", "epoch", "time", "seconds", "data_wait"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of one metrics file; a last line cut by a kill is skipped."""
    return [row for _, row in json_lines(path)]


def find_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All metrics files below a folder, by the name of their folder relative to it ("" for its own)."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        name = path.parent.relative_to(folder).as_posix()
        found["" if name == "." else name] = read_metrics(path)
    return found


def curves_of(rows: Iterable[dict[str, Any]], prefix: str = "") -> dict[str, Curve]:
    """One curve for each number of the rows over `step` (else over `epoch`), by name; nested ones as `sets/SVT`."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x = row.get("step", row.get("epoch"))
        if not _is_number(x):
            continue
        for name, value in _numbers(row):
            points.setdefault(name, []).append((float(x), float(value)))
    label = f"{prefix}: " if prefix else ""
    return {name: Curve(label + name.removeprefix("sets/"), *zip(*some)) for name, some in points.items()}


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, number) of what can be drawn in a row."""
    for name, value in row.items():
        if name not in NOT_CURVES and _is_number(value):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in value.items() if _is_number(number))


def charts_of(curves: dict[str, Curve], most: int = 8) -> list[tuple[str, list[Curve]]]:
    """Charts for a report: losses, accuracies, learning rates, speed, the rest; at most `most` curves in each."""
    groups: dict[str, list[Curve]] = {}
    for name, curve in curves.items():
        groups.setdefault(_group(name), []).append(curve)
    order = [name for name in GROUPS if name in groups]
    return [
        (title if start == 0 else f"{title}, continued", groups[title][start : start + most])
        for title in order
        for start in range(0, len(groups[title]), most)
    ]


GROUPS = (
    "loss",
    "terms of the loss and other figures",
    "accuracy",
    "accuracy by set",
    "learning rate",
    "images a second",
)


def _group(name: str) -> str:
    """Which chart a scalar belongs to, by its name."""
    lower = name.lower()
    if lower.startswith("sets/"):
        return GROUPS[3]
    if lower.rpartition("/")[2] in ("lr", "learning_rate") or lower.startswith("lr"):
        return GROUPS[4]
    if any(part in lower for part in ("images_per_second", "throughput")):
        return GROUPS[5]
    if any(part in lower for part in ("acc", "ned", "heads/")):
        return GROUPS[2]
    return GROUPS[0] if "loss" in lower else GROUPS[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
