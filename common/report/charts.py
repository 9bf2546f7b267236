"""Line charts as SVG text by matplotlib: small, sharp at any size, readable without scripts."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#2563a8", "#c2571a", "#2f8f5b", "#8a4fa3", "#b0293d", "#5c6470", "#c79a00", "#17a2b8", "#d6609f", "#7f5a3a")
WIDTH, HEIGHT = 5.08, 2.6  # inches at 100 pixels
STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller files, and one can search it
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "grid.color": "#e4e6ea",
    "xtick.color": "#555",
    "ytick.color": "#555",
    "axes.labelcolor": "#555",
}


@dataclass(frozen=True)
class Curve:
    """One line: name, x values and y values of the same number; points that are not finite are skipped. `interval` has
    (low, high) of every point, drawn as bars."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    interval: Sequence[tuple[float, float]] = ()

    def points(self) -> list[tuple[float, float]]:
        """The finite points in the order of x."""
        return sorted((x, y) for x, y in zip(self.x, self.y) if math.isfinite(x) and math.isfinite(y))


def line_chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str = "step",
    y_label: str = "",
    log_y: bool = False,
    log_x: bool = False,
) -> str:
    """An SVG picture of some curves over common axes. `log_y` needs positive values, others are skipped; with `log_x`,
    where all x must be positive, the ticks are the values that were measured.

    With a single point a curve is drawn as a dot. Curves without points are not drawn; without any, the chart says so.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    series = [(curve.name, thin([p for p in curve.points() if p[1] > 0 or not log_y])) for curve in curves]
    series = [(name, points) for name, points in series if points]
    # the salt keeps the ids of several charts in one page apart, and a chart the same from run to run
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.set_title(_literal(title), loc="left", fontsize=9, fontweight="bold", color="#222")
        axes.set_xlabel(_literal(x_label))
        axes.set_ylabel(_literal(y_label))
        for number, (name, points) in enumerate(series):
            style = {"marker": "o", "markersize": 5} if len(points) == 1 else {"linewidth": 1.4}
            x, y = zip(*points)
            axes.plot(x, y, color=COLOURS[number % len(COLOURS)], label=_literal(name[:24]), **style)
        bars = [curve for curve in curves if curve.interval]
        for number, curve in enumerate(bars):  # 2.5 points apart, or they would hide each other
            low, high = zip(*curve.interval)
            colour = COLOURS[[name for name, _ in series].index(curve.name) % len(COLOURS)]
            aside = ScaledTranslation((number - (len(bars) - 1) / 2) * 2.5 / 72, 0, figure.dpi_scale_trans)
            axes.vlines(curve.x, low, high, color=colour, linewidth=1.0, transform=axes.transData + aside)
            axes.update_datalim([*zip(curve.x, low), *zip(curve.x, high)])  # shifted lines are not counted in
            axes.autoscale_view()
        if log_x and series:
            axes.set_xscale("log")
            axes.set_xticks(ticks := sorted({x for _, points in series for x, _ in points}))
            axes.set_xticklabels([f"{tick:,.0f}" for tick in ticks])
            axes.minorticks_off()
        if log_y and series:
            axes.set_yscale("log")
        if not series:
            axes.text(0.5, 0.5, "no values", color="#777", ha="center", transform=axes.transAxes)
        if len(series) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].rstrip()


def _literal(text: str) -> str:
    """Text in which matplotlib sees no formula, and no hidden legend entry."""
    return text.replace("$", r"\$").lstrip("_")


def thin(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of its neighbours, so that a long log stays a small picture."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
