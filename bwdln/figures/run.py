"""The figures of one run: gap, spectrum, alignment, samples, and curvature and certificates if recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bwdln import analysis, comparison
from bwdln.figures.parts import (
    BLUE,
    COLUMN,
    GRAY,
    ORANGE,
    RED,
    Options,
    drawn_to,
    legend_above,
    log_axis,
    mode_axis,
    mosaic,
    positive,
    progress_axis,
    say_over,
    seeds,
    single,
    styled,
)
from bwdln.results import Result

#: The quantiles that bands span, in words.
BAND = f"{100 * analysis.LOW:.0f}–{100 * analysis.HIGH:.0f} %"


@styled
def gap(result: Result) -> Figure:
    """The relative gap to the optimum on the way, log axis: every seed, median and band."""
    shown = analysis.convergence(result)
    figure, axes = single(2.3)
    _gap_over_seeds(axes, shown.band)
    _gap_of_seeds(axes, shown)
    log_axis(axes, shown.relative_gap[~shown.diverged] if shown.band.lanes else shown.relative_gap)
    if (shown.relative_gap <= shown.floor).any():
        axes.axhline(shown.floor, color=GRAY, linewidth=0.8, linestyle=":", label="rounding")
    progress_axis(axes, result)
    axes.set_ylabel(r"relative gap $(L - L^\star)\,/\,\mathrm{tr}\,\Sigma_0$")
    axes.set_title(rf"$L^\star$ = {shown.minimum:.5g}, the smallest loss at rank {shown.rank}")
    axes.legend()
    return figure


def _gap_over_seeds(axes: Axes, band: analysis.Band) -> None:
    """Median and band, where there is more than one seed."""
    if band.lanes > 1:
        label = f"median of {seeds(band.lanes)}"
        axes.plot(band.axis, band.median, color=BLUE, linewidth=1.6, label=label, zorder=3)
        spread: Options = {"color": BLUE, "alpha": 0.2, "linewidth": 0}
        label = f"{BAND} of them"
        axes.fill_between(band.axis, band.low, band.high, label=label, **spread)


def _gap_of_seeds(axes: Axes, shown: analysis.Convergence) -> None:
    """A thin line for each seed; those that diverged in another color, broken."""
    good, dead = (np.flatnonzero(lanes) for lanes in (~shown.diverged, shown.diverged))
    each = f"seed {shown.seed[good[0]]}" if len(good) == 1 else "each seed"
    faint: Options = {"alpha": 0.5, "linewidth": 0.6 if len(good) <= 32 else 0.35}
    groups: tuple[tuple[str, np.ndarray, Options], ...] = (
        (each, good, {"color": BLUE} | (faint if len(good) > 1 else {})),
        (f"diverged ({seeds(len(dead))})", dead, {"color": RED, "linewidth": 0.6, "linestyle": "--"}),
    )
    for label, lanes, style in groups:
        for lane in lanes:
            name = label if lane == lanes[0] else None
            axes.plot(shown.axis[lane], shown.relative_gap[lane], label=name, **style)


@styled
def spectrum(result: Result) -> Figure:
    """The learned eigenvalues s_i² against the optimal ones, before the target's whole spectrum."""
    shown = analysis.spectrum(result)
    figure, axes = single(2.3)
    modes, every = np.arange(1, len(shown.learned) + 1), np.arange(1, len(shown.target) + 1)
    small: Options = {"markersize": 2.5, "linewidth": 0.6, "color": "#ADADAD"}
    axes.plot(every, positive(shown.target), ".-", label=r"target $\lambda_i$", **small)
    ring: Options = {"markersize": 5.5, "markerfacecolor": "none", "markeredgecolor": "black"}
    axes.plot(modes, positive(shown.optimal), "o", markeredgewidth=0.7, label="optimum", zorder=4, **ring)
    if shown.lanes:
        spread = [shown.learned - shown.smallest, shown.largest - shown.learned]
        bars: Options = {"elinewidth": 0.8, "capsize": 1.5, "markersize": 3, "color": BLUE}
        axes.errorbar(modes, shown.learned, spread, fmt="o", label="learned $s_i^2$", zorder=3, **bars)
    say_over(axes, "median and range", shown.lanes)
    if shown.tau > 0:
        axes.axhline(shown.tau, color=ORANGE, linestyle="--", label=rf"$\tau$ = {shown.tau:.4g}", zorder=0)
    log_axis(axes, np.concatenate([shown.target, shown.learned]), decades=10)
    bottom = axes.get_ylim()[0]
    off = modes[shown.learned < bottom]
    if off.size:
        axes.plot(off, np.full(off.shape, bottom), "v", color=BLUE, clip_on=False, label="below", zorder=3)
    mode_axis(axes, len(every), spread_out=len(every) > max(20, 4 * len(modes)))
    axes.set_xlabel("mode $i$, in descending order")
    axes.set_ylabel("eigenvalue of the covariance\n(data units squared)")
    legend_above(figure)
    return figure


@styled
def alignment(result: Result) -> Figure:
    """How the left singular vectors turn to the target's eigenvectors on the way, and where they end."""
    shown = analysis.alignment(result)
    figure = Figure(figsize=(COLUMN, 3.9), layout="constrained")
    above, below = figure.subplots(2, 1)
    _misalignment(above, shown)
    progress_axis(above, result)
    _cosines(below, shown.final)
    return figure


def _misalignment(axes: Axes, shown: analysis.Alignment) -> None:
    """A line for each mode, colored by its position."""
    rank = len(shown.final)
    norm, colors = Normalize(1, max(rank, 2)), matplotlib.colormaps["cividis"]
    for mode in reversed(range(rank)):
        axes.plot(shown.axis, shown.misalignment[:, mode], color=colors(norm(mode + 1)), linewidth=1)
    if rank > 1:
        bar = axes.figure.colorbar(ScalarMappable(norm, colors), ax=axes, label="mode $i$")
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.ax.invert_yaxis()
    if (shown.misalignment <= shown.floor).any():
        axes.axhline(shown.floor, color=GRAY, linewidth=0.8, linestyle=":", label="rounding")
        axes.legend()
    log_axis(axes, shown.misalignment)
    axes.set_ylabel(r"misalignment $1 - |u_i\cdot\omega_i|$")
    say_over(axes, "median", shown.lanes)


def _cosines(axes: Axes, final: np.ndarray) -> None:
    """The heat map of final |cosines|, up to as many eigenvectors again as there are modes."""
    rank, dimension = final.shape
    columns = min(dimension, max(2 * rank, rank + 5))
    box = (0.5, columns + 0.5, rank + 0.5, 0.5)
    style: Options = {"cmap": "cividis", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(final[:, :columns], extent=box, **style)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel(r"target eigenvector $\omega_j$")
    axes.set_ylabel("final singular vector $u_i$")
    axes.figure.colorbar(image, ax=axes, label=r"alignment $|u_i\cdot\omega_j|$")


@styled
def sharpness(result: Result) -> Figure | None:
    """Both ends of the Hessian's spectrum on the way, if they were recorded."""
    shown = comparison.run.sharpness(result)
    if shown is None:
        return None
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, band, color in ((above, shown.largest, BLUE), (below, shown.smallest, ORANGE)):
        axes.plot(band.axis, band.median, color=color)
        axes.fill_between(band.axis, band.low, band.high, color=color, alpha=0.2, linewidth=0)
    log_axis(above, np.concatenate([shown.largest.low, shown.largest.high, [shown.limit or np.nan]]))
    if shown.limit is not None:
        above.axhline(shown.limit, color=GRAY, linestyle="--", linewidth=0.8, label=r"stable below $2/\eta$")
        above.legend()
    below.axhline(0, color=GRAY, linewidth=0.6)
    say_over(above, f"median and {BAND}", shown.largest.lanes)
    above.set_ylabel(r"sharpness $\lambda_\mathrm{max}$")
    below.set_ylabel(r"$\lambda_\mathrm{min}$ of the Hessian")
    progress_axis(below, result)
    return figure


@styled
def certificates(result: Result) -> Figure | None:
    """The loss of a seed below what theory promised of it, log axis; None where nothing was."""
    shown = comparison.run.certified(result)
    if shown is None:
        return None
    figure, axes = single(2.3)
    axes.plot(shown.axis, positive(shown.loss), color="black", label="measured", zorder=3)
    styles = ((BLUE, "--"), (ORANGE, "-."), (RED, ":"), (GRAY, "--"))
    for (name, bound), (color, dashes) in zip(shown.bounds.items(), styles, strict=False):
        axes.plot(shown.axis, positive(bound), color=color, linestyle=dashes, label=name.replace("_", " "))
    log_axis(axes, np.concatenate([shown.loss, *shown.bounds.values()]), decades=16)
    progress_axis(axes, result)
    axes.set_ylabel("loss")
    axes.set_title(f"seed {shown.seed}, and what certificates promise")
    axes.legend()
    return figure


@styled
def samples(result: Result) -> Figure | None:
    """Real samples beside those of the untrained and the trained generator.

    Images where the target is made of images, on one gray scale; else points along the target's two
    leading eigenvectors with the ellipses of one standard deviation, or None in dimension 1.
    """
    if analysis.image_shape(result) is not None:
        return _images(analysis.images(result))
    return _clouds(analysis.clouds(result)) if result.dataset.sizes["eigenvalue"] > 1 else None


def _images(shown: analysis.Images, across: int = 8) -> Figure:
    blocks = {"real": shown.real, "untrained": shown.untrained, "trained": shown.trained}
    _, height, width = shown.real.shape
    block_height = -(-len(shown.real) // across) * COLUMN / across * height / width + 0.2
    figure = Figure(figsize=(COLUMN, 3 * block_height + 0.45), layout="constrained")
    for axes, (name, block) in zip(figure.subplots(3, 1), blocks.items(), strict=True):
        axes.set_title(name if name == "real" else f"{name} generator (seed {shown.seed})", pad=3)
        axes.set_axis_off()
        if block is None:
            axes.text(0.5, 0.5, "diverged", ha="center", va="center", transform=axes.transAxes)
        else:
            image = mosaic(axes, block, shown.low, shown.high, across)
    place: Options = {"location": "bottom", "aspect": 40, "shrink": 0.6, "pad": 0.02}
    bar = figure.colorbar(image, ax=figure.axes, extend="both", label="pixel value (data units)", **place)
    bar.outline.set_linewidth(0.5)
    return figure


def _clouds(shown: analysis.Clouds) -> Figure:
    figure, axes = single(2.8)
    clouds: dict[str, tuple[analysis.Cloud | None, Options]] = {
        "target": (shown.target, {"color": GRAY, "linewidth": 3, "alpha": 0.6}),
        "untrained": (shown.untrained, {"color": ORANGE, "linestyle": ":", "linewidth": 1.6}),
        f"trained (seed {shown.seed})": (shown.trained, {"color": BLUE, "linestyle": "--"}),
    }
    for label, (cloud, style) in clouds.items():
        if cloud is None:
            axes.plot([], [], label=f"{label}: diverged", **style)
        else:
            points: Options = {"color": style["color"], "markersize": 3, "alpha": 0.5, "markeredgewidth": 0}
            axes.plot(*cloud.points.T, ".", zorder=1, **points)
            axes.plot(*cloud.ellipse.T, label=label, **style)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(r"along eigenvector $\omega_1$ (data units)")
    axes.set_ylabel(r"along $\omega_2$ (data units)")
    legend_above(figure)
    return figure


#: Every figure of a run, by the name of its files.
FIGURES: dict[str, Callable[[Result], Figure | None]] = {
    "gap": gap,
    "spectrum": spectrum,
    "alignment": alignment,
    "sharpness": sharpness,
    "certificates": certificates,
    "samples": samples,
}


def save_all(result: Result, folder: str | Path) -> list[Path]:
    """Draw every figure and write it as PDF and PNG (300 dpi) into the folder, made if missing.

    Returns the paths. Figures of the same name are replaced: one folder per result. Raises
    `InvalidOption` if the folder cannot be written.
    """
    return drawn_to(folder, {name: partial(draw, result) for name, draw in FIGURES.items()})
