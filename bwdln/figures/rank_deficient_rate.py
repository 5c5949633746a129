"""The figures of the study of how fast a generator of too low a rank finds the leading subspace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from bwdln.comparison.rank_deficient_rate import ABOVE, BELOW, Comparison, Line
from bwdln.figures.parts import GRAY, drawn_to, positive, seeds, single, styled

EIGENGAP = r"eigengap $1 - \lambda_{k+1} / \lambda_k$"


@styled
def eigengaps(shown: Comparison) -> Figure:
    """The fitted rate against the eigengap, a color for each depth; theory as lines."""
    figure, axes = single(2.5)
    _lines_and_fits(axes, shown, shown.against_gap, shown.depth, 1 - shown.ratio, "$N$")
    _log_axes(axes)
    axes.set_xlabel(EIGENGAP)
    return figure


@styled
def depths(shown: Comparison) -> Figure | None:
    """The fitted rate against the depth, a color for each ratio; None if there is one depth only."""
    if len(np.unique(shown.depth)) == 1:
        return None
    figure, axes = single(2.5)
    _lines_and_fits(axes, shown, shown.against_depth, shown.ratio, shown.depth, r"$\lambda_{k+1}/\lambda_k$")
    _log_axes(axes)
    axes.set_xlabel("depth $N$")
    return figure


def _log_axes(axes: Axes) -> None:
    """Two log axes, the lower with labels as plain numbers."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _lines_and_fits(
    axes: Axes, shown: Comparison, lines: tuple[Line, ...], fixed: np.ndarray, along: np.ndarray, name: str
) -> None:
    """Theory as lines and every seed's fit as a circle, in the color of what is fixed."""
    for line, color in zip(lines, _colors(len(lines)), strict=True):
        axes.plot(line.along, line.rate, color=color, linewidth=1, label=f"{line.fixed:g}")
        own = fixed == line.fixed
        rates = shown.measured[own]
        places = np.broadcast_to(along[own, None], rates.shape)
        axes.plot(places.ravel(), rates.ravel(), "o", color=color, markerfacecolor="white", markersize=3.5)
    axes.set_ylabel("rate of the gap per flow time")
    axes.set_title(_whom(shown))
    fit: Any = {"marker": "o", "markerfacecolor": "white", "color": GRAY}
    handles = [*axes.get_legend_handles_labels()[0], Line2D([], [], label="fit", linestyle="", **fit)]
    handles.append(Line2D([], [], color=GRAY, linewidth=1, label="theory"))
    axes.figure.legend(
        handles=handles,
        title=name,
        loc="outside right upper",
        alignment="left",
        handlelength=1.2,
        labelspacing=0.4,
        borderpad=0.2,
    )


@styled
def gap(shown: Comparison) -> Figure:
    """The relative gap of a seed of every case against predicted rate · time: all end with the same slope."""
    figure, axes = single(2.5)
    distinct = np.unique(shown.depth)
    colors = dict(zip(distinct, _colors(len(distinct)), strict=True))
    for curve in shown.curves:
        axes.plot(curve.efolds, positive(curve.gap), color=colors[curve.depth], linewidth=0.7)
    axes.set_yscale("log")
    bottom, top = ABOVE * 1e-2, max(1e2 * BELOW, max(float(np.nanmax(each.gap)) for each in shown.curves))
    axes.set_ylim(bottom, 3 * top)
    axes.axhspan(ABOVE, BELOW, color=GRAY, alpha=0.15, linewidth=0)
    axes.annotate("fitted", (0.01, BELOW), (0, -2), axes.get_yaxis_transform(), "offset points", va="top")
    reach = np.log(top / bottom)
    slope: Any = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 3}
    axes.plot([0, reach], [top, bottom], **slope)
    handles = [Line2D([], [], color=color, label=f"$N$ = {depth:g}") for depth, color in colors.items()]
    handles.append(Line2D([], [], **slope, label=r"$e^{-\mathrm{rate}\,\cdot\,t}$"))
    axes.legend(handles=handles, loc="upper right", labelspacing=0.3)
    axes.set_xlim(0, 1.45 * reach)
    axes.set_xlabel(r"predicted rate $\cdot$ flow time $t$")
    axes.set_ylabel(r"relative gap $(L - L^\star)\,/\,\mathrm{tr}\,\Sigma_0$")
    axes.set_title(f"every eigengap, seed {shown.seed[0]}")
    return figure


def _whom(shown: Comparison) -> str:
    """Whom the circles are of."""
    count = len(shown.seed)
    return f"each of {seeds(count)}" if count > 1 else f"seed {shown.seed[0]}"


def _colors(count: int) -> list[Any]:
    """Colors from dark to light, told apart with any color vision and on white paper."""
    return [matplotlib.colormaps["cividis"](place) for place in np.linspace(0, 0.9, count)]


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "eigengaps": eigengaps,
    "depths": depths,
    "gap": gap,
}


def save_all(shown: Comparison, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
