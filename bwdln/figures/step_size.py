"""The figures of the study of the largest step size that converges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from bwdln.comparison.step_size import Limits
from bwdln.figures.parts import COLUMN, GRAY, Options, drawn_to, log_axis, single, styled

STEP_SIZE = r"step size $\eta$"
DEPTH, SMALLEST = "depth $N$", r"smallest eigenvalue $\lambda_n$"
#: Agreement within this many percent is shaded.
AGREES = 1.0
#: The kinds of step sizes, and how each is drawn; colors tell the curves apart.
MEASURED: Options = {"marker": "o", "markerfacecolor": "none", "linestyle": "none", "markersize": 4}
LIMIT: Options = {"linestyle": "-", "linewidth": 1.0}
ADMISSIBLE: Options = {"marker": ".", "linestyle": "--", "linewidth": 1.0}


@styled
def depth(shown: Limits) -> Figure:
    """Step sizes against depth, a color for each smallest eigenvalue; below, measured against limit."""
    figure = Figure(figsize=(COLUMN, 3.7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _sizes(upper, shown, shown.depth, shown.smallest, r"$\lambda_n$ = {:g}", grow=1.8)
    _legends(figure, upper, shown, "lower left")
    _agreement(lower, shown)
    _number_axis(lower, shown.depth)
    lower.set_xlabel(DEPTH)
    return figure


@styled
def smallest_eigenvalue(shown: Limits) -> Figure:
    """Step sizes against the smallest eigenvalue of the target, a color for each depth."""
    figure, axes = single(2.5)
    _sizes(axes, shown, shown.smallest, shown.depth, "$N$ = {:g}")
    _legends(figure, axes, shown, "lower right")
    _number_axis(axes, shown.smallest)
    axes.set_xlabel(SMALLEST)
    return figure


def _sizes(
    axes: Axes, shown: Limits, along: np.ndarray, by: np.ndarray, label: str, grow: float = 0.0
) -> None:
    """What was measured, the limit and the admissible step size `along` an axis, in a color each `by`.

    Markers `grow` from color to color, so that those that coincide can all be seen.
    """
    values = np.unique(by)
    for place, (value, color) in enumerate(zip(values, _colors(len(values)), strict=True)):
        own = np.flatnonzero(by == value)
        own = own[np.argsort(along[own])]
        grown = MEASURED | {"markersize": MEASURED["markersize"] + grow * place}
        lines = ((shown.predicted, LIMIT), (shown.admissible, ADMISSIBLE), (shown.measured, grown))
        for numbers, style in lines:
            axes.plot(along[own], numbers[own], color=color, **style)
        axes.plot([], [], color=color, linewidth=2, label=label.format(value))
    log_axis(axes, np.concatenate([shown.predicted, shown.admissible, shown.measured]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(STEP_SIZE)


def _legends(figure: Figure, axes: Axes, shown: Limits, corner: Literal["lower left", "lower right"]) -> None:
    """What the kinds of lines are, above; what the colors are, in the corner where nothing is."""
    kinds = {"measured": MEASURED, "stability limit": LIMIT}
    if np.isfinite(shown.admissible).any():
        kinds["paper's admissible"] = ADMISSIBLE
    said = [Line2D([], [], color="black", label=name, **style) for name, style in kinds.items()]
    figure.legend(handles=said, loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.5)
    axes.legend(loc=corner)


def _agreement(axes: Axes, shown: Limits) -> None:
    """How far what was measured is from the stability limit, in percent, with the bracket."""
    values = np.unique(shown.smallest)
    axes.axhspan(-AGREES, AGREES, color=GRAY, alpha=0.15, linewidth=0)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    shifts = np.linspace(-0.06, 0.06, len(values)) if len(values) > 1 else np.zeros(1)
    ends = [AGREES]
    for value, color, shift in zip(values, _colors(len(values)), shifts, strict=True):
        own = np.flatnonzero((shown.smallest == value) & np.isfinite(shown.ratio))
        low, middle, high = (
            100 * (each[own] / shown.predicted[own] - 1) for each in (shown.low, shown.measured, shown.high)
        )
        bars: Options = {"elinewidth": 0.8, "capsize": 1.5, "markersize": 3, "color": color}
        spread = [middle - low, high - middle]
        axes.errorbar(shown.depth[own] * np.exp(shift), middle, spread, fmt="o", **bars)
        ends += [np.max(np.abs([*low, *high]), initial=0)]
    axes.set_ylim(-1.15 * max(ends), 1.15 * max(ends))
    axes.set_ylabel("measured /\nlimit − 1 (%)")


def _number_axis(axes: Axes, numbers: np.ndarray) -> None:
    """A log axis with few labels that are numbers, and room for the markers at its ends."""
    smallest, largest = numbers.min(), numbers.max()
    margin = max((largest / smallest) ** 0.06, 1.15)
    axes.set_xscale("log")
    axes.set_xlim(smallest / margin, largest * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if largest > 200 * smallest else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _colors(count: int) -> list[Any]:
    """Colors from dark to light, told apart with any color vision and on white paper."""
    return [matplotlib.colormaps["cividis"](place) for place in np.linspace(0, 0.85, count)]


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Limits], Figure]] = {"depth": depth, "smallest_eigenvalue": smallest_eigenvalue}


def save_all(shown: Limits, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
