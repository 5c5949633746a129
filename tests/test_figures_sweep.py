"""The figures of sweeps: from one configuration to a thousand, numbers and names, nothing cut off."""

from functools import cache
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from readable import check_readable

from bwdln import analysis, figures
from bwdln.errors import InvalidOption
from bwdln.figures.sweep import FEW, FIGURES
from tests import sweeps

TAU, RATE = np.geomspace(1e-3, 10, 8).tolist(), np.geomspace(1e-3, 1, 12).tolist()
LONG = [f"a_choice_with_a_long_name_{number}" for number in range(14)]
random = np.random.default_rng(3)
DRAWN = [
    {"step_size": float(10**a), "tau": float(b), "loss": "ab"[int(c)]}
    for a, b, c in zip(random.uniform(-3, 0, 60), random.random(60), random.integers(2, size=60), strict=True)
]


def made(job):
    """A result whose gap closes faster by every number; diverged where they are large."""
    numbers = [value for value in job.values() if not isinstance(value, str)]
    texts = [len(value) for value in job.values() if isinstance(value, str)]
    rate = 0.002 * (1 + np.sum(numbers)) / (1 + 0.1 * np.sum(texts))
    return sweeps.result(float(rate), diverged=3 if np.sum(numbers) > 8 else 0)


#: Sweeps by what they try, with how their configurations become results.
CASES = {
    "one configuration": ([{"tau": 0.1}], made),
    "no option": ([{}], made),
    "two": (sweeps.product(tau=[0.1, 1.0]), made),
    "one number, some diverged": (sweeps.product(loss__tau=TAU), made),
    "all diverged": (sweeps.product(tau=[9.0, 10.0]), made),
    "a map of the diverged": (sweeps.product(tau=np.arange(9.0, 19).tolist(), a=list(range(9, 18))), made),
    "lines": (sweeps.product(step_size=RATE, network__depth=[2, 3, 4]), made),
    "a map": (sweeps.product(step_size=RATE, tau=TAU), made),
    "a map with holes": (sweeps.product(step_size=RATE, tau=TAU)[7::], made),
    "at random": ([{"step_size": job["step_size"], "tau": job["tau"]} for job in DRAWN], made),
    "at random, with a choice": ([{"tau": job["tau"], "loss": job["loss"]} for job in DRAWN], made),
    "a choice": (sweeps.product(dynamics__optimizer=["adam", "muon", "descent"]), made),
    "two choices": (
        sweeps.product(
            dynamics=["gradient_descent", "end_to_end_flow"], start=["xavier_normal", "uniform", "orthogonal"]
        ),
        made,
    ),
    "many long names": (sweeps.product(target=LONG, seed=[0, 1]), made),
    "many long names alone": (sweeps.product(target=LONG), made),
    "two of many names": (sweeps.product(target=LONG, start=LONG[:8]), made),
    "three": (sweeps.product(step_size=RATE, tau=TAU, depth=[2, 3]), made),
    "a thousand": (sweeps.product(step_size=RATE, tau=TAU, scale=np.linspace(0.1, 1, 11).tolist()), made),
    "zipped": ([{"tau": rate, "a.very.long.option.that.moves.along": rate / 2} for rate in RATE], made),
    "logarithmic": (sweeps.product(tau=[0.1, 1.0]), lambda job: sweeps.result(job["tau"], logarithmic=True)),
    "always at the optimum": (sweeps.product(tau=TAU[:3]), lambda job: sweeps.result(1e3)),
    "mixed clocks": (
        sweeps.product(clock=["step", "time"]),
        lambda job: sweeps.result(clock=job["clock"], seeds=(0,)),
    ),
}


@cache
def dataset(case: str):
    return sweeps.dataset(*CASES[case])


@cache
def drawn(case: str) -> dict[str, Figure]:
    every = {name: draw(dataset(case), "relative_gap") for name, draw in FIGURES.items()}
    return {name: figure for name, figure in every.items() if figure is not None}


@pytest.mark.parametrize("case", CASES)
def test_everything_lies_inside_a_column_and_can_be_read(case):
    for figure in drawn(case).values():
        check_readable(figure)


@pytest.mark.parametrize("case", CASES)
def test_names_on_an_axis_do_not_cover_each_other(case):
    for name, figure in drawn(case).items():
        with matplotlib.rc_context(figures.STYLE):
            figure.draw_without_rendering()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                shown = [
                    each for each in axis.get_ticklabels() if each.get_text() and not each.get_rotation()
                ]
                boxes = [each.get_window_extent() for each in shown]
                pairs = pairwise(boxes)
                assert not any(one.overlaps(other) for one, other in pairs), (name, axis.get_label_text())


@pytest.mark.parametrize("case", CASES)
def test_every_axis_has_a_label(case):
    for figure in drawn(case).values():
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()


@pytest.mark.parametrize("case", ["lines", "a map", "a thousand", "logarithmic", "two choices"])
def test_there_is_a_line_for_every_configuration(case):
    (lines,) = drawn(case)["gap"].axes[0].findobj(LineCollection)
    shown = analysis.sweep_curves(dataset(case))
    assert len(lines.get_segments()) == len(CASES[case][0])
    for segment, axis, median in zip(lines.get_segments(), shown.axis, shown.median, strict=True):
        there = np.isfinite(median) & ((axis > 0) | (not shown.logarithmic))
        expected = np.stack([axis, median], axis=-1)[there]
        np.testing.assert_array_equal(np.reshape(segment, (-1, 2)), expected)


def test_configurations_of_one_value_have_one_color_and_others_another():
    (lines,) = drawn("lines")["gap"].axes[0].findobj(LineCollection)
    values = [job["step_size"] for job in CASES["lines"][0]]
    pairs = set(zip(values, map(tuple, lines.get_colors()), strict=True))
    assert len(pairs) == len(RATE) == len({color for _, color in pairs})


def test_the_map_has_the_final_values_where_the_axes_say():
    (mesh,) = drawn("a map")["final"].axes[0].findobj(QuadMesh)
    finals = analysis.sweep_finals(dataset("a map"), "relative_gap")
    cells = np.ma.filled(mesh.get_array(), np.nan).reshape(len(TAU), len(RATE))
    assert drawn("a map")["final"].axes[0].get_xlabel() == "step_size"
    for job, median in zip(CASES["a map"][0], finals.median, strict=True):
        cell = cells[TAU.index(job["tau"]), RATE.index(job["step_size"])]
        assert cell == median if np.isfinite(median) else np.isnan(cell)


def test_lines_go_through_the_final_values():
    axes = drawn("lines")["final"].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    finals = analysis.sweep_finals(dataset("lines"), "relative_gap")
    for depth in (2, 3, 4):
        jobs = [index for index, job in enumerate(CASES["lines"][0]) if job["network.depth"] == depth]
        np.testing.assert_allclose(lines[str(depth)].get_xdata(), RATE, rtol=1e-12)
        np.testing.assert_array_equal(lines[str(depth)].get_ydata(), finals.median[jobs])


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("at random", "points"),
        ("at random, with a choice", "dots"),
        ("a map with holes", "map"),
        ("two", "line"),
    ],
)
def test_what_is_drawn_suits_the_options(case, kind):
    axes = drawn(case)["final"].axes[0]
    found = {
        "map": bool(axes.findobj(QuadMesh)),
        "points": any(
            len(each.get_offsets()) > FEW for each in axes.collections if each.get_array() is not None
        ),
        "line": any(len(line.get_xdata()) > 1 and line.get_linestyle() == "-" for line in axes.get_lines()),
    }
    assert found["map"] == (kind == "map") and found["line"] == (kind == "line")
    assert kind in ("dots", "line") or found[kind]


def test_the_best_is_marked_and_what_diverged_counted():
    case = "one number, some diverged"
    best = analysis.sweep_finals(dataset(case), "relative_gap").best
    texts = {each.get_text() for figure in drawn(case).values() for each in figure.findobj(Text)}
    assert {f"best: job {best}", "diverged"} <= texts
    assert any(text.startswith("8 configurations, 1 diverged") for text in texts)


def test_another_objective_decides_what_is_best_and_shown():
    figure = FIGURES["final"](dataset("two"), "time")
    assert figure.axes[0].get_ylabel() == "final time"


def test_nothing_to_compare_is_no_figure(tmp_path):
    assert set(drawn("no option")) == set(drawn("one configuration")) == {"gap"}


def test_all_are_written(tmp_path):
    paths = figures.sweep(dataset("lines"), tmp_path / "new", "relative_gap")
    assert sorted(path.name for path in paths) == [
        f"{name}.{kind}" for name in ("final", "gap") for kind in ("data.csv", "pdf", "png")
    ]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_an_objective_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidOption, match="objective: got losss"):
        figures.sweep(dataset("two"), tmp_path, "losss")
