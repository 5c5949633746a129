"""The figures of the study of gradient descent against the gradient flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from bwdln.comparison.descent_to_flow import DISTANCE_ORDER, DRIFT_ORDER, Comparison, Curve, Scaling
from bwdln.figures.parts import (
    BLUE,
    FLOW_TIME,
    GRAY,
    RED,
    Options,
    drawn_to,
    log_axis,
    seeds,
    single,
    styled,
)

STEP_SIZE = r"step size $\eta$"


@styled
def gap(shown: Comparison) -> Figure:
    """The relative gap against flow time, log axis: medians of descent at each step size and of the flow."""
    figure, axes = single(2.5)
    colors = _colors(len(shown.descents))
    for size, each, color in reversed(list(zip(shown.step_size, shown.descents, colors, strict=True))):
        lost = f" ({len(each.lost_time)} diverged)" if len(each.lost_time) else ""
        _curve(axes, each, f"$\\eta$ = {size:g}{lost}", {"color": color})
    _curve(axes, shown.flow, "flow", {"color": "black", "linestyle": (0, (1, 1)), "linewidth": 1.6})
    medians = [each.band.median for each in (shown.flow, *shown.descents)]
    log_axis(axes, np.concatenate(medians))
    for each, color in zip((*shown.descents, shown.flow), (*colors, "black"), strict=True):
        _ends(axes, each, color)
    axes.margins(x=0.02)
    axes.set_xlabel(FLOW_TIME)
    axes.set_ylabel(r"relative gap $(L - L^\star)\,/\,\mathrm{tr}\,\Sigma_0$")
    axes.set_title(_whom(shown, "median"))
    axes.legend(loc="upper right", labelspacing=0.3)
    return figure


def _curve(axes: Axes, curve: Curve, label: str, style: Options) -> None:
    """The median of the seeds that came through, and a thin broken line for each other."""
    axes.plot(curve.band.axis, curve.band.median, label=label, **style)
    for time, gaps in zip(curve.lost_time, curve.lost_gap, strict=True):
        axes.plot(time, gaps, color=style["color"], linewidth=0.6, linestyle="--")


def _ends(axes: Axes, curve: Curve, color: Any) -> None:
    """A cross where a seed diverged: at the top of the axis if that lies above it."""
    top = axes.get_ylim()[1]
    for time, gaps in zip(curve.lost_time, curve.lost_gap, strict=True):
        axes.plot(time[-1], np.fmin(gaps[-1], top), "x", color=color, clip_on=False)


@styled
def distance(shown: Comparison) -> Figure:
    """The distance between the trajectories of descent and flow against the step size."""
    figure, axes = single(2.3)
    _scaling(axes, shown, shown.distance, DISTANCE_ORDER)
    axes.set_ylabel(r"$\max_t \,\Vert W_\eta(t) - W(t)\Vert_F \,/\, \Vert W(t)\Vert_F$")
    return figure


@styled
def imbalance(shown: Comparison) -> Figure | None:
    """How far a step of descent moves the imbalance, against the step size; None at depth 1."""
    if shown.drift is None:
        return None
    figure, axes = single(2.3)
    _scaling(axes, shown, shown.drift, DRIFT_ORDER)
    axes.set_ylabel("imbalance drift per step")
    return figure


def _scaling(axes: Axes, shown: Comparison, scaling: Scaling, order: int) -> None:
    """Median and range by step size, with the fitted law and one of the order that theory says."""
    usable = scaling.median > 0  # also false for NaN
    sizes, median, law = shown.step_size[usable], scaling.median[usable], scaling.law
    spread = [median - scaling.low[usable], scaling.high[usable] - median]
    bars: Options = {"elinewidth": 0.8, "capsize": 2, "markersize": 3.5, "color": BLUE}
    axes.errorbar(sizes, median, spread, fmt="o", zorder=3, **bars)
    values = [scaling.low, scaling.high]
    if law.points > 1:
        label = f"fit: slope {law.exponent:.2f} ({law.points} smallest $\\eta$)"
        fitted, reference = law.at(sizes), 0.5 * law.at(sizes[0]) * (sizes / sizes[0]) ** order
        axes.plot(sizes, fitted, color=BLUE, linewidth=1, label=label, zorder=2)
        axes.plot(sizes, reference, color=GRAY, linestyle="--", linewidth=1, label=f"slope {order}")
        values += [fitted, reference]
    log_axis(axes, np.concatenate(values))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(_whom(shown, "median and range"))
    _size_axis(axes, shown.step_size)
    _lost(axes, shown)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left")


def _whom(shown: Comparison, what: str) -> str:
    """Whom the values are of: all seeds, those that did not diverge, or the only one."""
    if (shown.outcome == "diverged").any():
        return f"{what}, diverged seeds left out"
    return f"{what} of {seeds(len(shown.seed))}" if len(shown.seed) > 1 else f"seed {shown.seed[0]}"


def _lost(axes: Axes, shown: Comparison) -> None:
    """A cross above each step size at which seeds diverged, with how many."""
    lost = np.sum(shown.outcome == "diverged", axis=1)
    sizes, above = shown.step_size[lost > 0], axes.get_xaxis_transform()
    if sizes.size:
        style: Options = {"color": RED, "transform": above, "clip_on": False, "label": "seeds diverged"}
        axes.plot(sizes, np.ones(sizes.shape), "x", **style)
    for size, count in zip(sizes, lost[lost > 0], strict=True):
        axes.annotate(f"{count}", (size, 1), (0, 3), above, "offset points", ha="center", color=RED)


def _size_axis(axes: Axes, step_sizes: np.ndarray) -> None:
    """Step sizes, logarithmic, with labels as far apart as they must be."""
    smallest, largest = step_sizes.min(), step_sizes.max()
    margin = max((largest / smallest) ** 0.06, 1.15)
    axes.set_xscale("log")
    axes.set_xlim(smallest / margin, largest * margin)
    wide = largest > 200 * smallest
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    if not wide:
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(STEP_SIZE)


def _colors(count: int) -> list[Any]:
    """Colors from dark to light, told apart with any color vision and on white paper."""
    return [matplotlib.colormaps["cividis"](place) for place in np.linspace(0, 0.9, count)]


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "gap": gap,
    "distance": distance,
    "imbalance": imbalance,
}


def save_all(shown: Comparison, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
