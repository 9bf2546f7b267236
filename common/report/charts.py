"""Line charts as SVG text: small, sharp at any size, readable without scripts or a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2563a8", "#c2571a", "#2f8f5b", "#8a4fa3", "#b0293d", "#5c6470", "#c79a00", "#17a2b8", "#d6609f", "#7f5a3a")
WIDTH, HEIGHT = 508, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 30, 40
Place = Callable[[float, float], tuple[float, float]]  # values -> position in the picture


@dataclass(frozen=True)
class Curve:
    """One line: name, x values and y values of the same number; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """The finite points in the order of x."""
        return sorted((x, y) for x, y in zip(self.x, self.y) if math.isfinite(x) and math.isfinite(y))


def line_chart(
    title: str, curves: Sequence[Curve], x_label: str = "step", y_label: str = "", log_y: bool = False
) -> str:
    """An SVG picture of some curves over common axes. `log_y` needs positive values, others are left out.

    With a single point a curve is drawn as a dot. Curves without points are not drawn; without any, the chart says so.
    """
    series = [(curve.name, [p for p in curve.points() if p[1] > 0 or not log_y]) for curve in curves]
    series = [(name, _thin(points)) for name, points in series if points]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="11"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="{LEFT}" y="17" font-size="13" font-weight="600" fill="#222">{escape(title)}</text>'
    )
    if not series:
        return head + f'<text x="{LEFT}" y="{HEIGHT // 2}" fill="#777">no values</text></svg>'
    xs = [x for _, points in series for x, _ in points]
    ys = [math.log10(y) if log_y else y for _, points in series for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5)
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    names = [_clip(name) for name, _ in series] if len(series) > 1 else []
    right = WIDTH - RIGHT - (28 + round(6.2 * max(map(len, names))) if names else 0)

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log_y else y
        return (
            LEFT + (x - x_span[0]) / (x_span[1] - x_span[0]) * (right - LEFT),
            HEIGHT - BOTTOM - (y - y_span[0]) / (y_span[1] - y_span[0]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [head, *_axes(x_ticks, y_ticks, place, log_y, right)]
    centre = (LEFT + right) // 2
    parts.append(f'<text x="{centre}" y="{HEIGHT - 6}" text-anchor="middle" fill="#555">{escape(x_label)}</text>')
    if y_label:
        middle = (TOP + HEIGHT - BOTTOM) // 2
        parts.append(
            f'<text x="12" y="{middle}" text-anchor="middle" fill="#555" '
            f'transform="rotate(-90 12 {middle})">{escape(y_label)}</text>'
        )
    for number, (_, points) in enumerate(series):
        parts.append(_line(points, place, COLOURS[number % len(COLOURS)]))
    parts.extend(_legend(names, right))
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from at or below `low` to at or above `high` (at least two, strictly rising)."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = min(low, 0.0), max(high, 0.0) or 1.0  # a constant: from zero, so that its height says something
    raw = (high - low) / max(1, count - 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number_text(value: float) -> str:
    """A short form for an axis: 20k, 1.5M, 0.001."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _axes(x_ticks: list[float], y_ticks: list[float], place: Place, log_y: bool, right: int) -> list[str]:
    """Grid lines and tick labels."""
    parts = []
    bottom = HEIGHT - BOTTOM
    first_y = 10.0 ** y_ticks[0] if log_y else y_ticks[0]
    for tick in y_ticks:
        _, y = place(x_ticks[0], 10.0**tick if log_y else tick)
        label = number_text(10.0**tick if log_y else tick)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e6ea"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{label}</text>'
        )
    for tick in x_ticks:
        x, _ = place(tick, first_y)
        parts.append(
            f'<path d="M{x:.1f} {bottom}v4" stroke="#999"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{number_text(tick)}</text>'
        )
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="#999"/>')
    return parts


def _line(points: list[tuple[float, float]], place: Place, colour: str) -> str:
    """One curve, or a dot for one point."""
    placed = [place(x, y) for x, y in points]
    if len(placed) == 1:
        return f'<circle cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3.5" fill="{colour}"/>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'


def _legend(names: list[str], right: int) -> list[str]:
    """Names of the curves beside the plot."""
    parts = []
    for number, name in enumerate(names):
        line = TOP + 10 + 15 * number
        parts.append(
            f'<path d="M{right + 10} {line - 4}h12" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2.5"/>'
            f'<text x="{right + 26}" y="{line}" fill="#333">{escape(name)}</text>'
        )
    return parts


def _clip(name: str, most: int = 24) -> str:
    """A name short enough for the legend."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _thin(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of its neighbours, so that a long log stays a small picture."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
