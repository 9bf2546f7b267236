"""How far confidences can be trusted, and how accuracy differs between kinds of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common.metrics.intervals import wilson
from common.metrics.protocols import PROTOCOL_36

COVERAGES = (0.5, 0.8, 0.95)


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy in `bins` equal intervals of confidence, weighted by
    their words (Guo et al. 2017): 0 is perfect, 1 the worst; NaN without words.

    Examples:
        >>> expected_calibration_error([0.9, 0.9, 0.1, 0.1], [True, True, False, False])
        0.1
    """
    confidence, right = np.asarray(confidences, float), np.asarray(correct, float)
    if not len(confidence):
        return float("nan")
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, confidence, bins) - np.bincount(place, right, bins))
    return round(float(gaps.sum() / counts.sum()), 6)


def accuracy_at_coverage(confidences: Sequence[float], correct: Sequence[bool], share: float) -> float:
    """Return the accuracy in [0, 1] on the `share` of words that the reader is most sure of; NaN without words."""
    order = np.argsort(-np.asarray(confidences, float), kind="stable")
    kept = order[: max(1, round(share * len(order)))] if len(order) else order
    return float(np.asarray(correct, float)[kept].mean()) if len(kept) else float("nan")


def calibration(confidences: Sequence[float], correct: Sequence[bool]) -> dict[str, Any]:
    """Return `{"words", "ece", "accuracy_at": {"50": …, "80": …, "95": …}}`, figures in %."""
    at = {f"{share:.0%}"[:-1]: round(100 * accuracy_at_coverage(confidences, correct, share), 2) for share in COVERAGES}
    return {"words": len(correct), "ece": round(100 * expected_calibration_error(confidences, correct), 2),
            "accuracy_at": at}  # fmt: skip


class Traits(NamedTuple):
    """What a word and its crop are like: the values by which accuracy is sliced, "" where one is not known."""

    length: str
    case: str
    digits: str
    aspect: str
    blur: str
    font: str


def traits_of(
    label: str, size: tuple[int, int] | None = None, sharpness: float | None = None, font: str = ""
) -> Traits:
    """Return the slices that a word belongs to.

    Args:
        label: the truth.
        size: (width, height) of the crop in pixels.
        sharpness: variance of the Laplacian of the grey crop; small for blurred ones.
        font: the family that a rendered word was drawn with.
    """
    letters = [c for c in label if c.isalpha()]
    case = "none" if not letters else "lower" if label.islower() else "upper" if label.isupper() else "mixed"
    digits = "digits only" if label.isdigit() else "some" if any(c.isdigit() for c in label) else "none"
    ratio = size[0] / max(size[1], 1) if size else None
    return Traits(
        _bucket(len(PROTOCOL_36.normalise(label)), (3, 6, 9, 13), "characters"), case, digits,
        "" if ratio is None else _bucket(ratio, (1.5, 3, 5), "width to height"),
        "" if sharpness is None else _bucket(sharpness, (50, 200, 1000), "variance"), font,
    )  # fmt: skip


def _bucket(value: float, edges: Sequence[float], unit: str) -> str:
    """The interval between two edges that holds a value, in words that sort."""
    for number, edge in enumerate(edges):
        if value <= edge:
            low = f"over {edges[number - 1]:g} to {edge:g}" if number else f"to {edge:g}"
            return f"{low} {unit}"
    return f"over {edges[-1]:g} {unit}"


def slices(traits: Sequence[Traits], correct: Sequence[bool]) -> list[dict[str, Any]]:
    """Return accuracy in % with its 95 % interval and the number of words, for every value of every trait."""
    found = []
    for kind in Traits._fields:
        values = [getattr(one, kind) for one in traits]
        for value in sorted({value for value in values if value}, key=_order):
            marks = [bool(mark) for mark, own in zip(correct, values) if own == value]
            low, high = wilson(sum(marks), len(marks))
            found.append({
                "by": kind, "value": value, "words": len(marks), "accuracy": round(100 * sum(marks) / len(marks), 2),
                "low": round(100 * low, 2), "high": round(100 * high, 2),
            })  # fmt: skip
    return found


def _order(value: str) -> tuple[bool, float, str]:
    """Intervals by their edge, the open one last; names by their letters."""
    numbers = [float(word) for word in value.split() if word.replace(".", "", 1).isdigit()]
    return value.startswith("over") and " to " not in value, numbers[-1] if numbers else 0.0, value
