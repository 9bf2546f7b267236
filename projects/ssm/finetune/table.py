"""The results table of `test.py`, to the letter (spec section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.data.sources import set_or_stand_in
from common.metrics.papers import SetMetrics, combine

SUBSET = ("IIIT5k", "SVT", "IC13_857", "IC15_1811", "SVTP", "CUTE80")
BENCHMARK = ("IIIT5k", "SVT", "IC13_1015", "IC15_2077", "SVTP", "CUTE80")
ARD = ("IIIT5k", "SVT", "IC13_1015", "IC15_1811", "SVTP", "CUTE80")
NEW = ("TT", "CTW", "COCOv1.4", "COCO2", "ArT", "Uber")
CHINESE = ("scene_test", "web_test", "document_test")
UNION = ("artistic", "contextless", "curve", "general", "multi_oriented", "multi_words", "salient")


def groups(new: bool = False, union: bool = False, chinese: bool = False) -> dict[str, tuple[str, ...]]:
    """Names of the groups and the sets of each, in the printed order."""
    found = {"Benchmark (Subset)": SUBSET, "Benchmark": BENCHMARK, "Benchmark ARD": ARD}
    if new:
        found["New"] = NEW
    if union:
        found["Union"] = UNION
    if chinese:
        found["Chinese"] = CHINESE
    return found


def results_table(rows: Mapping[str, SetMetrics]) -> str:
    """Markdown table of the sets, a dashed rule, and their sample-weighted mean."""
    width = max(map(len, [*rows, "Dataset", "Combined"]))
    lines = [
        f"| {'Dataset':<{width}} | # samples | Accuracy | 1 - NED | Confidence | Label Length |",
        f"|:{'-' * width}:|----------:|---------:|--------:|-----------:|-------------:|",
        *(line(name, row, width) for name, row in rows.items()),
        f"|-{'-' * width}-|-----------|----------|---------|------------|--------------|",
        line("Combined", combine(list(rows.values())), width),
    ]
    return "\n".join(lines) + "\n"


def line(name: str, row: SetMetrics, width: int) -> str:
    return (
        f"| {name:<{width}} | {row.samples:>9} | {row.accuracy:>8.2f} | {row.one_minus_ned:>7.2f} "
        f"| {row.confidence:>10.2f} | {row.label_length:>12.2f} |"
    )


def report(results: Mapping[str, SetMetrics], chosen: Mapping[str, Sequence[str]]) -> str:
    """All groups with their header lines; a group shows the sets that were evaluated."""
    parts = []
    for name, members in chosen.items():
        sets = (set_or_stand_in(member, results) for member in members)
        found = {one: results[one] for one in sets if one}
        if found:
            parts.append(f"{name} set:\n{results_table(found)}\n\n")
    return "".join(parts)
