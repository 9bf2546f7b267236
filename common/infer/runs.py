"""What a training run left behind: its scalars and its options, for curves and tables.

`metrics.jsonl` is written by `common.train.meters.MetricsLog`: one JSON object a line with `step` and any numbers
(`loss`, `loss/seg`, `accuracy`, `lr`, `images_per_second`, `data_wait`, `seconds`, …).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.infer.charts import Curve

NOT_CURVES = {"step", "epoch", "time", "seconds"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of one metrics file; a last line cut by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def find_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All metrics files below a folder, by the name of their folder relative to it ("" for its own)."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        name = path.parent.relative_to(folder).as_posix()
        found["" if name == "." else name] = read_metrics(path)
    return found


def curves_of(rows: Iterable[dict[str, Any]], prefix: str = "") -> dict[str, Curve]:
    """One curve for each number of the rows over `step` (else over `epoch`), by name."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x = row.get("step", row.get("epoch"))
        if not _is_number(x):
            continue
        for name, value in row.items():
            if name not in NOT_CURVES and _is_number(value):
                points.setdefault(name, []).append((float(x), float(value)))
    label = f"{prefix}: " if prefix else ""
    return {name: Curve(label + name, *zip(*some)) for name, some in points.items()}


def charts_of(curves: dict[str, Curve], most: int = 6) -> list[tuple[str, list[Curve]]]:
    """Charts for a report: losses, accuracies, learning rates, speed; at most `most` curves in each, the rest left
    out."""
    groups = {"loss": [], "accuracy": [], "learning rate": [], "images a second": [], "other": []}
    for name, curve in curves.items():
        groups[_group(name)].append(curve)
    charts = []
    for title, members in groups.items():
        if title == "other":
            charts.extend((curve.name, [curve]) for curve in members[:4])
        elif members:
            members.sort(key=lambda curve: (len(curve.name), curve.name))
            charts.append((title, members[:most]))
    return charts


def _group(name: str) -> str:
    """Which chart a scalar belongs to, by its name."""
    lower = name.lower()
    if lower.rpartition("/")[2] in ("lr", "learning_rate") or lower.startswith("lr"):
        return "learning rate"
    if any(part in lower for part in ("img/s", "images_per_second", "throughput")):
        return "images a second"
    if any(part in lower for part in ("acc", "ned")):
        return "accuracy"
    return "loss" if "loss" in lower else "other"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
