"""The figures of a sweep: how the gap closes in every configuration, and what comes of them by option."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bwdln import analysis
from bwdln.analysis import Dataset, SweepFinals, Swept
from bwdln.figures.parts import (
    BLUE,
    DARK,
    FLOW_TIME,
    GRAY,
    ORANGE,
    RED,
    Options,
    drawn_to,
    log_axis,
    positive,
    seeds,
    single,
    styled,
)

#: The width of a letter, as a share of that of an axis.
LETTER = 0.03
#: Up to so many values of an option have a color of their own and stand in the legend.
FEW = 6
#: Up to so many positions on an axis are named, and so many letters of a name.
NAMED, LETTERS = 10, 20
#: Up to so many lines are drawn in full strength, and dashed by a second option.
TOLD_APART = 24
#: Beyond so many lines a PDF holds them as a picture.
VECTORS = 200

#: Colors of the values of an option that is no number, and dashes of those of a second option.
COLORS = (BLUE, ORANGE, "#009E73", RED, "#CC79A7", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))

STAR: Options = {
    "marker": "*",
    "markersize": 9,
    "color": "black",
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
    "linestyle": "none",
    "zorder": 5,
    "clip_on": False,
}
CROSS: Options = {"marker": "x", "markersize": 4, "color": RED, "linestyle": "none", "clip_on": False}


def sweep(dataset: Dataset, folder: str | Path, objective: str) -> list[Path]:
    """Draw the figures of a sweep and write each as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Figures of the same name are replaced. Raises `InvalidOption` if the folder cannot be
    written, for an objective that is not in `analysis.OBJECTIVES`, and for one that no job recorded.
    """
    draw = {name: partial(each, dataset, objective) for name, each in FIGURES.items()}
    return drawn_to(folder, draw)


# --- on the way -----------------------------------------------------------------------------------


@styled
def gap(dataset: Dataset, objective: str) -> Figure:
    """The median relative gap on the way, log axis: a line for each configuration, the best one in black.

    Colored by the first swept option that is a number, else by the first one; where the lines are few,
    dashed by the first other one of few values.
    """
    shown, finals = analysis.sweep_curves(dataset), analysis.sweep_finals(dataset, objective)
    options, count = analysis.swept(dataset, objective), len(shown.axis)
    colored = next((each for each in options if each.numeric), options[0] if options else None)
    others = (each for each in options if each is not colored and len(each.values) <= len(DASHES))
    dashed = next(others, None) if count <= TOLD_APART else None
    axis, median = positive(shown.axis) if shown.logarithmic else shown.axis, positive(shown.median)
    figure, axes = single(2.8)
    style: Options = {
        "colors": BLUE if colored is None else _colors(colored)[colored.index],
        "linestyles": "-" if dashed is None else [DASHES[value] for value in dashed.index],
        "linewidths": 1.1 if count <= TOLD_APART else 0.5,
        "alpha": 1 if count <= TOLD_APART else 0.6,
        "rasterized": count > VECTORS,
    }
    axes.add_collection(LineCollection(list(np.stack([axis, median], axis=-1)), **style))
    handles = _color_key(axes, colored) if colored is not None else []
    if dashed is not None:
        keys = zip(dashed.values, DASHES, strict=False)
        handles += [Line2D([], [], color=GRAY, linestyle=dash, label=_said(value)) for value, dash in keys]
    if finals.best is not None and count > FEW:
        label = f"best: job {finals.job[finals.best]}"
        handles += axes.plot(
            axis[finals.best], median[finals.best], color="black", linewidth=1.6, label=label
        )
    if (shown.median <= shown.floor).any():
        line: Options = {"color": GRAY, "linewidth": 0.8, "linestyle": ":", "label": "rounding"}
        handles.append(axes.axhline(shown.floor, **line))
    axes.set_xscale("log" if shown.logarithmic else "linear")
    axes.autoscale_view()
    axes.margins(x=0.02)
    log_axis(axes, shown.median)
    if not np.isfinite(median).any():
        _say_diverged(axes)
    axes.set_xlabel("step" if shown.clock == "step" else FLOW_TIME)
    axes.set_ylabel(r"relative gap $(L - L^\star)\,/\,\mathrm{tr}\,\Sigma_0$")
    axes.set_title(_whom(shown))
    _legend(figure, handles, _key(colored, dashed))
    return figure


def _whom(shown: analysis.SweepCurves) -> str:
    count, lost = len(shown.axis), int(np.isnan(shown.median).all(axis=1).sum())
    said = f"{count:,} configuration{'s' * (count > 1)}"
    said += f", {lost:,} diverged" if lost else ""
    apart = "\n" if lost else "; "
    return f"{said}{apart}median of {seeds(shown.seeds)}" if shown.seeds > 1 else said


def _say_diverged(axes: Axes) -> None:
    """Where there is nothing to show."""
    axes.text(0.5, 0.5, "every configuration diverged", ha="center", va="center", transform=axes.transAxes)
    axes.set_yscale("linear")
    axes.set_yticks([])


def _colors(option: Swept) -> np.ndarray:
    """A color for every value of an option, (values, 4)."""
    if len(option.values) <= FEW and not option.numeric:
        return matplotlib.colors.to_rgba_array(COLORS)[: len(option.values)]
    if len(option.values) <= FEW:
        return np.asarray(DARK(np.linspace(0, 1, len(option.values))))
    return np.asarray(DARK(_norm(option)(_places(option))))


def _color_key(axes: Axes, option: Swept) -> list[Artist]:
    """What tells the colors: handles for a legend, or a color bar where they are many."""
    if len(option.values) <= FEW:
        pairs = zip(option.values, _colors(option), strict=True)
        return [Line2D([], [], color=color, label=_said(value)) for value, color in pairs]
    bar = axes.figure.colorbar(ScalarMappable(_norm(option), DARK), ax=axes, label=_name(option))
    bar.outline.set_linewidth(0.5)
    if not option.numeric:
        _name_values(bar.ax.yaxis, option, _places(option))
    return []


def _key(colored: Swept | None, dashed: Swept | None) -> str | None:
    """What the colors and dashes in the legend stand for."""
    key = _name(colored) if colored is not None and len(colored.values) <= FEW else None
    if dashed is None:
        return key
    return f"dashes: {_name(dashed)}" if key is None else f"colors: {key}, dashes: {_name(dashed)}"


def _norm(option: Swept) -> Normalize:
    places = _places(option)
    return (LogNorm if _over_decades(places) else Normalize)(places.min(), places.max())


# --- at the end -----------------------------------------------------------------------------------


@styled
def final(dataset: Dataset, objective: str) -> Figure | None:
    """The final objective by the swept options; None where none takes several values.

    Of more than two options it shows the two that explain most of it, each alone (`analysis.swept`), and
    medians over the others. Two options of many values span a map; else there is a line for each value of
    the second one, or dots where the first one is no number.
    """
    finals, options = analysis.sweep_finals(dataset, objective), analysis.swept(dataset, objective)
    if not options:
        return None
    leading = sorted(options, key=lambda each: -each.influence)[:2]
    across, *rest = sorted(leading, key=lambda each: (each.numeric, len(each.values)), reverse=True)
    others = [each for each in options if each not in leading]
    label = f"final {objective.replace('_', ' ')}"
    if rest and len(rest[0].values) > FEW:
        return _final_map(finals, across, rest[0], others, label)
    return _final_lines(finals, across, rest[0] if rest else None, others, label)


def _final_lines(
    finals: SweepFinals, across: Swept, down: Swept | None, others: Sequence[Swept], label: str
) -> Figure:
    """A line or a row of dots for each value of the second option, with the spread as a band or bars."""
    figure, axes = single(2.6)
    table, places = analysis.sweep_table(finals, across, down), _places(across)
    lines, rows = table.shape[1], np.arange(table.shape[1])
    colors = [BLUE] if down is None else _colors(down)
    whole = across.numeric and np.mean(~np.isnan(table[1])) > 0.5
    many = len(places) > 40
    for row, color in zip(rows, colors, strict=True):
        low, median, high = np.where(np.isfinite(table[:, row]), table[:, row], np.nan)
        # Dots beside each other, where they would cover each other.
        beside = 0 if across.numeric else 0.5 * (row - (lines - 1) / 2) / lines
        points: Options = {"color": color, "markersize": 1.8 if many else 3.2, "linewidth": 1.1}
        name = None if down is None else _said(down.values[row])
        if whole:
            axes.plot(places, median, "-" if many else "o-", label=name, **points)
            axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
        else:
            axes.plot(places + beside, median, "o", label=name, **points)
            axes.vlines(places + beside, low, high, color=color, linewidth=0.8)
        lost = np.isinf(table[1, row])
        if lost.any():
            top: Options = {**CROSS, "color": color, "transform": axes.get_xaxis_transform()}
            axes.plot((places + beside)[lost], np.full(lost.sum(), 0.99), **top)
    handles: list[Artist] = list(axes.get_legend_handles_labels()[0])
    if np.isinf(table[1]).any():
        handles.append(Line2D([], [], **{**CROSS, "color": GRAY, "label": "diverged"}))
    if finals.best is not None:
        at = places[across.index[finals.best]]
        if not across.numeric and down is not None:
            at += 0.5 * (down.index[finals.best] - (lines - 1) / 2) / lines
        name = f"best: job {finals.job[finals.best]}"
        handles += axes.plot(at, max(finals.median[finals.best], finals.floor), label=name, **STAR)
    shown = table[np.isfinite(table)]
    if _over_decades(shown):
        log_axis(axes, np.append(shown, max(np.min(finals.median), finals.floor)))
    if not shown.size:
        _say_diverged(axes)
    _option_axis(axes.xaxis, across, places)
    axes.set_ylabel(label)
    axes.set_title(_over(finals, others))
    _legend(figure, handles, None if down is None else _name(down))
    return figure


def _final_map(
    finals: SweepFinals, across: Swept, down: Swept, others: Sequence[Swept], label: str
) -> Figure:
    """A cell for each pair of values; points instead, where most of the pairs are not there."""
    figure, axes = single(2.9)
    table = analysis.sweep_table(finals, across, down)[1]
    cells = np.mean(~np.isnan(table)) > 0.5
    along, up = (np.arange(len(each.values)) if cells else _places(each) for each in (across, down))
    shown = table[np.isfinite(table)]
    norm: Normalize | None = None
    if shown.size:
        norm = (LogNorm if _over_decades(shown) else Normalize)(shown.min(), shown.max())
    row, column = np.nonzero(np.isinf(table))
    style: Options = {"norm": norm, "cmap": "cividis", "rasterized": table.size > 1e4}
    smaller = min(1.0, 12 / max(table.shape)) if cells else 1.0
    if cells:
        axes.set_facecolor("#EBEBEB")
        image: Any = axes.pcolormesh(along, up, np.where(np.isinf(table), np.nan, table), **style)
    else:
        size = 14 if len(finals.job) <= TOLD_APART * FEW else 6
        there = np.nonzero(np.isfinite(table))
        image = axes.scatter(along[there[1]], up[there[0]], c=table[there], s=size, linewidths=0, **style)
    if row.size:
        cross: Options = {**CROSS, "markersize": 4 * smaller, "markeredgewidth": smaller}
        axes.plot(along[column], up[row], **cross)
    bar = figure.colorbar(image, ax=axes, label=label)
    bar.outline.set_linewidth(0.5)
    handles: list[Artist] = []
    if finals.best is not None:
        name = f"best: job {finals.job[finals.best]}"
        best = along[across.index[finals.best]], up[down.index[finals.best]]
        handles += axes.plot(*best, label=name, **STAR)
    if row.size:
        handles.append(Line2D([], [], **CROSS, label="diverged"))
    if cells and np.isnan(table).any():
        handles.append(Patch(color="#EBEBEB", label="no result"))
    for axis, option, places in ((axes.xaxis, across, along), (axes.yaxis, down, up)):
        _name_values(axis, option, places) if cells else _option_axis(axis, option, places)
        axis.set_label_text(_name(option))
    axes.set_title(_over(finals, others))
    _legend(figure, handles, None)
    return figure


def _over(finals: SweepFinals, others: Sequence[Swept]) -> str:
    """What the values are medians and spreads of."""
    if others:
        what = _cut(others[0].option, 30) if len(others) == 1 else f"{len(others)} other options"
        return f"median over {what}"
    return f"median of {seeds(finals.seeds)}" if finals.seeds > 1 else ""


# --- options on axes and in legends ---------------------------------------------------------------


def _places(option: Swept) -> np.ndarray:
    """Where the values of an option are on an axis: numbers where they are, others in a row."""
    return np.asarray(option.values, float) if option.numeric else np.arange(len(option.values), dtype=float)


def _option_axis(axis: Axis, option: Swept, places: np.ndarray) -> None:
    """The scale and the ticks of an axis with the values of an option, and its name."""
    axes = axis.axes
    if _over_decades(places) and option.numeric:
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    if len(places) <= FEW or not option.numeric:
        _name_values(axis, option, places)
    if not option.numeric:
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(-0.6, len(places) - 0.4)
    axis.set_label_text(_name(option))


def _name_values(axis: Axis, option: Swept, places: np.ndarray) -> None:
    """A tick for every value, or for so many of them as there is room for."""
    texts = [_said(value, 3) for value in option.values]
    across = axis is axis.axes.xaxis
    room = max(2, min(NAMED, 30 // max(len(text) for text in texts))) if across else NAMED
    slanted = across and len(texts) > room and not option.numeric
    apart = -(-len(texts) // (NAMED if slanted else room))
    named: Sequence[int] = range(0, len(texts), apart)
    if across and option.numeric:
        named = _readable(axis.get_transform().transform(places), texts)
    axis.set_major_locator(FixedLocator([float(places[each]) for each in named]))
    axis.set_major_formatter(FixedFormatter([texts[each] for each in named]))
    axis.set_minor_locator(NullLocator())
    if slanted:
        for label in axis.get_ticklabels():
            if len(texts) <= FEW:
                label.set(rotation=30, ha="right", rotation_mode="anchor")
            else:
                label.set_rotation(90)


def _readable(places: np.ndarray, texts: Sequence[str]) -> list[int]:
    """Which of the texts, at places along an axis, do not run into the one before them that is kept."""
    along = (places - places.min()) / max(np.ptp(places), 1e-300)
    kept: list[int] = []
    for each in np.argsort(along, kind="stable"):
        half = LETTER * (len(texts[each]) + len(texts[kept[-1]]) + 1) / 2 if kept else 0.0
        if not kept or along[each] - along[kept[-1]] >= half:
            kept.append(int(each))
    return kept


def _name(option: Swept) -> str:
    """The option, and what moves with it."""
    return _cut(" with ".join([option.option, *option.others]), 40)


def _said(value: Any, digits: int = 4) -> str:
    return _cut(str(value), LETTERS) if isinstance(value, str) else f"{value:.{digits}g}"


def _cut(text: str, letters: int) -> str:
    """A long text without its middle: names often differ at the end."""
    half = letters // 2
    return text if len(text) <= letters else f"{text[: letters - half - 1]}…{text[-half:]}"


def _over_decades(values: np.ndarray) -> bool:
    """Whether values are better seen on a log axis."""
    return values.size > 0 and bool(np.min(values) > 0) and bool(np.max(values) >= 10 * np.min(values))


def _legend(figure: Figure, handles: Sequence[Artist], title: str | None) -> None:
    """The legend above everything; the figure grows by what it takes beyond one row."""
    if not handles:
        return
    longest = max(len(str(each.get_label())) for each in handles)
    columns = max(1, min(len(handles), 4, 60 // (longest + 8)))
    place: Options = {
        "loc": "outside upper center",
        "ncols": columns,
        "columnspacing": 1,
        "handletextpad": 0.5,
    }
    figure.set_figheight(
        figure.get_figheight() + 0.14 * (-(-len(handles) // columns) - 1 + (title is not None))
    )
    figure.legend(handles=list(handles), title=title, title_fontsize=7, **place)


#: Every figure of a sweep, by the name of its files.
FIGURES = {"gap": gap, "final": final}
