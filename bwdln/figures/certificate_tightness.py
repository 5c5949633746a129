"""The figures of the study of how tight the certificates of the flow are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bwdln.comparison.certificate_tightness import Course, Tightness
from bwdln.figures.parts import (
    BLUE,
    COLUMN,
    FLOW_TIME,
    ORANGE,
    RED,
    Options,
    drawn_to,
    legend_above,
    log_axis,
    seeds,
    single,
    styled,
)

#: The label and style of every bound, by its name.
BOUNDS: dict[str, tuple[str, Options]] = {
    "sharp": ("sharp, $c(t)$", {"color": ORANGE}),
    "sharp_constant": ("sharp, $c(0)$", {"color": ORANGE, "linestyle": "--"}),
    "paper": ("paper", {"color": RED, "linestyle": (0, (1, 1)), "linewidth": 1.6}),
}
MEASURED: Options = {"color": BLUE, "linewidth": 1.6}


@styled
def certificates(shown: Tightness) -> Figure:
    """Loss and bounds against flow time, log axis: a panel for each depth, medians over the seeds."""
    columns = min(2, len(shown.depth))
    rows = -(-len(shown.depth) // columns)
    figure = Figure(figsize=(COLUMN, 0.6 + (1.25 if columns > 1 else 1.7) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    flat = list(panels.flat)
    known = [values for each in shown.courses for values in (each.loss, *each.bounds.values())]
    named: set[str] = set()
    for axes, depth, course in zip(flat, shown.depth, shown.courses, strict=False):
        _course(axes, course, named)
        axes.set_title(f"$N$ = {depth:g}")
        log_axis(axes, np.concatenate(known))
        _few_ticks(axes)
    for spare in flat[len(shown.depth) :]:
        spare.set_visible(False)
    for axes in flat[max(0, len(shown.depth) - columns) : len(shown.depth)]:
        axes.set_xlabel(FLOW_TIME)
    several = " (median)" if len(shown.seed) > 1 else ""
    for axes in panels[:, 0]:
        axes.set_ylabel(rf"loss $L_\tau${several}")
    legend_above(figure)
    return figure


def _course(axes: Axes, course: Course, named: set[str]) -> None:
    """The loss of one depth and its bounds, the loosest first; what is not yet `named` gets a label."""
    if not len(course.time):
        axes.text(0.5, 0.5, "no promise", transform=axes.transAxes, ha="center")
    lines = [("measured", course.loss, MEASURED)]
    lines += [
        (label, course.bounds[name], style)
        for name, (label, style) in BOUNDS.items()
        if name in course.bounds
    ]
    for order, (label, values, style) in enumerate(lines):
        axes.plot(
            course.time, values, label=None if label in named else label, zorder=3 - order / 10, **style
        )
        named.add(label)


def _few_ticks(axes: Axes) -> None:
    """As many as a panel of half a column has room for."""
    axes.margins(x=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def rates(shown: Tightness) -> Figure:
    """The rate of the loss against depth, log axis: measured late, and as the certificates say."""
    figure, axes = single(2.5)
    lines = {"sharp, final": (shown.final, "sharp"), "sharp, initial": (shown.initial, "sharp_constant")}
    lines["paper"] = (shown.paper, "paper")
    middle, low, high = _spread(shown.measured)
    bars: Options = {"elinewidth": 0.8, "capsize": 2, "markersize": 3.5, "color": BLUE}
    spread = [middle - low, high - middle]
    axes.errorbar(shown.depth, middle, spread, fmt="o", label="measured", zorder=4, **bars)
    drawn = [_rate(axes, shown.depth, values, label, name) for label, (values, name) in lines.items()]
    log_axis(axes, np.concatenate([*drawn, middle]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _depth_axis(axes, shown.depth)
    axes.set_ylabel("rate of the loss per flow time")
    count = len(shown.seed)
    axes.set_title(f"median and range of {seeds(count)}" if count > 1 else f"seed {shown.seed[0]}")
    axes.legend(loc="best")
    return figure


def _rate(axes: Axes, depths: np.ndarray, values: np.ndarray, label: str, name: str) -> np.ndarray:
    """Median and range of a rate by depth, as its bound is drawn; what is shown."""
    middle, low, high = _spread(values)
    style = BOUNDS[name][1]
    if np.isfinite(middle).any():
        axes.plot(depths, middle, label=label, marker=".", **style)
        axes.fill_between(depths, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return np.concatenate([low, high])


def _spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, smallest and largest of each row, of the numbers in it; NaN where there are none."""
    kept = [row[np.isfinite(row)] for row in values]
    each = [(np.median(row), row.min(), row.max()) if row.size else (np.nan,) * 3 for row in kept]
    middle, low, high = np.array(each).T
    return middle, low, high


def _depth_axis(axes: Axes, depths: np.ndarray) -> None:
    """Depths, logarithmic where they span much."""
    if depths.max() > 4 * depths.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("depth $N$")


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Tightness], Figure]] = {"certificates": certificates, "rates": rates}


def save_all(shown: Tightness, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
