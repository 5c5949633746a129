"""Figures of the table: time of a lane against n, depth, batch and k, with the floor of matrix products."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.suite.measure import Row

#: Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>*"
LABELS = {"n": "dimension n", "depth": "depth N", "batch": "lanes in the batch", "k": "bottleneck k"}


class Plot(NamedTuple):
    """A section's time against one size, for the rows that differ in nothing else."""

    name: str
    section: str
    against: str
    title: str
    chosen: Callable[[Row], bool]


def _standard(row: Row) -> bool:
    condition = row.conditioning
    return row.precision == "float64" and "1e+01" in condition and "τ" not in row.case


PLOTS = (
    Plot("losses_n", "losses", "n", "Loss and gradient, one pair", lambda r: r.n == r.k and r.batch == 1),
    Plot("losses_batch", "losses", "batch", "Loss and gradient, n = 20", lambda r: r.n == r.k == 20),
    Plot(
        "losses_k",
        "losses",
        "k",
        "Loss and gradient, n = 500, batch 4",
        lambda r: r.n == 500 and r.batch == 4,
    ),
    Plot(
        "descent_depth",
        "descent",
        "depth",
        "Descent, n = 20, 128 lanes",
        lambda r: (r.n, r.batch) == (20, 128),
    ),
    Plot(
        "descent_lanes", "descent", "batch", "Descent, n = 20, depth 3", lambda r: (r.k, r.depth) == (20, 3)
    ),
    Plot(
        "descent_n",
        "descent",
        "n",
        "Descent, depth 3, 1 to 16 lanes",
        lambda r: r.n == r.k and r.depth == 3 and r.batch == {20: 16, 100: 16, 300: 4, 500: 2}.get(r.n),
    ),
    Plot(
        "flow_n",
        "flow",
        "n",
        "End-to-end flow, depth 10",
        lambda r: "end to end" in r.case and r.depth == 10 and r.batch == {20: 128, 100: 64, 300: 8}.get(r.n),
    ),
    Plot(
        "flow_depth",
        "flow",
        "depth",
        "Flow of all layers, n = 20",
        lambda r: "layers" in r.case and r.n == 20,
    ),
)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """All figures that the rows suffice for, as PNG and SVG."""
    for plot in PLOTS:
        chosen = [
            row
            for row in rows
            if row.section == plot.section
            and not math.isnan(row.seconds)
            and _standard(row)
            and plot.chosen(row)
        ]
        if len({getattr(row, plot.against) for row in chosen}) > 1:
            _save(_figure(plot, chosen), folder / plot.name)
    scaling = [row for row in rows if row.section == "scaling" and not math.isnan(row.seconds)]
    if scaling:
        _save(_scaling(scaling), folder / "scaling")


def _figure(plot: Plot, rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(_series(rows, plot.against)):
        ours = own[0].ours
        sizes = [getattr(row, plot.against) for row in own]
        axes.plot(
            sizes,
            [1e6 * row.seconds for row in own],
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=2.2 if ours else 1,
            linestyle="-" if all(row.agrees for row in own) else ":",
            label=name if all(row.agrees for row in own) else f"{name} (disagrees)",
        )
    floor = {getattr(row, plot.against): row.ceiling * row.seconds for row in rows}
    known = sorted((size, value) for size, value in floor.items() if not math.isnan(value))
    if known:
        at, values = zip(*known, strict=True)
        times = [1e6 * value for value in values]
        axes.plot(at, times, "--", color="0.4", label="its matrix products alone, measured")
    _dress(axes, plot.title, LABELS[plot.against], {getattr(row, plot.against) for row in rows})
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _series(rows: Sequence[Row], against: str) -> Iterator[tuple[str, list[Row]]]:
    """Ours, then the others: those of one thread or of as many as are given, whichever is faster."""
    found: defaultdict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        name = row.contestant.removesuffix(", 1 thread").removesuffix(", 2 threads")
        size = getattr(row, against)
        if size not in found[name] or row.seconds < found[name][size].seconds:
            found[name][size] = row
    for name, own in sorted(found.items(), key=lambda item: not next(iter(item[1].values())).ours):
        yield name, [own[size] for size in sorted(own)]


def _dress(axes: Axes, title: str, label: str, sizes: Iterable[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    if wanted := sorted(sizes):  # else powers of ten
        axes.set_xticks(wanted, [f"{size:,}" for size in wanted])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("time of a lane (µs)")
    axes.set_title(title)
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(rows: Sequence[Row]) -> Figure:
    cases = list(dict.fromkeys(row.case for row in rows))
    figure = Figure(figsize=(3 * len(cases), 3.4), layout="constrained")
    # One scale of time, so that what is flat looks flat.
    panels = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
    for axes, case, color in zip(panels, cases, COLORS, strict=False):
        own = [row for row in rows if row.case == case]
        against = "batch" if case.endswith("lanes") else case.split()[-1]
        sizes = [getattr(row, against) for row in own]
        axes.plot(sizes, [1e6 * row.seconds for row in own], "o-", color=color)
        _dress(axes, case, LABELS[against], sizes if max(sizes) <= 1000 else ())
        axes.label_outer()
    return figure


def _save(figure: Figure, path: Path) -> None:
    for ending in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=150)
