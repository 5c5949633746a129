"""The figures of how fast gaps close over a sweep: by depth and smallest eigenvalue, and against theory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from bwdln.comparison.convergence_rate import Group
from bwdln.figures.parts import BLUE, COLUMN, DARK, GRAY, ORANGE, RED, Options, drawn_to, styled
from bwdln.fits import Line

DEPTH, ROOT = "depth $N$", r"$\sqrt{\lambda_n}$ of the target"
RATE = "rate of the gap per flow time"
#: What is no rate: of runs with a margin, and of those that have none.
FAILED: Options = {"marker": "x", "markersize": 3.2, "color": RED, "linestyle": "none"}
NO_MARGIN: Options = {"marker": "s", "markersize": 2.4, "color": GRAY, "linestyle": "none"}
#: As many levels has a map.
LEVELS = 12
#: Colors of losses and τ, as far as they go.
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#000000")


@styled
def contour(groups: Sequence[Group]) -> Figure | None:
    """The fitted rate over depth and √λ_n, a panel for each loss and τ, one scale of colors.

    None where there are less than two depths or two targets.
    """
    first = groups[0].points
    if len(np.unique(first.depth)) < 2 or len(np.unique(first.smallest)) < 2:
        return None
    rates = np.concatenate([np.where(group.points.margin, group.points.rate, np.nan) for group in groups])
    if not np.isfinite(rates).any():
        return None
    norm = LogNorm(np.nanmin(rates), max(np.nanmax(rates), 1.01 * np.nanmin(rates)))
    levels = np.geomspace(norm.vmin or 1, norm.vmax or 1, LEVELS + 1)
    figure, panels, rest = _panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        points = group.points
        rated = np.isfinite(points.rate) & points.margin
        grid = _grid(group)
        if np.isfinite(grid[2]).sum() > 3 and min(grid[2].shape) > 1:
            with np.errstate(invalid="ignore"):
                axes.contourf(
                    *grid[:2], np.ma.masked_invalid(grid[2]), levels=levels, norm=norm, cmap="cividis"
                )
        root = np.sqrt(points.smallest)
        color: Options = {"c": points.rate[rated], "norm": norm, "cmap": "cividis", "s": 4, "zorder": 3}
        axes.scatter(
            points.depth[rated], root[rated], edgecolors="white", linewidths=0.3, clip_on=False, **color
        )
        _mark_the_rest(axes, points.depth, root, group)
        axes.set_title(group.name)
    figure.supxlabel(DEPTH, fontsize=7.5)
    figure.supylabel(ROOT, fontsize=7.5)
    bar = _color_bar(figure, panels, rest, ScalarMappable(norm, "cividis"), RATE)
    bar.long_axis.set_major_locator(LogLocator(subs=(1,)))
    bar.long_axis.set_major_formatter(LogFormatterSciNotation())
    bar.long_axis.set_minor_formatter(NullFormatter())
    _legend(figure, rest, groups, [])
    return figure


@styled
def by_depth(groups: Sequence[Group]) -> Figure:
    """The fitted rate against the depth, with regression lines: over all, and at each √λ_n (color).

    The title has r² of the first, and the median of the others.
    """
    return _against(groups, DEPTH, ROOT, lambda points: points.depth, lambda points: np.sqrt(points.smallest))


@styled
def by_smallest(groups: Sequence[Group]) -> Figure:
    """The fitted rate against √λ_n, with regression lines: over all, and at each depth (color).

    The title has r² of the first, and the median of the others.
    """
    return _against(groups, ROOT, DEPTH, lambda points: np.sqrt(points.smallest), lambda points: points.depth)


def _against(
    groups: Sequence[Group],
    across: str,
    colored: str,
    along: Callable[[Any], np.ndarray],
    other: Callable[[Any], np.ndarray],
) -> Figure:
    figure, panels, rest = _panels(len(groups))
    every = np.concatenate([other(group.points) for group in groups])
    norm = Normalize(every.min(), every.max() if np.ptp(every) else every.min() + 1)
    for axes, group in zip(panels, groups, strict=True):
        points = group.points
        place, rated = along(points), np.isfinite(points.rate) & points.margin
        pooled, each = (
            (group.by_depth, {np.sqrt(at): fit for at, fit in group.at_smallest.items()})
            if across == DEPTH
            else (group.by_smallest, group.at_depth)
        )
        for at, fit in each.items():
            _draw_line(axes, fit, place[rated], {"color": DARK(norm(at)), "linewidth": 0.5, "zorder": 2})
        _draw_line(axes, pooled, place[rated], {"color": "black", "linestyle": "--", "linewidth": 1.1})
        axes.scatter(
            place[rated], points.rate[rated], c=other(points)[rated], norm=norm, cmap=DARK, s=5, linewidths=0
        )
        top = axes.get_xaxis_transform()
        for (chosen, style), height in zip(_without_rate(group), (0.08, 0.03), strict=True):
            if chosen.any():
                heights = np.full(int(chosen.sum()), height)
                axes.plot(place[chosen], heights, transform=top, clip_on=False, **style)
        squares = [fit.r_squared for fit in each.values() if np.isfinite(fit.r_squared)]
        said = f"$r^2$ = {pooled.r_squared:.2f}" if np.isfinite(pooled.r_squared) else "no line"
        apart = f"; by color {np.median(squares):.2f}" if squares else ""
        axes.set_title(f"{group.name}: {said}{apart}", fontsize=7)
        axes.set_ylim(bottom=0)
    figure.supxlabel(across, fontsize=7.5)
    figure.supylabel(RATE, fontsize=7.5)
    _color_bar(figure, panels, rest, ScalarMappable(norm, DARK), colored)
    pooled_line = Line2D([], [], color="black", linestyle="--", linewidth=1.1, label="regression, all points")
    thin = Line2D([], [], color=GRAY, linewidth=0.5, label="regression, each color")
    _legend(figure, rest, groups, [pooled_line, thin])
    return figure


def _draw_line(axes: Axes, fit: Line, places: np.ndarray, style: Mapping[str, Any]) -> None:
    """A regression line over the range it was fitted in."""
    if np.isfinite(fit.slope) and places.size:
        ends = np.array([places.min(), places.max()])
        axes.plot(ends, fit.at(ends), **style)


@styled
def theory(groups: Sequence[Group]) -> Figure:
    """The fitted rate against the closed form, and against what the certificates promise; log axes."""
    figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    what = (
        ("predicted", "closed form, in the end"),
        ("sharp", "promised by the sharp certificate"),
        ("paper", "promised by the paper"),
    )
    for axes, (field, said) in zip(panels, what, strict=True):
        ends: list[float] = []
        for group, color in zip(groups, COLORS, strict=False):
            points, numbers = group.points, getattr(group.points, field)
            known = np.isfinite(points.rate) & np.isfinite(numbers) & points.margin
            for chosen, face in ((known & ~points.asymptotic, "none"), (known & points.asymptotic, color)):
                if chosen.any():
                    axes.plot(
                        numbers[chosen], points.rate[chosen], "o", color=color, markerfacecolor=face,
                        markersize=2.6, markeredgewidth=0.5,
                    )  # fmt: skip
            ends += [*numbers[known], *points.rate[known]]
        if ends:
            low, high = min(ends) / 1.3, max(ends) * 1.3
            rates = [
                rate
                for group in groups
                for rate in group.points.rate[group.points.margin]
                if np.isfinite(rate)
            ]
            axes.plot([min(rates), high], [min(rates), high], color="black", linewidth=0.8, zorder=0)
            axes.set_xlim(low, high)
        else:
            axes.text(0.5, 0.5, "no promise", ha="center", va="center", transform=axes.transAxes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(said)
    panels[0].set_ylabel(RATE)
    handles = [
        Line2D([], [], marker="o", color=color, linestyle="none", markersize=3, label=group.name)
        for group, color in zip(groups, COLORS, strict=False)
    ]
    hollow: Options = {"marker": "o", "color": GRAY, "linestyle": "none", "markersize": 3}
    handles += [
        Line2D([], [], **hollow, label="window asymptotic"),
        Line2D([], [], **hollow, markerfacecolor="none", label="not, or not known"),
        Line2D([], [], color="black", linewidth=0.8, label="equal"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=8, columnspacing=0.9, handletextpad=0.2)
    return figure


# --- pieces ---------------------------------------------------------------------------------------


def _panels(count: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of so many panels in rows of three, and the cells that are left, without axes."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2 * COLUMN if columns > 1 else 1.4 * COLUMN, 2.1 * rows), layout="constrained")
    every = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel().tolist()
    for axes in every[count:]:
        axes.set_axis_off()
    for axes in every[:count]:
        axes.tick_params(labelbottom=True)  # also above an empty cell
    return figure, every[:count], every[count:]


def _color_bar(
    figure: Figure, panels: Sequence[Axes], rest: Sequence[Axes], colors: ScalarMappable, label: str
) -> Any:
    """A color bar in an empty cell, else at the right of everything."""
    if rest:
        place = rest[0].inset_axes((0.0, 0.88, 1.0, 0.07))
        bar = figure.colorbar(colors, cax=place, label=label, orientation="horizontal")
    else:
        bar = figure.colorbar(colors, ax=panels, label=label)
    bar.outline.set_linewidth(0.5)
    return bar


def _legend(figure: Figure, rest: Sequence[Axes], groups: Sequence[Group], handles: list[Any]) -> None:
    """What the marks stand for, those that there are."""
    failed, without = (any(_without_rate(group)[at][0].any() for group in groups) for at in (0, 1))
    if failed:
        handles = [*handles, Line2D([], [], **FAILED, label="no rate")]
    if without:
        handles = [*handles, Line2D([], [], **NO_MARGIN, label=r"no margin, $\lambda_n \leq \tau$")]
    if handles and rest:
        rest[0].legend(handles=handles, loc="lower left", borderaxespad=0).set_in_layout(False)
    elif handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=4)


def _without_rate(group: Group) -> list[tuple[np.ndarray, Options]]:
    """Which points have no rate, and how they are marked: those that failed, then those without a margin."""
    points = group.points
    return [(points.margin & ~np.isfinite(points.rate), FAILED), (~points.margin, NO_MARGIN)]


def _mark_the_rest(axes: Axes, across: np.ndarray, up: np.ndarray, group: Group) -> None:
    for chosen, style in _without_rate(group):
        if chosen.any():
            axes.plot(across[chosen], up[chosen], clip_on=False, **style)


def _grid(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depths, √λ_n, and the median rate over the seeds of each pair, (√λ_n, depths); NaN for none."""
    points = group.points
    depths, smallest = np.unique(points.depth), np.unique(points.smallest)
    rates = np.full((len(smallest), len(depths)), np.nan)
    for row, low in enumerate(smallest):
        for column, depth in enumerate(depths):
            own = points.rate[(points.smallest == low) & (points.depth == depth) & points.margin]
            if np.isfinite(own).any():
                rates[row, column] = np.nanmedian(own)
    return depths, np.sqrt(smallest), rates


#: Every figure, by the name of its files.
FIGURES: dict[str, Callable[[Sequence[Group]], Figure | None]] = {
    "rate_contour": contour,
    "rate_by_depth": by_depth,
    "rate_by_smallest": by_smallest,
    "rate_theory": theory,
}


def save_all(groups: Sequence[Group], folder: str | Path) -> list[Path]:
    """Draw every figure and write it as `parts.drawn_to` does; returns the paths.

    Raises `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, groups) for name, draw in FIGURES.items()})
