"""The data of a figure as a table: read off what is drawn, so that it is what is seen.

A row for each point of each line, marker, band and cell. What has no place in coordinates of the data,
such as arrows, labels and photographs, is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

#: The last ending of the name of such a table; a study may have a table of the name of its figure.
SUFFIX = ".data.csv"
#: `panel` counts the axes from 1, `line` the lines of one series; `value` is what a color stands for.
COLUMNS = ("panel", "series", "kind", "line", "x_name", "x", "y_name", "y", "value")
#: Larger pictures are photographs, not tables.
CELLS = 10_000


class _Points(NamedTuple):
    """What is drawn in one stroke: points (points, 2), and the values of their colors, if these are any."""

    kind: str
    places: np.ndarray
    values: np.ndarray | None = None


def write(figure: Figure, path: Path) -> bool:
    """Write the data of a figure as comma-separated values, twelve digits each; whether there are any."""
    found = list(rows(figure))
    if found:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(found)
    return bool(found)


def rows(figure: Figure) -> Iterator[tuple[Any, ...]]:
    """The rows of the table, in the order of `COLUMNS`; names are as on the axes."""
    panels = [axes for axes in figure.axes if axes.get_visible() and not hasattr(axes, "_colorbar")]
    for number, axes in enumerate(panels, start=1):
        names = _name(axes, "x"), _name(axes, "y")
        for artist in axes.get_children():
            if not (artist.get_visible() and _is_of_data(artist, axes)):
                continue
            label = _in_one_line(artist.get_label())
            series = "" if label.startswith("_") else label
            for line, (kind, places, values) in enumerate(_drawn(artist), start=1):
                shown = np.full(len(places), np.nan) if values is None else values
                for (x, y), value in zip(places, shown, strict=True):
                    cells = names[0], _cell(x), names[1], _cell(y), _cell(value)
                    yield number, series, kind, line, *cells


def _name(axes: Axes, which: str) -> str:
    """The name of an axis: its own, that of one it is shared with, or that of the whole figure."""
    siblings: Any = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    labels = [getattr(each, f"{which}axis").get_label_text() for each in (axes, *siblings)]
    whole = getattr(axes.figure, f"get_sup{which}label")()
    return _in_one_line(next(filter(None, [*labels, whole]), ""))


def _in_one_line(label: object) -> str:
    return " ".join(str(label).split())


def _is_of_data(artist: Artist, axes: Axes) -> bool:
    """Whether it is drawn, at least along one axis, in the coordinates of the data."""
    if isinstance(artist, Collection | AxesImage):
        return True
    return isinstance(artist, Line2D) and any(
        artist.get_transform().contains_branch_seperately(axes.transData)
    )


def _drawn(artist: Artist) -> Iterator[_Points]:
    """The strokes an artist consists of."""
    if isinstance(artist, Line2D):
        kind = "points" if artist.get_linestyle() in ("None", "") else "line"
        yield _Points(kind, np.asarray(artist.get_xydata(), float))
    elif isinstance(artist, LineCollection):
        for segment in artist.get_segments():
            yield _Points("line", np.asarray(segment, float))
    elif isinstance(artist, PathCollection):
        places: np.ndarray = np.ma.filled(np.ma.asarray(artist.get_offsets(), dtype=float), np.nan)
        yield _Points("points", places, _filled(artist.get_array()))
    elif isinstance(artist, QuadMesh):
        corners = np.asarray(artist.get_coordinates(), float)
        middle = (corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:]) / 4
        values = _filled(artist.get_array())
        yield _Points("cell", middle.reshape(-1, 2), None if values is None else values.ravel())
    elif isinstance(artist, PolyCollection):
        for path in artist.get_paths():
            yield _Points("band", np.asarray(path.vertices, float))
    elif isinstance(artist, AxesImage):
        yield from _cells(artist)


def _filled(values: Any) -> np.ndarray | None:
    """An array of numbers, NaN where it is masked; None as it is."""
    return None if values is None else np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)


def _cells(image: AxesImage) -> Iterator[_Points]:
    """The cells of a small table that is shown as a picture, row by row."""
    values = _filled(image.get_array())
    if values is None or values.ndim != 2 or values.size > CELLS or not image.axes.axison:
        return
    left, right, bottom, top = image.get_extent()
    first, last = (top, bottom) if image.origin == "upper" else (bottom, top)
    height, width = values.shape
    down = first + (last - first) * (np.arange(height) + 0.5) / height
    across = left + (right - left) * (np.arange(width) + 0.5) / width
    yield _Points("cell", np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2), values.ravel())


def _cell(value: float) -> str:
    """Twelve digits; empty for what is missing."""
    return "" if np.isnan(value) else f"{value:.12g}"
