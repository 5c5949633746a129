"""The table beside a figure: every point that is drawn, and nothing that is not data."""

import csv

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bwdln.figures import data

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


def table(figure):
    """The rows as mappings, numbers as numbers."""
    found = [dict(zip(data.COLUMNS, row, strict=True)) for row in data.rows(figure)]
    numbers = ("x", "y", "value")
    return [row | {name: float(row[name] or "nan") for name in numbers} for row in found]


def panel(**labels):
    figure = Figure()
    axes = figure.subplots()
    axes.set(**labels)
    return figure, axes


@given(NUMBERS, NUMBERS, st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_lines_come_back_as_they_were_drawn(x, y, label):
    count = min(len(x), len(y))
    figure, axes = panel(xlabel="time", ylabel="a\n  gap")
    axes.plot(x[:count], y[:count], label=label)
    rows = table(figure)
    np.testing.assert_allclose([row["x"] for row in rows], x[:count], rtol=1e-11)
    np.testing.assert_allclose([row["y"] for row in rows], y[:count], rtol=1e-11)
    assert {(row["series"], row["kind"], row["x_name"], row["y_name"]) for row in rows} == {
        (label, "line", "time", "a gap")
    }


def test_every_kind_of_mark():
    figure, axes = panel()
    axes.plot([1, 2], [3, np.nan], "o", label="dots")
    axes.add_collection(LineCollection([[(0, 0), (1, 1)], [(5, 5), (6, 7)]]))
    axes.scatter([1, 2], [3, 4], c=[0.5, 0.7], label="colored")
    axes.pcolormesh([0, 1, 2], [0, 10], [[7, 8]])
    axes.fill_between([0, 1], [0, 0], [1, 2], label="band")
    rows = table(figure)

    def of(kind, series=""):
        found = [row for row in rows if (row["kind"], row["series"]) == (kind, series)]
        return [(row["line"], row["x"], row["y"], row["value"]) for row in found]

    nan = np.nan
    np.testing.assert_equal(of("points", "dots"), [(1, 1, 3, nan), (1, 2, nan, nan)])
    np.testing.assert_equal(of("points", "colored"), [(1, 1, 3, 0.5), (1, 2, 4, 0.7)])
    np.testing.assert_equal(of("line"), [(1, 0, 0, nan), (1, 1, 1, nan), (2, 5, 5, nan), (2, 6, 7, nan)])
    np.testing.assert_equal(of("cell"), [(1, 0.5, 5, 7), (1, 1.5, 5, 8)])
    assert {(x, y) for _, x, y, _ in of("band", "band")} == {(0, 0), (0, 1), (1, 0), (1, 2)}


@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_cells_of_a_picture_have_their_places(origin):
    figure, axes = panel()
    values = np.arange(6.0).reshape(2, 3)
    image = axes.imshow(values, origin=origin, extent=(0.5, 3.5, 2.5, 0.5) if origin == "upper" else None)
    left, _, bottom, top = image.get_extent()
    start = top if origin == "upper" else bottom
    for row in table(figure):
        column, line = round(row["x"] - left - 0.5), round(abs(row["y"] - start) - 0.5)
        assert row["value"] == values[line, column]
    assert len(table(figure)) == values.size


def test_what_is_no_data_is_left_out():
    figure, axes = panel()
    axes.annotate("here", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
    axes.text(0, 0, "text")
    axes.imshow(np.zeros((200, 200)))
    axes.plot([0, 1], [0, 1], transform=axes.transAxes)
    axes.plot([0, 1], [2, 3]).pop().set_visible(False)
    photograph = figure.add_axes((0, 0, 0.1, 0.1))
    photograph.imshow(np.zeros((5, 5)))
    photograph.set_axis_off()
    figure.add_axes((0.5, 0.5, 0.1, 0.1)).set_visible(False)
    assert table(figure) == []


def test_a_line_at_a_level_and_the_labels_of_the_whole_figure():
    figure = Figure()
    first, second = figure.subplots(2, sharex=True)
    figure.supylabel("height")
    first.axhline(3, label="level")
    second.plot([1], [2])
    second.set_xlabel("place")
    rows = table(figure)
    assert [(row["panel"], row["x_name"], row["y_name"]) for row in rows] == [
        (1, "place", "height"),
        (1, "place", "height"),
        (2, "place", "height"),
    ]
    assert {row["y"] for row in rows} == {3, 2}


def test_color_bars_are_no_panels():
    figure, axes = panel()
    figure.colorbar(axes.scatter([1], [2], c=[3]), ax=axes)
    assert {row["panel"] for row in table(figure)} == {1}


def test_the_file(tmp_path):
    with matplotlib.rc_context():
        figure, axes = panel(xlabel='a "quoted", name')
        assert not data.write(figure, tmp_path / "none.data.csv")
        axes.plot([1 / 3], [2])
        assert data.write(figure, tmp_path / "some.data.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["some.data.csv"]
    with (tmp_path / "some.data.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["x_name"], row["x"], row["value"]) == ('a "quoted", name', "0.333333333333", "")
