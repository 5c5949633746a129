"""The convergence figure of the paper: rates over a sweep, against what is known of them."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readable import check_readable
from scipy import stats

from bwdln import figures, fits, simulate, studies, sweep
from bwdln.collection import Collection
from bwdln.comparison import convergence_rate as comparison
from bwdln.config import from_mapping
from bwdln.errors import InvalidOption
from bwdln.studies import convergence_rate as study
from bwdln.theory import hessians

DEPTHS, LIFTS = (1, 2, 6), (0.0, 2.0, 4.0)
KINDS = (("bures_wasserstein", 0.0), ("bures_wasserstein", 1.0), ("frobenius", 0.0))
FINE = {"relative_tolerance": 1e-9, "absolute_tolerance": 1e-12, "gap_tolerance": 1e-15}


def configuration(loss, tau, lift, depth, end_time=10.0, seeds=1, count=250):
    return from_mapping(
        {
            "target": {"name": "random", "dimension": 4, "s_min": lift, "seed": 3},
            "network": {"depth": depth},
            "initialization": {"name": "close_to_target", "tau": tau},
            "loss": {"name": loss} | ({"tau": tau} if loss == "bures_wasserstein" else {}),
            "dynamics": {"name": "end_to_end_flow", "end_time": end_time, **FINE},
            "record": {"count": count, "spacing": "logarithmic", "decades": 5.0},
            "seeds": seeds,
        }
    )


def swept(configs):
    """The dataset of these configurations, and they by number."""
    configs = dict(enumerate(configs))
    collection = Collection(
        {number: {"network.depth": each.network.depth} for number, each in configs.items()}
    )
    for number, result in enumerate(sweep.run(list(configs.values()))):
        collection.add(number, result)
    return collection.dataset({}), configs


@pytest.fixture(scope="module")
def grid():
    return swept(
        configuration(loss, tau, lift, depth)
        for (loss, tau), lift, depth in itertools.product(KINDS, LIFTS, DEPTHS)
    )


@pytest.fixture(scope="module")
def groups(grid):
    return compared(*grid)


def compared(dataset, configs):
    losses = {job: (each.loss.name, dict(each.loss.options).get("tau", 0.0)) for job, each in configs.items()}
    return comparison.compare(dataset, losses)


# --- regression lines -----------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.floats(-100, 100)), min_size=3, max_size=20).filter(
        lambda pairs: len({x for x, _ in pairs}) > 1
    )
)
def test_a_regression_line_is_that_of_scipy(pairs):
    x, y = np.array(pairs, float).T
    found, expected = fits.line(x, y), stats.linregress(x, y)
    scale = max(1.0, np.abs(y).max())
    np.testing.assert_allclose(
        [found.slope, found.intercept], [expected.slope, expected.intercept], rtol=1e-9, atol=1e-9 * scale
    )
    if np.ptp(y) > 1e-3:
        assert found.r_squared == pytest.approx(expected.rvalue**2, abs=1e-6)
    assert found.points == len(pairs)
    np.testing.assert_allclose(found.at(x), expected.intercept + expected.slope * x, atol=1e-8 * scale)


def test_lines_leave_out_what_is_not_finite_and_need_three_points():
    line = fits.line(np.array([1, 2, 3, 4, 5.0]), np.array([2, 4, np.nan, 8, np.inf]))
    assert (line.slope, line.intercept, line.points) == (pytest.approx(2), pytest.approx(0, abs=1e-12), 3)
    assert np.isnan(fits.line(np.ones(4), np.arange(4.0)).slope)
    assert np.isnan(fits.line(np.arange(2.0), np.arange(2.0)).slope)
    assert np.isnan(fits.line(np.arange(4.0), np.ones(4)).r_squared)


# --- points ---------------------------------------------------------------------------------------


def test_there_is_a_point_for_every_job_and_a_group_for_every_loss_and_tau(grid, groups):
    assert [(group.loss, group.tau) for group in groups] == list(KINDS)
    assert [group.name for group in groups] == ["τ = 0", "τ = 1", "Frobenius"]
    jobs = np.concatenate([group.points.job for group in groups])
    assert sorted(jobs) == list(range(len(grid[1])))
    for group in groups:
        for job, depth, loss in zip(group.points.job, group.points.depth, group.points.loss, strict=True):
            assert (grid[1][job].network.depth, grid[1][job].loss.name) == (depth, loss)


def test_at_depth_one_the_unperturbed_rate_is_four_from_the_start(groups):
    """E1: L(t) = e^{−4t} L(0), whatever the target."""
    points = groups[0].points.where(groups[0].points.depth == 1)
    np.testing.assert_allclose(points.rate, 4, rtol=1e-6)
    np.testing.assert_allclose(points.limit, 4, rtol=1e-5)
    assert points.asymptotic.all() and (points.slow == 1).all()


def test_limits_are_the_closed_form(groups):
    for group in groups:
        known = np.isfinite(group.limit_deviation)
        assert known.sum() >= 5
        np.testing.assert_allclose(group.limit_deviation[known], 0, atol=0.01)
        for point in zip(*group.points.where(group.points.margin), strict=True):
            row = comparison.Points(*point)
            assert row.predicted == pytest.approx(
                float(hessians.asymptotic_rate(eigenvalues_of(row.job), 4, **kind_of(row)))
            )


def kind_of(row):
    return {"depth": row.depth, "tau": row.tau, "loss": str(row.loss)}


def eigenvalues_of(job):
    kinds = list(itertools.product(KINDS, LIFTS, DEPTHS))
    (loss, tau), lift, depth = kinds[job]
    return np.asarray(simulate.prepare(configuration(loss, tau, lift, depth)).target.eigenvalues)


def test_a_fitted_rate_is_not_below_the_closed_form_and_equals_it_where_its_window_is_asymptotic(groups):
    for group in groups:
        points = group.points
        rated = points.margin & np.isfinite(points.rate)
        assert rated.sum() >= 6
        assert (points.rate[rated] >= 0.97 * points.predicted[rated]).all()
        assert (np.abs(group.deviation[points.asymptotic]) <= 0.03).all()
        assert np.isnan(group.deviation[~points.asymptotic]).all()


def test_without_a_margin_there_is_no_closed_form_but_a_power(groups):
    points = groups[1].points
    assert (points.margin == (points.smallest > 1)).all() and (~points.margin).sum() == len(DEPTHS)
    without = points.where(~points.margin)
    assert (
        np.isnan(without.predicted).all() and np.isnan(without.sharp).all() and not without.asymptotic.any()
    )
    deep = without.where(without.depth > 1)
    np.testing.assert_allclose(deep.power, deep.depth / (deep.depth - 1), rtol=0.1)
    assert np.isnan(points.where(points.margin).power).all()


def test_no_run_is_slower_than_promised(groups):
    for group in groups[:2]:
        points = group.points
        known = np.isfinite(points.rate) & np.isfinite(points.sharp)
        assert known.any() and (points.rate[known] >= 0.99 * points.sharp[known]).all()
        assert np.isnan(points.paper).all() == (group.tau == 0)
    assert np.isnan(groups[2].points.sharp).all()


def test_lines_are_over_all_points_and_at_each_value(groups):
    for group in groups:
        points = group.points
        rate = np.where(points.margin, points.rate, np.nan)
        assert group.by_depth == pytest.approx(fits.line(points.depth, rate), nan_ok=True)
        assert group.by_smallest == pytest.approx(fits.line(np.sqrt(points.smallest), rate), nan_ok=True)
        assert list(group.at_depth) == list(DEPTHS) and len(group.at_smallest) == len(LIFTS)
    best = list(groups[0].at_smallest.values())[-1]
    assert best.slope > 0 and best.r_squared > 0.99 and best.points == 3


def test_failures_say_why():
    close = configuration("bures_wasserstein", 0.0, 4.0, 2)
    dataset, configs = swept(
        [
            configuration("bures_wasserstein", 0.0, 4.0, 1, end_time=0.1),
            configuration("bures_wasserstein", 0.0, 4.0, 6, count=4),
            from_mapping(close.mapping() | {"initialization": {"name": "close_to_target", "scale": 1e-3}}),
        ]
    )
    (first,) = compared(dataset, configs)
    assert first.points.failure[0].startswith("gap ") and "flow time 0.1" in first.points.failure[0]
    assert first.points.failure[1] == "too few records in the window"
    assert np.isnan(first.points.rate).all() and not first.points.asymptotic.any()
    assert first.points.failure[2].startswith("begins below the window")
    assert sum("without a rate" in each for each in study.sentences([first])) == 3
    assert study.worst([first]) == np.inf


def test_a_lane_that_diverged_has_no_rate(grid):
    dataset, configs = grid[0].copy(deep=True), grid[1]
    dataset["outcome"][0, 0] = "diverged"
    points = compared(dataset, configs)[0].points
    assert points.failure[0] == "diverged" and np.isnan(points.rate[0])


def test_the_limit_of_two_exponentials_is_the_slower_one():
    time = np.linspace(0, 12, 500)
    gap = np.exp(-4 * time) + 3 * np.exp(-4.8 * time)
    rate = 4 * np.exp(-4 * time) + 3 * 4.8 * np.exp(-4.8 * time)
    series = {"time": time, "gap": gap, "relative_gap": gap, "gradient_norm": np.sqrt(rate)}
    last = (rate / gap)[gap < comparison.LATE_ABOVE][0]
    assert abs(comparison._limit(series) - 4) < 0.1 * abs(last - 4)
    assert np.isnan(comparison._limit({name: values[:200] for name, values in series.items()}))


# --- what is written and claimed ------------------------------------------------------------------


def test_findings(grid, tmp_path):
    found = studies.conduct_on_sweep("convergence_rate", *grid, tmp_path)
    assert [row[0] for row in found.rows] == ["τ = 0", "τ = 1", "Frobenius"]
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert all(claim.held for claim in found.claims) and len(found.claims) == 7
    assert {path.name for path in found.tables} == {"convergence_rates.csv", "regressions.csv"}
    kinds = ("data.csv", "pdf", "png")
    names = ("rate_contour", "rate_by_depth", "rate_by_smallest", "rate_theory")
    assert {path.name for path in found.figures} == {f"{name}.{kind}" for name in names for kind in kinds}
    with (tmp_path / "convergence_rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(grid[1])
    for row in rows:
        assert float(row["root_smallest"]) ** 2 == pytest.approx(float(row["smallest"]))
        if row["rate"] and row["predicted"]:
            ratio = float(row["rate"]) / float(row["predicted"])
            assert float(row["rate_over_predicted"]) == pytest.approx(ratio)
    with (tmp_path / "regressions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(KINDS) * (2 + len(DEPTHS) + len(LIFTS))
    path = studies.write_findings(found, tmp_path, kind="sweep study", name="a", title="b", seconds=1.0)
    content = json.loads(path.read_text())
    assert content["tables"] == ["convergence_rates.csv", "regressions.csv"]
    assert [claim["held"] for claim in content["claims"]] == [True] * 7


def test_figures_have_their_axes_and_points(groups, tmp_path):
    figures.convergence_rate.save_all(groups, tmp_path)
    rated = sum(int(np.sum(group.points.margin & np.isfinite(group.points.rate))) for group in groups)

    def rows(name, kind):
        with (tmp_path / f"{name}.data.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["kind"] == kind]

    for name, axis in (("rate_by_depth", "depth"), ("rate_by_smallest", "lambda")):
        points = [row for row in rows(name, "points") if row["value"]]
        assert len(points) == rated
        assert all(axis in row["x_name"] and "rate" in row["y_name"] for row in points)
        assert len({row["panel"] for row in points}) == 3
    colored = [row for row in rows("rate_contour", "points") if row["value"]]
    assert len(colored) == rated
    assert {"depth $N$"} == {row["x_name"] for row in colored}
    assert {row["x_name"].split()[0] for row in rows("rate_theory", "points")} == {"closed", "promised"}


@pytest.mark.parametrize("name", figures.convergence_rate.FIGURES)
def test_figures_fit_two_columns_and_can_be_read(groups, name):
    check_readable(figures.convergence_rate.FIGURES[name](groups), 2 * figures.COLUMN)


def test_a_run_without_a_rate_is_seen_beside_one_without_a_margin(groups):
    """At equal depth they would cover each other."""
    rates, margins = groups[0].points.rate.copy(), groups[0].points.margin.copy()
    rates[:2], margins[1] = np.nan, False
    spoiled = groups[0]._replace(points=groups[0].points._replace(rate=rates, margin=margins))
    axes = figures.convergence_rate.by_depth([spoiled]).axes[0]
    marks = [line for line in axes.lines if line.get_marker() in ("x", "s")]
    assert {line.get_marker() for line in marks} == {"x", "s"}
    assert len({line.get_ydata()[0] for line in marks}) == 2


def test_one_depth_or_one_target_has_no_map(grid, groups):
    few = [group._replace(points=group.points.where(group.points.depth == 1)) for group in groups]
    assert figures.convergence_rate.contour(few) is None
    assert figures.convergence_rate.by_depth(few) is not None


def test_wrong_closed_forms_are_noticed(grid, monkeypatch, tmp_path):
    true = hessians.spectrum
    monkeypatch.setattr(hessians, "spectrum", lambda *given, **options: 1.1 * true(*given, **options))
    found = studies.conduct_on_sweep("convergence_rate", *grid, tmp_path)
    failed = [claim.statement for claim in found.claims if not claim.held]
    assert any("in the end" in each for each in failed)


def test_what_has_no_known_rates_is_refused(tmp_path):
    config = configuration("bures_wasserstein", 0.0, 4.0, 2, count=5, end_time=0.1)
    low = from_mapping(
        config.mapping()
        | {
            "network": {"depth": 2, "bottleneck": 2},
            "initialization": {"name": "orthogonal", "balanced": True},
        }
    )
    with pytest.raises(InvalidOption, match="as wide as the data"):
        studies.conduct_on_sweep("convergence_rate", *swept([low]), tmp_path)
    with pytest.raises(InvalidOption, match=r"sweep\.study: got nonesuch; takes null or one of"):
        studies.conduct_on_sweep("nonesuch", *swept([config]), tmp_path)
    assert not list(tmp_path.iterdir())


# --- the experiment -------------------------------------------------------------------------------

REDUCED = (
    *("-m", "+experiment=paper_convergence", "target.dimension=4", "target.s_min=2,4"),
    *("network.depth=1,2,3", "record.count=80", "hydra.sweep.dir=here"),
)


def test_the_grid_of_the_paper(command):
    status, out, err = command("-m", "+experiment=paper_convergence", "sweep.dry_run=true")
    assert (status, err) == (0, "")
    assert "1,155 jobs: 1,155 to run" in out and "programs  3, for 1,155 lanes" in out


def test_the_experiment_at_reduced_size(command, tmp_path):
    status, out, _ = command(*REDUCED)
    assert status == 0
    content = json.loads((tmp_path / "here" / "findings.json").read_text())
    assert [row[0] for row in content["rows"]] == ["τ = 0", "τ = 0.1", "τ = 0.5", "τ = 1", "Frobenius"]
    assert content["kind"] == "sweep study" and content["name"] == "convergence_rate"
    assert "r² N" in out and content["notes"][0] in out
    for name in content["figures"] + content["tables"]:
        assert (tmp_path / "here" / name).stat().st_size > 100


def test_descent_runs_at_the_step_size_of_the_authors(command):
    status, out, _ = command(
        *("+experiment=paper_convergence", "dynamics=gradient_descent", "--cfg", "job", "-p", "dynamics")
    )
    assert status == 0 and "step_size: 1.0e-05" in out and "steps: 300000" in out
    assert "absolute_gap_tolerance: 0.0001" in out and "patience: 0.1" in out


def test_a_study_of_sweeps_needs_one_and_a_name(command):
    status, _, err = command("+experiment=paper_convergence")
    assert status == 1 and "sweep.study: got convergence_rate; takes null without -m" in err
    status, _, err = command("-m", "seed=0,1", "sweep.study=rates")
    assert status == 1 and "sweep.study: got rates; takes null or one of convergence_rate" in err
