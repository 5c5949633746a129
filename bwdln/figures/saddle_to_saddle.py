"""The figures of the study of flows that learn one mode after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from bwdln.comparison.saddle_to_saddle import Comparison, Learning
from bwdln.figures.parts import (
    BLUE,
    COLUMN,
    FLOW_TIME,
    GRAY,
    ORANGE,
    RED,
    Options,
    drawn_to,
    log_axis,
    seeds,
    single,
    styled,
)
from bwdln.theory.checks import LossName

#: How the losses are called where there is little room.
LOSSES: dict[LossName, str] = {"bures_wasserstein": "BW", "frobenius": "Frobenius"}
#: How many modes are named in a legend.
NAMED = 6
#: Decades of a loss that are shown.
DECADES = 5


@styled
def modes(shown: Comparison) -> Figure:
    """Strengths of the modes, of where they end, in one seed of each run; predicted times as diamonds."""
    figure = Figure(figsize=(COLUMN, 3.1), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True, sharex="row", squeeze=False)
    for place, run in _placed(shown):
        axes = panels[place]
        _modes(axes, run, shown.fraction)
        axes.set_title(f"{LOSSES[run.loss]}, {'aligned' if run.aligned else 'unaligned'}")
    for place, axes in np.ndenumerate(panels):
        axes.set_visible(place in dict(_placed(shown)))
        axes.set_ylim(-0.03, 1.12)
    figure.supxlabel(f"{FLOW_TIME} (seed {shown.runs[0].seed[0]})", fontsize=7.5)
    figure.supylabel(r"$\Vert \omega_i^\top W \Vert$ / its end", fontsize=7.5)
    count = len(shown.runs[0].eigenvalue)
    handles = [
        Line2D([], [], color=color, label=f"$i$ = {mode}")
        for mode, color in enumerate(_colors(count), 1)
        if count <= NAMED or mode in (1, count)
    ]
    handles.append(Line2D([], [], **_marker(GRAY), label="predicted"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 5),
        columnspacing=0.9,
        handletextpad=0.4,
        handlelength=1.1,
    )
    return figure


def _placed(shown: Comparison) -> list[tuple[tuple[int, int], Learning]]:
    """The runs with the panel each belongs to: losses below one another, starts side by side."""
    runs = {(run.loss, run.aligned): run for run in shown.runs}
    panels = product(enumerate(LOSSES), enumerate((True, False)))
    return [
        ((row, column), runs[loss, aligned])
        for (row, loss), (column, aligned) in panels
        if (loss, aligned) in runs
    ]


def _modes(axes: Axes, run: Learning, fraction: float) -> None:
    axes.axhline(fraction, color=GRAY, linewidth=0.5, linestyle=":", zorder=0)
    for mode, color in enumerate(_colors(len(run.eigenvalue))):
        end, time = run.optimal[mode], run.predicted[0, mode]
        if end > 0:
            axes.plot(run.time[0, 1:], run.strength[0, 1:, mode] / end, color=color)
        if np.isfinite(time) and time > 0:
            axes.plot(time, fraction, **_marker(color), zorder=4)
    _time_axis(axes)


def _marker(color: Any) -> Options:
    """Where a mode is predicted to be learnt."""
    return {"marker": "D", "color": color, "markerfacecolor": "white", "markersize": 3.2, "linestyle": ""}


@styled
def loss(shown: Comparison) -> Figure:
    """The loss, of its value with no mode learnt, with the values of the critical points passed."""
    names = [name for name in LOSSES if any(run.loss == name for run in shown.runs)]
    figure = Figure(figsize=(COLUMN, 0.35 + 1.45 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        own = [run for run in shown.runs if run.loss == name]
        _loss(axes, own)
        axes.set_title(f"{LOSSES[name]}, seed {own[0].seed[0]}")
    axes.set_xlabel(FLOW_TIME)
    figure.supylabel("loss / loss with no mode learnt", fontsize=7.5)
    return figure


def _loss(axes: Axes, runs: list[Learning]) -> None:
    top = runs[0].plateaus[0]
    values = [run.value[0] / top for run in runs] + [runs[0].plateaus / top]
    for stage, plateau in enumerate(runs[0].plateaus / top):
        axes.axhline(plateau, color=GRAY, linewidth=0.6, linestyle="--", zorder=0)
        if plateau > 10**-DECADES:
            place: Options = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(_set(stage), (1, plateau), (2, 0), va="center", color=GRAY, **place)
    for run, color in zip(runs, _by_start(runs), strict=True):
        label = "aligned" if run.aligned else "unaligned"
        axes.plot(run.time[0, 1:], run.value[0, 1:] / top, color=color, label=label)
        times = run.predicted[0][np.isfinite(run.predicted[0]) & (run.predicted[0] > 0)]
        ticks: Options = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
        axes.plot(times, np.full(len(times), 0.0), **_marker(color) | ticks)
    log_axis(axes, np.concatenate(values), DECADES)
    axes.yaxis.set_minor_formatter(NullFormatter())
    _time_axis(axes)
    axes.legend(loc="lower left", borderpad=0.2)


def _set(size: int) -> str:
    """The index set of so many modes, short."""
    if size < 2:
        return "{1}" if size else "{ }"
    return f"{{1, {size}}}" if size == 2 else f"{{1…{size}}}"


def _by_start(runs: list[Learning]) -> list[str]:
    return ["black" if run.aligned else ORANGE for run in runs]


@styled
def times(shown: Comparison) -> Figure | None:
    """Measured against predicted times, of every run, seed and mode; None if nothing was learnt."""
    every = [(run, np.isfinite(run.ratio)) for run in shown.runs]
    if not any(learned.any() for _, learned in every):
        return None
    figure, axes = single(2.6)
    limits = []
    for run, learned in reversed(every):
        color, marker = (BLUE, "o") if run.loss == "bures_wasserstein" else (RED, "s")
        face = color if run.aligned else "white"
        style: Options = {"marker": marker, "color": color, "markerfacecolor": face, "linestyle": ""}
        kind = "aligned (exact)" if run.aligned else "unaligned (estimate)"
        x, y = run.predicted[learned], run.measured[learned]
        axes.plot(x, y, **style, markersize=3, markeredgewidth=0.7, label=f"{LOSSES[run.loss]}, {kind}")
        limits += [*x, *y]
    ends = np.array([min(limits) / 1.5, max(limits) * 1.5])
    axes.plot(ends, ends, color=GRAY, linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("predicted time of a mode")
    axes.set_ylabel("measured time")
    axes.set_title(f"every mode, {seeds(len(shown.runs[0].seed))}")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", labelspacing=0.3)
    return figure


def _time_axis(axes: Axes) -> None:
    """Flow time on a log axis, with few labels."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.02)


def _colors(count: int) -> list[Any]:
    """Colors from dark to light, told apart with any color vision and on white paper."""
    return [matplotlib.colormaps["cividis"](place) for place in np.linspace(0, 0.9, count)]


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {"modes": modes, "loss": loss, "times": times}


def save_all(shown: Comparison, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
