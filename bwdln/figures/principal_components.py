"""The figures of the study of what generators learn of data against its principal components."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from bwdln.comparison.principal_components import Comparison, Generated, Learned, Portraits, optimum
from bwdln.figures.parts import (
    BLUE,
    COLUMN,
    DARK,
    GRAY,
    Options,
    drawn_to,
    log_axis,
    mosaic,
    positive,
    seeds,
    styled,
)

#: Images in a row, and at most so many components.
ACROSS, MOST = 8, 16
#: Markers of what was measured, beside lines of theory.
CIRCLES: Options = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "markersize": 3.5}


@styled
def components(shown: Comparison) -> Figure | None:
    """Principal components above what was learnt, as images; None where samples are no images."""
    if shown.portraits is None:
        return None
    count = min(len(shown.portraits.learned), MOST)
    blocks = range(0, count, ACROSS)
    _, height, width = shown.portraits.learned.shape
    across = min(ACROSS, count)
    each = 2.08 * COLUMN / across * height / width + 0.25
    figure = Figure(figsize=(COLUMN, len(blocks) * each), layout="constrained")
    for axes, first in zip(np.ravel(figure.subplots(len(blocks), 1)), blocks, strict=True):
        _pairs(axes, shown.portraits, first, min(first + ACROSS, count), across)
    return figure


def _pairs(axes: Axes, shown: Portraits, first: int, last: int, across: int) -> None:
    """Components first + 1, …, last by principal component analysis, and below them as learnt."""
    blank = np.full((across - (last - first), *shown.learned.shape[1:]), np.nan)
    images = [shown.components[first:last], blank, shown.learned[first:last], blank]
    scaled = [each / np.abs(each).max(axis=(1, 2), keepdims=True) for each in images if len(each)]
    mosaic(axes, np.concatenate(scaled), -1, 1, across)
    away = float(np.max(1 - shown.cosines[first:last]))
    names = f"{first + 1}–{last}" if last > first + 1 else f"{last}"
    say = rf"$1 - |u_i\cdot\omega_i|\leq$ {max(away, 0):.0e}"
    axes.set_title(f"{names}: of PCA; below, learnt (seed {shown.seed}): {say}", pad=3)
    axes.set_axis_off()


@styled
def generated(shown: Comparison) -> Figure | None:
    """Images by generators of every bottleneck from the same draws; None where samples are no images."""
    if shown.generated is None:
        return None
    return _rows(shown.generated)


def _rows(shown: Generated) -> Figure:
    ranks, count, height, width = shown.rows.shape
    each = (COLUMN - 0.5) / count * height / width  # the names of the rows take half an inch
    figure = Figure(figsize=(COLUMN, ranks * each + 0.3), layout="constrained")
    axes = figure.subplots()
    mosaic(axes, shown.rows.reshape(ranks * count, height, width), shown.low, shown.high, count)
    for row, rank in enumerate(shown.rank):
        place = -0.3 * width, (1.08 * row + 0.5) * height
        axes.text(*place, f"$k$ = {rank}", ha="right", va="center")
    axes.set_axis_off()
    axes.set_title("generated, the same draws in every row", pad=3)
    return figure


@styled
def bottlenecks(shown: Comparison) -> Figure | None:
    """The final loss of every seed against the bottleneck, on the curve of PCA, and the distance to it.

    None if there is one bottleneck only.
    """
    if len(shown.by_rank) == 1:
        return None
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    along = np.arange(1, int(np.sum(shown.components.variances > 0)) + 1)
    curve = [optimum(shown.components, int(rank)) for rank in along]
    above.plot(along, positive(np.array(curve)), color=GRAY, linewidth=1, label=r"PCA: $\sum_{i>k}\lambda_i$")
    ranks, losses = _points(shown.by_rank, [each.loss for each in shown.by_rank])
    count = len(shown.main.seed)
    name = f"learnt, {'each of ' * (count > 1)}{seeds(count)}"
    above.plot(ranks, positive(losses), color=BLUE, label=name, **CIRCLES)
    log_axis(above, losses, decades=10)
    above.set_ylabel("final loss (data units squared)")
    above.legend()
    _, gaps = _points(shown.by_rank, [np.abs(shown.gap(each)) for each in shown.by_rank])
    floor = float(np.finfo(float).eps)
    below.plot(ranks, np.maximum(gaps, floor), color=BLUE, **CIRCLES)
    below.axhline(floor, color=GRAY, linewidth=0.8, linestyle=":", label="rounding")
    log_axis(below, np.append(gaps[gaps > floor], floor))
    below.set_ylabel(r"$|L - \mathrm{PCA}|\,/\,\mathrm{tr}\,\Sigma_0$")
    below.set_xlabel("bottleneck $k$")
    below.legend()
    below.yaxis.set_minor_formatter(NullFormatter())
    _log_numbers(below)
    below.set_xlim(0.85, 1.2 * max(each.rank for each in shown.by_rank))
    return figure


def _points(runs: tuple[Learned, ...], values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bottleneck and value of every seed of every run, one after another."""
    return np.repeat([each.rank for each in runs], [len(each) for each in values]), np.concatenate(values)


def _log_numbers(axes: Axes) -> None:
    """A log axis below with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


@styled
def taus(shown: Comparison) -> Figure | None:
    """What is learnt of every component against τ, on λ_i − τ, and the loss; None without any τ > 0."""
    runs = tuple(each for each in shown.by_tau if each.tau > 0)
    if not runs:
        return None
    figure = Figure(figsize=(COLUMN, 4.1), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _shrinking(above, shown, runs)
    tau = np.array([each.tau for each in runs])
    along = np.geomspace(tau[0] / 2, 2 * tau[-1], 400)
    curve = np.array([optimum(shown.components, shown.main.rank, each) for each in along])
    below.plot(along, positive(curve), color=GRAY, linewidth=1, label="smallest")
    losses = np.array([each.loss for each in runs])
    below.plot(np.repeat(tau, losses.shape[1]), losses.ravel(), color=BLUE, label="learnt", **CIRCLES)
    below.set_ylabel(r"final loss $L_\tau$")
    below.set_ylim(0, 1.05 * max(np.nanmax(losses), curve.max()))
    below.set_xlabel(r"$\tau$ (data units squared)")
    below.legend()
    below.set_xscale("log")
    below.set_xlim(along[0], along[-1])
    return figure


def _shrinking(axes: Axes, shown: Comparison, runs: tuple[Learned, ...]) -> None:
    """A line λ_i − τ for each component, with what every seed learnt of it."""
    leading = shown.components.variances[: shown.main.rank]
    tau = np.array([each.tau for each in runs])
    colors = DARK(np.linspace(0, 1, len(leading)))
    measured = np.array([each.variances for each in runs])
    top, bottom = leading[0], min(tau[0], leading[-1]) / 10
    for mode, (variance, color) in enumerate(zip(leading, colors, strict=True)):
        along = np.append(np.geomspace(tau[0] / 2, variance, 200)[:-1], variance * (1 - 1e-9))
        axes.plot(along, positive(variance - along), color=color, linewidth=0.9, zorder=1)
        places = np.repeat(tau, measured.shape[1])
        axes.plot(places, positive(measured[..., mode].ravel()), color=color, zorder=2, **CIRCLES)
    axes.plot([], [], color=GRAY, linewidth=0.9, label=r"$\lambda_i - \tau$")
    axes.plot([], [], color=GRAY, label="learnt $s_i^2$", **CIRCLES)
    axes.set_yscale("log")
    axes.set_ylim(bottom, 2 * top)
    axes.set_ylabel("variance of component $i$\n(data units squared)")
    count = len(shown.main.seed)
    axes.set_title(f"$k$ = {shown.main.rank}, {'each of ' * (count > 1)}{seeds(count)}")
    axes.legend(loc="lower left")


#: Every figure of the study, by the name of its files.
FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "components": components,
    "generated": generated,
    "bottlenecks": bottlenecks,
    "taus": taus,
}


def save_all(shown: Comparison, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, shown) for name, draw in FIGURES.items()})
