"""The figures of critical points: curvature at each, the loss on paths, and its blow-up at small τ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bwdln.figures.parts import BLUE, COLUMN, GRAY, ORANGE, RED, Options, drawn_to, log_axis, single, styled
from bwdln.theory.landscape import Overview, Paths, label
from bwdln.theory.measured import FITTED, BlowUp, Pair

#: As many points have a label each; more are placed by their saddle index.
LABELED = 30
#: As many paths have a name in the legend.
NAMED = 12
#: So few have a band around them; more would hide each other.
BANDED = 3
#: Decades that an axis of both signs shows around 0, at most.
DECADES = 8

NAMES = {"bures_wasserstein": "Bures-Wasserstein", "frobenius": "Frobenius"}
STYLES: dict[str, Options] = {
    "bures_wasserstein": {"color": BLUE, "marker": "o"},
    "frobenius": {"color": ORANGE, "marker": "s"},
}
#: The quantities, with their labels and whether they have both signs.
PANELS = (
    ("largest", r"$\lambda_{\max}$", False),
    ("smallest", r"$\lambda_{\min}$", True),
    ("relative_condition", r"$\lambda_{\max}\,/\,\lambda_{\min}$", True),
    ("absolute_condition", r"$\lambda_{\max}\,/\,\min |\lambda|$", False),
)


# --- curvature at every point ---------------------------------------------------------------------


@styled
def curvature(shown: Sequence[Overview]) -> Figure:
    """Extreme eigenvalues and condition numbers of the Hessian, mean ± deviation, at every point.

    Few points stand side by side, from the lowest loss to the highest; many by their saddle index.
    """
    figure = Figure(figsize=(COLUMN, 5.2), layout="constrained")
    panels = figure.subplots(len(PANELS), sharex=True)
    named = len(shown[0].sets) <= LABELED and max(map(len, _labels(shown[0]))) <= 12
    for axes, (field, text, signed) in zip(panels, PANELS, strict=True):
        for number, each in enumerate(shown):
            shift = 0.16 * (2 * number - len(shown) + 1) if named else 0.0
            at = np.arange(1, len(each.sets) + 1) + shift if named else each.over["index"].mean
            _points(axes, at, each, field)
        (_signed_axis if signed else _positive_axis)(axes, [each.over[field].mean for each in shown])
        axes.set_ylabel(text)
    bottom = panels[-1]
    if named:
        count = len(shown[0].sets)
        upright = max(map(len, _labels(shown[0]))) * count > 36
        bottom.set_xlim(0.4, count + 0.6)
        bottom.xaxis.set_major_locator(FixedLocator(range(1, count + 1)))
        bottom.set_xticklabels(_labels(shown[0]), rotation=90 if upright else 0)
        bottom.set_xlabel("critical point (modes learnt), by loss")
    else:
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        bottom.set_xlabel("saddle index")
    lanes = int(shown[0].over["value"].count.max())
    if lanes > 1:
        panels[0].set_title(f"mean ± deviation of {lanes} targets")
    if len(shown) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _labels(shown: Overview) -> list[str]:
    return [label(each) for each in shown.sets]


def _points(axes: Axes, at: np.ndarray, shown: Overview, field: str) -> None:
    """Mean and deviation; a bar that leaves a log axis below ends at its edge."""
    spread, many = shown.over[field], len(at) > LABELED
    style: Options = STYLES[shown.loss] | {"markersize": 2 if many else 3, "linestyle": "none"}
    bars = np.nan_to_num(spread.deviation)
    style |= {"elinewidth": 0.4 if many else 0.8, "alpha": 0.7 if many else 1.0}
    axes.errorbar(at, spread.mean, bars if bars.any() else None, label=NAMES[shown.loss], **style)


def _positive_axis(axes: Axes, means: Sequence[np.ndarray]) -> None:
    log_axis(axes, np.concatenate(means))
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)
    _few_decades(axes)


def _few_decades(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _signed_axis(axes: Axes, means: Sequence[np.ndarray]) -> None:
    """Logarithmic on both sides of 0, linear between the smallest numbers there are, with a line at 0."""
    sizes = np.abs(np.concatenate(means))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    top = sizes.max() if sizes.size else 1.0
    first = max(sizes.min() if sizes.size else 1.0, top * 10.0**-DECADES)
    first = 10 ** np.floor(np.log10(first))
    axes.set_yscale("symlog", linthresh=first, linscale=0.4)
    every = np.concatenate(means)
    every = every[np.isfinite(every)]
    ticks = [0.0]
    for sign in (-1, 1):
        side = np.max(sign * every, initial=0)
        reach = 10 ** np.ceil(np.log10(side * 1.2)) if side > first else first
        inner = (first * reach) ** 0.5 if reach > 1e3 * first else reach
        ticks += [] if reach == first else [sign * reach, sign * 10 ** np.round(np.log10(inner))]
        axes.set_ylim(**{"top" if sign > 0 else "bottom": sign * reach})
    axes.yaxis.set_major_locator(FixedLocator(sorted(set(ticks))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(0, color=GRAY, linewidth=0.5, zorder=0)


# --- paths ----------------------------------------------------------------------------------------


@styled
def along_paths(shown: Paths, depth: float) -> Figure:
    """The loss on the straight paths to the minimizer, in function space and for the layers."""
    spaces = [("function space", shown.function_space)]
    if depth != 1:
        spaces.append((f"parameter space, depth {depth:g}", shown.parameter_space))
    figure = Figure(figsize=(COLUMN, 0.6 + 1.6 * len(spaces)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(spaces), sharex=True))
    names, colors = [label(each) for each in shown.starts], _colors(len(shown.starts))
    banded = len(names) <= BANDED and shown.targets > 1
    for axes, (space, spread) in zip(panels, spaces, strict=True):
        for name, color, mean, deviation in zip(names, colors, spread.mean, spread.deviation, strict=True):
            axes.plot(shown.places, mean, color=color, label=name)
            if banded:
                around = mean - deviation, mean + deviation
                axes.fill_between(shown.places, *around, color=color, alpha=0.12, linewidth=0)
        axes.set_title(space)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.margins(x=0.02)
    panels[-1].set_xlabel("place on the straight path to the minimizer")
    figure.supylabel(r"$(L - L^\star)\,/\,(L(0) - L^\star)$", fontsize=7.5)
    what = f"{NAMES[shown.loss]}: {_whose(shown.targets, banded)}"
    figure.suptitle(what, x=0.01, ha="left", fontsize=7.5)
    if len(names) <= NAMED and max(map(len, names)) <= 8:
        handles = panels[0].get_legend_handles_labels()
        columns = max(1, min(len(names), 34 // (max(map(len, names)) + 4)))
        legend = figure.legend(*handles, loc="outside lower center", ncols=columns, title="from")
        legend.get_title().set_fontsize(7)
    return figure


def _whose(targets: int, banded: bool) -> str:
    what = "mean ± deviation" if banded else "mean"
    return f"{what} of {targets} targets" if targets > 1 else "one target"


def _colors(count: int) -> list[Any]:
    """From dark to light, told apart with any color vision and on white paper."""
    return [matplotlib.colormaps["cividis"](place) for place in np.linspace(0, 0.9, count)]


# --- blow-up --------------------------------------------------------------------------------------


@styled
def blow_up(shown: BlowUp) -> Figure:
    """The negative curvature along which a missing mode is learnt, against τ, log-log."""
    figure, axes = single(2.5)
    colors = (BLUE, ORANGE, RED)
    lanes, values = shown.closed.shape[1], []
    for mode, color, closed, seen, law in zip(
        shown.modes, colors, shown.closed, shown.measured, shown.law, strict=False
    ):
        mean, dots = -closed.mean(axis=0), -seen.mean(axis=0)
        name = f"mode {mode + 1}: fitted slope {law.exponent:.3f}".replace("-", "−")
        axes.plot(shown.tau, np.where(mean > 0, mean, np.nan), color=color, label=name)
        axes.plot(shown.tau, np.where(dots > 0, dots, np.nan), "o", color=color, markersize=3)
        values += [mean, dots]
    axes.plot([], [], "o", color=GRAY, markersize=3, label="second derivative of the loss")
    axes.plot(*_reference(shown), color=GRAY, linestyle="--", linewidth=1, label="slope −1/2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    top = max(each.max() for each in values)
    axes.set_ylim(top * 1e-7, top * 3)  # with room for the legend below
    _few_decades(axes)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(r"perturbation $\tau$")
    axes.set_ylabel(r"$-2\,(1 - \sqrt{\lambda_a/\tau})$")
    axes.set_title("one target" if lanes == 1 else f"mean of {lanes} targets")
    axes.legend(loc="lower left", labelspacing=0.3)
    return figure


def _reference(shown: BlowUp) -> tuple[np.ndarray, np.ndarray]:
    """A line of slope −1/2 below the data, as long as what the laws are fitted to."""
    tau = shown.tau[: FITTED + 4]
    lowest = min(float(-closed.mean(axis=0)[0]) for closed in shown.closed)
    return tau, 0.4 * lowest * (tau / tau[0]) ** -0.5


# --- automatic differentiation --------------------------------------------------------------------


@styled
def differentiation(shown: Mapping[str, Mapping[int, Pair]]) -> Figure:
    """The eigenvalues of the Hessian at the points of one target: closed form (dash), differentiated (dot).

    A panel for each loss; a column for each point, by its number.
    """
    figure = Figure(figsize=(COLUMN, 1.3 + 1.5 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
    for axes, (loss, points) in zip(panels, shown.items(), strict=True):
        along = np.concatenate([np.full(len(pair.closed), point) for point, pair in points.items()])
        closed, built = (
            np.concatenate([getattr(pair, way) for pair in points.values()])
            for way in ("closed", "differentiated")
        )
        color = STYLES[loss]["color"]
        dash: Options = {
            "marker": "_",
            "markersize": 9,
            "color": "black",
            "linestyle": "none",
            "linewidth": 0.8,
        }
        axes.plot(along, closed, label="closed form (§4)", **dash)
        dots: Options = {"marker": "o", "markersize": 3.2, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot(along, built, label="automatic differentiation", color=color, markeredgewidth=0.7, **dots)
        _signed_axis(axes, [closed[np.abs(closed) > 1e-9 * np.abs(closed).max()]])
        axes.set_title(NAMES[loss])
        axes.set_ylabel("eigenvalue of the Hessian")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("critical point, from the lowest loss to the highest")
    handles = [
        Line2D([], [], marker="_", markersize=9, color="black", linestyle="none", label="closed form"),
        Line2D([], [], marker="o", markersize=3.2, color=GRAY, markerfacecolor="none", linestyle="none",
               label="automatic differentiation"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


# --- files ----------------------------------------------------------------------------------------


def save_points(shown: Sequence[Overview], folder: str | Path) -> list[Path]:
    """Write `curvature`, as `parts.drawn_to` does."""
    return drawn_to(folder, {"curvature": partial(curvature, shown)})


def save_paths(shown: Sequence[Paths], depth: float, folder: str | Path) -> list[Path]:
    """Write `paths_LOSS` for each loss, as `parts.drawn_to` does."""
    return drawn_to(folder, {f"paths_{each.loss}": partial(along_paths, each, depth) for each in shown})


def save_blow_up(shown: BlowUp, folder: str | Path) -> list[Path]:
    """Write `blow_up`, as `parts.drawn_to` does."""
    return drawn_to(folder, {"blow_up": partial(blow_up, shown)})


def save_pairs(shown: Mapping[str, Mapping[int, Pair]], folder: str | Path) -> list[Path]:
    """Write `differentiation`, as `parts.drawn_to` does; nothing where there is no point."""
    known = {loss: points for loss, points in shown.items() if points}
    return drawn_to(folder, {"differentiation": partial(differentiation, known)} if known else {})
