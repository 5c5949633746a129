"""Figures show what they should, at column width, with nothing cut off, in extreme cases too."""

import json
from functools import cache
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from readable import check_readable

from bwdln import analysis, figures
from bwdln.errors import InvalidOption
from bwdln.results import Result
from tests import synthetic


def with_records(*records: int) -> Result:
    return Result(synthetic.gaussian(seeds=4).dataset.isel(record=list(records)))


def gap_zero() -> Result:
    dataset = synthetic.gaussian().dataset.copy(deep=True)
    dataset["relative_gap"].values[:, 5:] = 0
    return Result(dataset)


def always_at_the_optimum() -> Result:
    dataset = gap_zero().dataset.copy(deep=True)
    dataset["relative_gap"].values[:] = 0
    dataset["alignment"].values[:] = 1
    return Result(dataset)


def nothing_learned() -> Result:
    """As from a start close to 0: one mode within ten decades, one below, one exactly 0."""
    dataset = synthetic.gaussian().dataset.copy(deep=True)
    dataset["singular_values"].values[:, -1] = [1e-4, 1e-10, 0]
    return Result(dataset)


def logarithmic() -> Result:
    dataset = synthetic.gaussian(depth=1).dataset.copy(deep=True)
    config = json.loads(dataset.attrs["configuration"])
    config["record"]["spacing"] = "logarithmic"
    dataset.attrs["configuration"] = json.dumps(config)
    return Result(dataset)


def flow(spacing: str) -> Result:
    """As from a gradient flow that was recorded at times over seven decades, or equally far apart."""
    dataset = synthetic.gaussian().dataset.copy(deep=True)
    records = dataset.sizes["record"]
    spaced = {"logarithmic": 3 * np.logspace(-7, 0, records - 1), "linear": np.linspace(0, 3, records)[1:]}
    dataset["time"].values[:] = np.append(0, spaced[spacing])
    config = json.loads(dataset.attrs["configuration"])
    config["record"]["spacing"] = spacing
    return Result(dataset.assign_attrs(clock="time", configuration=json.dumps(config)))


EVERY = tuple(figures.FIGURES)

#: Results that try the figures, and which of them they try.
CASES = {
    "digits": (synthetic.digits, EVERY),
    "one seed": (lambda: synthetic.gaussian(seeds=1), EVERY),
    "hundred seeds": (lambda: synthetic.gaussian(seeds=100, steps=50, records=5), ("gap",)),
    "rank 1": (lambda: synthetic.gaussian(rank=1), EVERY),
    "rank 64, singular": (
        lambda: synthetic.digits(seeds=2, steps=5, rank=64, records=4),
        ("spectrum", "alignment"),
    ),
    "tau above most modes": (
        lambda: synthetic.digits(seeds=2, steps=5, rank=20, tau=40.0, records=4),
        ("spectrum",),
    ),
    "some diverged": (lambda: synthetic.with_diverged(synthetic.digits(), (0, 2), np.inf), EVERY),
    "all diverged": (lambda: synthetic.with_diverged(synthetic.gaussian(), (0, 1, 2)), EVERY),
    "all digits diverged": (lambda: synthetic.with_diverged(synthetic.digits(), (0, 1, 2)), ("samples",)),
    "nothing learned": (nothing_learned, ("spectrum",)),
    "two records": (lambda: with_records(0, -1), ("gap", "alignment")),
    "interrupted at once": (lambda: with_records(0), EVERY),
    "gap 0": (gap_zero, ("gap",)),
    "always at the optimum": (always_at_the_optimum, ("gap", "alignment")),
    "depth 1, logarithmic": (logarithmic, ("gap", "alignment", "samples")),
    "flow": (lambda: flow("linear"), EVERY),
    "flow, logarithmic": (lambda: flow("logarithmic"), ("gap", "alignment")),
    "dimension 1": (lambda: synthetic.gaussian(dimension=1, rank=1), EVERY),
}


@cache
def drawn(case: str) -> dict[str, Figure]:
    make, names = CASES[case]
    every = {name: figures.FIGURES[name](make()) for name in names}
    return {name: figure for name, figure in every.items() if figure is not None}


def labels(axes: matplotlib.axes.Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("case", CASES)
def test_everything_lies_inside_a_column_and_can_be_read(case):
    for figure in drawn(case).values():
        check_readable(figure)


@pytest.mark.parametrize("case", CASES)
def test_every_axis_has_a_label(case):
    for name, figure in drawn(case).items():
        for axes in figure.axes:
            if axes.axison and axes.get_label() != "<colorbar>":
                assert axes.get_xlabel() and axes.get_ylabel(), name


def test_gap():
    (axes,) = drawn("digits")["gap"].axes
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert axes.get_xlabel() == "step" and "tr" in axes.get_ylabel()
    assert "the smallest loss at rank 10" in axes.get_title(loc="left")
    assert labels(axes) == ["median of 3 seeds", "10–90 % of them", "each seed"]
    shown = analysis.convergence(synthetic.digits())
    median, *seeds = axes.lines
    np.testing.assert_array_equal(median.get_ydata(), shown.band.median)
    np.testing.assert_array_equal([each.get_ydata() for each in seeds], shown.relative_gap)
    np.testing.assert_array_equal(seeds[0].get_xdata(), shown.axis[0])
    low, high = axes.get_ylim()
    assert low <= shown.relative_gap.min() and shown.relative_gap.max() <= high


def test_gap_of_one_seed_names_it():
    (axes,) = drawn("one seed")["gap"].axes
    assert labels(axes) == ["seed 0"] and len(axes.lines) == 1 and not axes.collections


def test_gap_says_what_diverged_and_keeps_it_from_the_axis():
    (axes,) = drawn("some diverged")["gap"].axes
    assert labels(axes) == ["seed 1", "diverged (2 seeds)"]
    assert axes.get_ylim()[1] < 10
    (axes,) = drawn("all diverged")["gap"].axes
    assert labels(axes) == ["diverged (3 seeds)"] and axes.get_ylim()[1] > 1e12


def test_gap_of_zero_is_shown_at_the_floor():
    (axes,) = drawn("gap 0")["gap"].axes
    assert labels(axes)[-1] == "rounding"
    assert axes.get_ylim()[0] < np.finfo(float).eps ** 2


def test_logarithmic_records_have_a_logarithmic_step_axis():
    figure = drawn("depth 1, logarithmic")
    assert figure["gap"].axes[0].get_xscale() == figure["alignment"].axes[0].get_xscale() == "symlog"


def test_a_flow_is_drawn_against_flow_time():
    for name in ("gap", "alignment"):
        axes, other = (drawn(case)[name].axes[0] for case in ("flow", "flow, logarithmic"))
        assert axes.get_xlabel() == other.get_xlabel() == "flow time $t$"
        assert (axes.get_xscale(), other.get_xscale()) == ("linear", "symlog")
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), flow("linear").dataset["time"][0])
        np.testing.assert_allclose(other.get_xticks(), [0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])


def test_labels_of_a_logarithmic_axis_are_apart():
    for case in ("flow, logarithmic", "depth 1, logarithmic"):
        figure = drawn(case)["gap"]
        with matplotlib.rc_context(figures.STYLE):
            figure.draw_without_rendering()
        boxes = [each.get_window_extent() for each in figure.axes[0].get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_spectrum():
    figure = drawn("tau above most modes")["spectrum"]
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert axes.get_xlabel().startswith("mode") and "data units squared" in axes.get_ylabel()
    names = [each.get_text() for each in figure.legends[0].get_texts()]
    assert names == [r"target $\lambda_i$", "optimum", r"$\tau$ = 40", "learned $s_i^2$"]
    assert axes.get_title(loc="left") == "median and range of 2 seeds"
    target, optimum = axes.lines[:2]
    assert len(target.get_ydata()) == 64 and np.isfinite(target.get_ydata()).sum() == 61
    shown = analysis.spectrum(CASES["tau above most modes"][0]())
    above = shown.target[:20] > 40
    np.testing.assert_array_equal(np.isfinite(optimum.get_ydata()), above)
    np.testing.assert_allclose(optimum.get_ydata()[above], shown.target[:20][above] - 40, rtol=1e-12)
    (errors,) = axes.containers
    np.testing.assert_array_equal(errors[0].get_ydata(), shown.learned)


def test_spectrum_marks_what_lies_below_the_axis():
    figure = drawn("nothing learned")["spectrum"]
    (axes,) = figure.axes
    (below,) = [line for line in axes.lines if line.get_label() == "below"]
    np.testing.assert_array_equal(below.get_xdata(), [2, 3])
    np.testing.assert_array_equal(below.get_ydata(), axes.get_ylim()[0])


def test_spectrum_spreads_few_modes_out():
    (axes,) = drawn("digits")["spectrum"].axes
    assert axes.get_xscale() == "log"
    (axes,) = drawn("rank 64, singular")["spectrum"].axes
    assert axes.get_xscale() == "linear"


def test_alignment():
    above, below, *bars = drawn("digits")["alignment"].axes
    assert above.get_yscale() == "log" and above.get_xlabel() == "step"
    assert above.get_title(loc="left") == "median of 3 seeds"
    shown = analysis.alignment(synthetic.digits())
    lines = [each.get_ydata() for each in above.lines if len(each.get_ydata()) > 2]
    np.testing.assert_array_equal(lines[::-1], shown.misalignment.T)
    (image,) = below.images
    np.testing.assert_array_equal(image.get_array(), shown.final[:, :20])
    assert image.get_clim() == (0, 1) and image.get_cmap().name == "cividis"
    assert [bar.get_ylabel() for bar in bars] == ["mode $i$", r"alignment $|u_i\cdot\omega_j|$"]


def test_samples_of_images():
    real, untrained, trained, bar = drawn("digits")["samples"].axes
    for axes in (real, untrained, trained):
        assert len(axes.images) == 16
        assert {each.get_clim() for each in axes.images} == {(0, 16)}
    titles = [axes.get_title(loc="left") for axes in (real, untrained, trained)]
    assert titles == ["real", "untrained generator (seed 0)", "trained generator (seed 0)"]
    assert bar.get_xlabel() == "pixel value (data units)"
    np.testing.assert_array_equal(real.images[3].get_array(), analysis.images(synthetic.digits()).real[3])


def test_samples_say_that_a_generator_diverged():
    trained = drawn("all digits diverged")["samples"].axes[2]
    assert not trained.images and trained.texts[0].get_text() == "diverged"
    legend = drawn("all diverged")["samples"].legends[0]
    assert legend.get_texts()[2].get_text() == "trained (seed 0): diverged"


def test_samples_without_images_are_clouds():
    figure = drawn("depth 1, logarithmic")["samples"]
    (axes,) = figure.axes
    assert len(axes.lines) == 6 and axes.get_aspect() == 1
    assert "data units" in axes.get_xlabel() and "data units" in axes.get_ylabel()
    names = [each.get_text() for each in figure.legends[0].get_texts()]
    assert names == ["target", "untrained", "trained (seed 0)"]
    assert "samples" not in drawn("dimension 1")


def test_save_all(tmp_path):
    before = dict(matplotlib.rcParams)
    paths = figures.save_all(synthetic.gaussian(), tmp_path / "figures")
    always = ("gap", "spectrum", "alignment", "samples")  # the others show what is recorded if asked for
    names = [f"{name}.{kind}" for name in always for kind in ("pdf", "png", "data.csv")]
    assert [each.relative_to(tmp_path / "figures").name for each in paths] == names
    for path in paths:
        if path.suffix == ".csv":
            continue
        content = path.read_bytes()
        assert content.startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
        if path.suffix == ".png":
            assert int.from_bytes(content[16:20], "big") == round(3.25 * 300)
        else:
            assert b"/Type3" not in content and b"/FontFile2" in content
    assert dict(matplotlib.rcParams) == before


def test_save_all_into_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="folder: got"):
        figures.save_all(synthetic.gaussian(), tmp_path / "file")
