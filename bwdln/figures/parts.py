"""What every figure shares: size, style and the pieces they are made of.

Colors are those of Okabe and Ito and the map cividis: both can be told apart with any color vision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from bwdln import analysis
from bwdln.figures import data
from bwdln.results import Result, writable

#: Width of a column of a two-column paper (ICML), in inches.
COLUMN = 3.25

BLUE, ORANGE, RED, GRAY = "#0072B2", "#E69F00", "#D55E00", "#767676"

#: Cividis without its end in light yellow, which is hard to see on white.
DARK = LinearSegmentedColormap.from_list("dark", matplotlib.colormaps["cividis"](np.linspace(0, 0.9, 256)))

#: The label of an axis of flow time.
FLOW_TIME = "flow time $t$"

#: Options of a matplotlib function.
Options: TypeAlias = dict[str, Any]

#: Settings in force while a figure is drawn and saved; fonts are embedded as TrueType.
STYLE: Any = {  # the keys matplotlib's types allow change from version to version
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 7,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "axes.formatter.use_mathtext": True,
}

#: Decorator: the style is in force in the function.
styled = matplotlib.rc_context(STYLE)


def single(height: float) -> tuple[Figure, Axes]:
    """A figure of one column, that many inches high."""
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    return figure, figure.subplots()


def legend_above(figure: Figure) -> None:
    """One row of labels above everything, where it cannot cover data."""
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1, handletextpad=0.5)


def seeds(count: int) -> str:
    """How many seeds, in words."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def say_over(axes: Axes, what: str, lanes: int) -> None:
    """Say in the title what over the seeds is shown."""
    if lanes != 1:
        axes.set_title(f"{what} of {seeds(lanes)}" if lanes else "every seed diverged")


def positive(values: np.ndarray) -> np.ndarray:
    """NaN for what a log axis cannot show, so that it is left out."""
    return np.where(values > 0, values, np.nan)


def log_axis(axes: Axes, values: np.ndarray, decades: float = np.inf) -> None:
    """A log axis that holds the positive finite values, at most so many decades from the top."""
    shown = values[np.isfinite(values) & (values > 0)]
    top = shown.max() if shown.size else 1.0
    bottom = max(shown.min() if shown.size else 0.1, top * 10**-decades)
    margin = max((top / bottom) ** 0.05, 1.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom / margin, top * margin)


def mode_axis(axes: Axes, count: int, spread_out: bool) -> None:
    """Positions from 1; on a log axis where the few that are learned would crowd at the left."""
    if spread_out:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.4, count + max(0.6, 0.02 * count))


def progress_axis(axes: Axes, result: Result) -> None:
    """Steps or flow time, by the clock of the run; logarithmic from the first on where records are."""
    clock = analysis.clock(result)
    if result.config.record.spacing == "logarithmic":
        _logarithmic_from_zero(axes, result.dataset[clock].values)
    elif clock == "step":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_xlabel("step" if clock == "step" else FLOW_TIME)
    axes.margins(x=0.02)


def _logarithmic_from_zero(axes: Axes, along: np.ndarray) -> None:
    """A log axis from the smallest positive value on, and linear from 0 to there; few enough labels."""
    largest = along.max() or 1
    first = np.min(along, initial=largest, where=along > 0)
    decades = np.arange(np.ceil(np.log10(first) - 1e-9), np.floor(np.log10(largest)) + 1)
    apart = -(-len(decades) // 7) or 1
    axes.set_xscale("symlog", linthresh=first, linscale=apart)
    axes.xaxis.set_major_locator(FixedLocator([0, *10 ** decades[::apart]]))
    axes.xaxis.set_minor_locator(NullLocator())


def mosaic(axes: Axes, images: np.ndarray, low: float, high: float, across: int) -> AxesImage:
    """Draw images (count, height, width) in rows with a gap of 8 % between them."""
    _, height, width = images.shape
    style: Options = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "nearest"}
    for index, each in enumerate(images):
        x, y = index % across * 1.08 * width, index // across * 1.08 * height
        image = axes.imshow(each, extent=(x, x + width, y + height, y), **style)
    axes.set_xlim(0, (1.08 * across - 0.08) * width)
    axes.set_ylim((1.08 * -(-len(images) // across) - 0.08) * height, 0)
    return image


def drawn_to(folder: str | Path, figures: Mapping[str, Callable[[], Figure | None]]) -> list[Path]:
    """Draw figures and write each as PDF and PNG (300 dpi) into the folder, made if missing.

    Beside them goes what they show as CSV (`figures.data`), unless these are photographs. A function
    that returns None has nothing to show. Returns the paths. Figures of the same name are replaced.
    Raises `InvalidOption` if the folder cannot be written.
    """
    folder, paths = writable(folder), []
    for name, draw in figures.items():
        figure = draw()
        if figure is not None:
            paths += _save(figure, folder / name)
    return paths


@styled
def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(".pdf"), stem.with_suffix(".png")]
    for path in paths:
        figure.savefig(path, dpi=300)
    table = stem.with_suffix(data.SUFFIX)
    return [*paths, table] if data.write(figure, table) else paths
