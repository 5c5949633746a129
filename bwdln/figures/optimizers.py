"""The figures of the study of optimizers from a small start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bwdln.comparison.optimizers import PROGRESS, Comparison, Trial
from bwdln.figures.parts import (
    BLUE,
    GRAY,
    ORANGE,
    RED,
    Options,
    drawn_to,
    legend_above,
    log_axis,
    positive,
    seeds,
    single,
    styled,
)

#: Colors and lines of the optimizers; a user's own take those of the end in turn.
LINES: dict[str, Options] = {
    "descent": {"color": BLUE, "linestyle": "-"},
    "momentum": {"color": "#56B4E9", "linestyle": "--"},
    "nesterov": {"color": "#009E73", "linestyle": "-."},
    "muon": {"color": RED, "linestyle": "-"},
    "adam": {"color": ORANGE, "linestyle": "-"},
    "rmsprop": {"color": "#CC79A7", "linestyle": "--"},
}
OTHERS: tuple[Options, ...] = (
    {"color": GRAY, "linestyle": "-"},
    {"color": GRAY, "linestyle": "--"},
    {"color": GRAY, "linestyle": "-."},
)
FLOW: Options = {"color": "black", "linestyle": (0, (1, 1)), "linewidth": 1.6, "label": "flow"}


@styled
def gap(shown: Comparison) -> Figure:
    """The median relative gap against the step; that of the flow where plain descent is at its time."""
    figure, axes = single(2.6)
    for name, trial, style in _each(shown):
        axes.plot(trial.gap.axis, trial.gap.median, label=_label(name, trial), **style)
    axes.plot(shown.flow_gap.axis, shown.flow_gap.median, **FLOW)
    bands = [shown.flow_gap, *(trial.gap for trial in shown.trials.values())]
    log_axis(axes, np.concatenate([band.median for band in bands]))
    axes.set_ylabel(r"relative gap $(L - L^\star)\,/\,\mathrm{tr}\,\Sigma_0$")
    return _finished(figure, axes, shown, "step (flow: $t/\\eta$ of descent)")


@styled
def rank(shown: Comparison) -> Figure:
    """The median effective rank against the part of the gap at the start that is closed."""
    figure, axes = single(2.6)
    for name, trial, style in _each(shown):
        axes.plot(PROGRESS, trial.learning.median, label=_label(name, trial), **style)
    axes.plot(PROGRESS, shown.flow.median, **FLOW)
    axes.set_ylim(bottom=0.9)
    axes.set_ylabel("effective rank")
    return _finished(figure, axes, shown, "part of the gap closed")


@styled
def deviation(shown: Comparison) -> Figure:
    """The median distance of generators that start alike in other coordinates, against the step.

    A dot marks where the last part of `PROGRESS` is closed; the dotted line is what passes for rounding.
    """
    figure, axes = single(2.6)
    for name, trial, style in _each(shown):
        values = positive(trial.deviation)
        axes.plot(trial.gap.axis, values, label=_label(name, trial), **style)
        if np.isfinite(trial.learnt):
            at = np.interp(trial.learnt, trial.gap.axis, values)
            axes.plot(trial.learnt, at, "o", color=style["color"], markersize=3)
    axes.axhline(shown.rounding, color=GRAY, linewidth=0.8, linestyle=":")
    above: Options = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    said = "half of the digits agree"
    axes.annotate(said, (0.98, shown.rounding), (0, 3), ha="right", color=GRAY, **above)
    every = [trial.deviation for trial in shown.trials.values()]
    log_axis(axes, np.append(np.concatenate(every), shown.rounding))
    axes.set_ylabel(r"$\Vert W - \widetilde{W}\Vert_F \,/\, \Vert W\Vert_F$")
    return _finished(figure, axes, shown, "step", f"; dots: {PROGRESS[-1]:.0%} of the gap closed")


def _each(shown: Comparison) -> Iterator[tuple[str, Trial, Options]]:
    """The optimizers with their lines."""
    others = 0
    for name, trial in shown.trials.items():
        if name in LINES:
            yield name, trial, LINES[name]
        else:
            yield name, trial, OTHERS[others % len(OTHERS)]
            others += 1


def _label(name: str, trial: Trial) -> str:
    """The name of an optimizer, and how many of its seeds are left out."""
    left_out = int(np.sum(~trial.compared))
    return f"{name} ({left_out} left out)" if left_out else name


def _finished(figure: Figure, axes: Axes, shown: Comparison, along: str, more: str = "") -> Figure:
    """With what is along the axis, of whom the values are, and labels where they cannot cover data."""
    axes.margins(x=0.02)
    axes.set_xlabel(along)
    whom = f"median of {seeds(len(shown.seed))}" if len(shown.seed) > 1 else f"seed {shown.seed[0]}"
    axes.set_title(whom + more)
    legend_above(figure)
    return figure


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Comparison], Figure]] = {"gap": gap, "rank": rank, "deviation": deviation}


def save_all(shown: Comparison, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
