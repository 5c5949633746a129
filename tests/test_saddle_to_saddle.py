"""The study of flows that learn one mode after the other: numbers, files, refusals and figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from readable import check_readable
from refusals import check_refused

from bwdln import figures, results, simulate, studies
from bwdln.comparison import saddle_to_saddle as comparison
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption
from bwdln.studies import saddle_to_saddle as study
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SCALE = 0.01
EIGENVALUES = np.array([1.0, 0.25, 0.0625])
OPTIONS = {
    "target": {"name": "geometric", "dimension": 3, "condition_number": 16.0},
    "network": {"depth": 2, "bottleneck": 2},
    "initialization": {"name": "aligned", "scale": SCALE},
    "loss": "bures_wasserstein",
    "dynamics": {
        "name": "end_to_end_flow",
        "end_time": 1.5,
        "relative_tolerance": 1e-8,
        "absolute_tolerance": 1e-12,
    },
    "record": {"count": 150, "spacing": "logarithmic"},
    "seeds": 2,
    "study": "saddle_to_saddle",
}
NAMES = [
    f"{loss}_{start}" for loss in ("bures_wasserstein", "frobenius") for start in ("aligned", "unaligned")
]
HALF = 0.5 * np.sqrt(EIGENVALUES[:2])


def configuration(**changes: object) -> Config:
    config: Config = from_mapping(OPTIONS | changes)
    return config


def halfway(loss: str) -> np.ndarray:
    """When aligned modes of depth 2 are halfway: by the closed solution, and by partial fractions of
    dt = ds / (8 s² (λ − s²)).
    """
    roots = np.sqrt(EIGENVALUES[:2])
    if loss == "bures_wasserstein":
        return np.log(roots / SCALE - 1) / (4 * roots)
    terms = (1 / SCALE - 1 / HALF) + (np.arctanh(HALF / roots) - np.arctanh(SCALE / roots)) / roots
    return terms / (8 * EIGENVALUES[:2])


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


@pytest.fixture(scope="module")
def found(conducted):
    folder, _ = conducted
    return comparison.compare([results.load(folder / name) for name in NAMES], 0.5)


# --- numbers --------------------------------------------------------------------------------------


def test_aligned_modes_are_learnt_when_theory_says(found):
    for run in found.runs[::2]:
        assert run.aligned
        exact = np.tile(halfway(run.loss), (2, 1))
        np.testing.assert_allclose(run.predicted, exact, rtol=1e-9)
        np.testing.assert_allclose(run.measured, exact, rtol=0.02)
        np.testing.assert_allclose(run.ratio, run.measured / exact, rtol=1e-8)
        assert run.in_order.all()


def test_frobenius_learns_small_modes_relatively_later(found):
    bures, frobenius = found.runs[0], found.runs[2]
    late = [run.measured[:, 1] / run.measured[:, 0] for run in (bures, frobenius)]
    assert np.all(late[0] < 2) and np.all(late[1] > 3)


def test_unaligned_modes_are_learnt_about_when_estimated(found):
    for run in found.runs[1::2]:
        assert not run.aligned and run.in_order.all()
        assert np.all((run.ratio > 0.4) & (run.ratio < 2.5))


def test_aligned_strengths_are_the_singular_values(conducted, found):
    folder, _ = conducted
    run = results.load(folder / "frobenius_aligned").dataset
    np.testing.assert_allclose(found.runs[2].strength, run["singular_values"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.runs[2].free, SCALE, rtol=1e-10)


def test_free_strengths_are_what_earlier_rows_leave():
    rows = np.array([[[3.0, 0.0], [4.0, 2.0], [7.0, 7.0]]])
    np.testing.assert_allclose(comparison.free_strengths(rows, 2), [[3, 2]])
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1, 5, 4))
    expected = []
    for mode in range(3):
        before = rows[0, :mode].T
        beyond = rows[0, mode] - before @ np.linalg.lstsq(before, rows[0, mode])[0]
        expected.append(np.linalg.norm(beyond))
    np.testing.assert_allclose(comparison.free_strengths(rows, 3), [expected], rtol=1e-12)


def test_plateaus_are_the_values_of_the_critical_points(found):
    np.testing.assert_allclose(found.runs[0].plateaus, [1.3125, 0.3125, 0.0625], rtol=1e-10)
    squares = EIGENVALUES**2
    np.testing.assert_allclose(found.runs[2].plateaus, [sum(squares), sum(squares[1:]), squares[2]])
    np.testing.assert_allclose(
        comparison.plateaus(EIGENVALUES, 3, 0.1, "bures_wasserstein")[-1],
        (0.25 - np.sqrt(0.1)) ** 2,  # λ_3 is below τ
    )


def test_the_loss_waits_at_the_plateaus(found):
    """Between the times of modes the loss of the aligned Frobenius run is at the value of {1}."""
    run = found.runs[2]
    between = np.sqrt(run.predicted[0, 0] * run.predicted[0, 1])
    at = np.searchsorted(run.time[0], between)
    np.testing.assert_allclose(run.value[0, [0, at, -1]], run.plateaus, rtol=0.02)


def test_every_run_has_an_end_and_records_of_its_own():
    for name, job in study.plan(configuration(), 0.5).items():
        assert job.study is None and job.record.end_to_end
        if name.endswith("_aligned"):
            times = halfway(job.loss.name)
            end = dict(job.dynamics.options)["end_time"]
            assert end == pytest.approx(1.5 * times[1], rel=1e-9)
            first = end * 10**-job.record.decades
            assert first == pytest.approx(0.1 * times[0], rel=1e-9)
    assert job.loss.name == "frobenius" and job.initialization.name == "small"
    assert dict(job.initialization.options) == {"balanced": True, "scale": SCALE}


def test_records_of_the_users_stay():
    linear = study.plan(configuration(record={"count": 10}), 0.5)
    assert {(job.record.spacing, job.record.decades) for job in linear.values()} == {("linear", None)}
    own = study.plan(configuration(record={"spacing": "logarithmic", "decades": 2.0}), 0.5)
    assert {job.record.decades for job in own.values()} == {2.0}


def test_a_larger_fraction_takes_longer(conducted):
    folder, _ = conducted
    run = results.load(folder / "bures_wasserstein_aligned")
    late = comparison.learning(run, 0.9)
    roots = np.sqrt(EIGENVALUES[:2])
    exact = np.log((roots / SCALE - 1) * 9) / (4 * roots)
    np.testing.assert_allclose(late.predicted, np.tile(exact, (2, 1)), rtol=1e-9)
    np.testing.assert_allclose(late.measured[:, 0], exact[0], rtol=0.02)


# --- modes that are not learnt --------------------------------------------------------------------


@pytest.fixture(scope="module")
def below(found):
    """The comparison where the second mode of the first run lies below τ, and of the second is late."""
    first, second, *rest = found.runs
    predicted, measured = first.predicted.copy(), first.measured.copy()
    predicted[:, 1], measured[:, 1] = np.inf, np.nan
    never = first._replace(predicted=predicted, measured=measured, optimal=np.array([1.0, 0.0]))
    times = second.measured.copy()
    times[0, 1] = np.nan
    return found._replace(runs=(never, second._replace(measured=times), *rest))


def test_modes_below_tau_are_never_learnt(below):
    rows = study.table(below)
    assert rows[1][4:] == ("never", "never", "–", "0 of 2")
    assert rows[3][-1] == "1 of 2"
    notes = study.sentences(below)
    assert "bures_wasserstein, unaligned: 1 modes were not learnt by the end: try" in notes[2]
    assert not any("aligned: 2 modes" in note for note in notes)
    assert np.isfinite(study.worst(below))
    for draw in figures.saddle_to_saddle.FIGURES.values():
        draw(below).draw_without_rendering()


def test_a_strength_without_an_end_has_no_time():
    time = np.array([0.0, 1.0, 2.0])
    strength = np.array([[0.1, 0.1], [0.4, 0.05], [0.8, 0.01]])
    found = comparison.measured(time, strength, np.array([1.0, 0.0]), 0.5)
    assert found[0] == pytest.approx(1.25) and np.isnan(found[1])


# --- files ----------------------------------------------------------------------------------------


def test_findings_name_every_file(conducted, found):
    folder, findings = conducted
    assert {*findings.results} == {folder / name / "result.nc" for name in NAMES}
    assert findings.tables == [folder / "saddle_to_saddle.csv"]
    stems = [f"{name}.{kind}" for name in ("modes", "loss", "times") for kind in ("pdf", "png", "data.csv")]
    assert [path.name for path in findings.figures] == stems
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*findings.results, *findings.tables, *findings.figures}
    assert {len(row) for row in findings.rows} == {len(findings.columns)}
    assert [row[:3] for row in findings.rows[:3]] == [
        ("bures_wasserstein", "aligned", "1"),
        ("bures_wasserstein", "aligned", "2"),
        ("bures_wasserstein", "unaligned", "1"),
    ]
    assert {row[-1] for row in findings.rows} == {"2 of 2"}
    away = max(np.max(np.abs(run.ratio - 1)) for run in found.runs if run.aligned)
    assert findings.score == pytest.approx(away) and away < 0.02
    assert findings.notes[0].startswith("bures_wasserstein, aligned: predicted times are met within ")
    assert "in 2 of 2 seeds" in findings.notes[0]
    assert "unaligned: measured times are" in findings.notes[1] and "of the estimates" in findings.notes[1]
    assert len(findings.notes) == 4 and not findings.interrupted


def test_the_table_holds_every_run_seed_and_mode(conducted, found):
    folder, _ = conducted
    with (folder / "saddle_to_saddle.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 2
    assert [(row["loss"], row["prediction"]) for row in rows[::4]] == [
        ("bures_wasserstein", "exact"),
        ("bures_wasserstein", "estimate"),
        ("frobenius", "exact"),
        ("frobenius", "estimate"),
    ]
    assert [(row["seed"], row["mode"]) for row in rows[:4]] == [(s, m) for s in "01" for m in "12"]
    for name, values in (("predicted_time", "predicted"), ("measured_time", "measured")):
        expected = np.concatenate([getattr(run, values).ravel() for run in found.runs])
        np.testing.assert_array_equal([float(row[name]) for row in rows], expected)


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results"):
        studies.conduct(configuration(), folder)


def test_claims_hold_and_fail_where_modes_are_learnt_at_other_times(conducted, found):
    assert all(claim.held for claim in conducted[1].claims) and len(conducted[1].claims) == 5
    late = tuple(run._replace(measured=1.5 * run.measured[:, ::-1]) for run in found.runs)
    spoiled = study.claims(found._replace(runs=late))
    times = [claim for claim in spoiled if "times of the exact" in claim.statement]
    ordered = [claim for claim in spoiled if "one by one" in claim.statement]
    assert len(times) == len(ordered) == 2
    assert not any(claim.held for claim in times + ordered)


# --- refusals -------------------------------------------------------------------------------------

REFUSALS = [
    *(
        ({"study": {"name": "saddle_to_saddle", "fraction": fraction}}, f"study.fraction: got {fraction!r}")
        for fraction in (0.0, 1.0, -0.5, "a")
    ),
    ({"loss": "frobenius"}, "loss: got frobenius; takes bures_wasserstein: the study adds frobenius"),
    (
        {"loss": {"name": "bures_wasserstein", "tau": 1.0}},
        "loss.tau: got 1; takes a number below the largest eigenvalue, 1",
    ),
    ({"initialization": {"name": "small", "balanced": True}}, "initialization: got small; takes aligned"),
    ({"initialization": {"name": "aligned", "scale": 0.5}}, "initialization.scale: got 0.5; takes one that"),
    (
        {"initialization": {"name": "aligned", "scale": 0.6, "spectrum": "target"}},
        "initialization.scale: got 0.6; takes one that",
    ),
    ({"initialization": {"name": "aligned", "scale": -1.0}}, "initialization.scale: got -1"),
    (
        {"dynamics": {"name": "gradient_descent", "step_size": 0.1, "steps": 1000}},
        "dynamics: got gradient_descent; takes a flow",
    ),
    ({"dynamics": {"name": "end_to_end_flow", "end_time": 0.0}}, "dynamics.end_time: got 0"),
    ({"network": {"depth": 0.5}}, "depth: got 0.5"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_ctrl_c_keeps_and_shows_what_finished(conducted, tmp_path, monkeypatch, finished):
    folder, _ = conducted
    calls = []

    def stand_in(problems, on_progress, places):
        names = [
            f"{p.config.loss.name}_{'aligned' if p.config.initialization.name == 'aligned' else 'unaligned'}"
            for p in problems
        ]
        calls.extend(names)
        done = [results.load(folder / name).dataset for name in names]
        return [results.Result(each.assign_attrs(interrupted=int(len(calls) > finished))) for each in done]

    monkeypatch.setattr(simulate, "run_together", stand_in)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and len(findings.results) == finished + 1
    assert findings.notes[-1] == f"interrupted: {finished} of 4 runs finished; all that was recorded is kept"
    assert len(findings.rows) == 2 * finished
    assert bool(findings.figures) == bool(findings.tables) == (finished > 0)


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.saddle_to_saddle.FIGURES)
def test_figures_fit_a_column_and_can_be_read(found, name):
    figure = figures.saddle_to_saddle.FIGURES[name](found)
    check_readable(figure)
    assert all(axes.get_xscale() == "log" for axes in figure.axes)


def test_modes_pass_their_predicted_times(found):
    figure = figures.saddle_to_saddle.modes(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["BW, aligned", "BW, unaligned", "Frobenius, aligned", "Frobenius, unaligned"]
    for axes, run in zip(figure.axes, found.runs, strict=True):
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        diamonds = [line for line in axes.lines if line.get_marker() == "D"]
        for mode, (curve, diamond) in enumerate(zip(curves, diamonds, strict=True)):
            shares = run.strength[0, 1:, mode] / run.optimal[mode]
            np.testing.assert_array_equal(curve.get_data(), (run.time[0, 1:], shares))
            np.testing.assert_array_equal(np.ravel(diamond.get_data()), [run.predicted[0, mode], 0.5])
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["$i$ = 1", "$i$ = 2", "predicted"]


def test_the_loss_is_shown_with_its_plateaus(found):
    figure = figures.saddle_to_saddle.loss(found)
    for axes, run in zip(figure.axes, found.runs[::2], strict=True):
        shares = run.plateaus / run.plateaus[0]
        levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        np.testing.assert_allclose(levels, shares)
        assert [each.get_text() for each in axes.texts] == ["{ }", "{1}", "{1, 2}"]
        assert axes.get_legend_handles_labels()[1] == ["aligned", "unaligned"]
        assert axes.get_yscale() == "log"


def test_times_are_shown_against_each_other(found):
    (axes,) = figures.saddle_to_saddle.times(found).axes
    lines = {line.get_label(): line for line in axes.lines}
    for run in found.runs:
        short = "BW" if run.loss == "bures_wasserstein" else "Frobenius"
        line = lines[f"{short}, {'aligned (exact)' if run.aligned else 'unaligned (estimate)'}"]
        np.testing.assert_array_equal(line.get_data(), (run.predicted.ravel(), run.measured.ravel()))
    assert axes.get_xlim() == axes.get_ylim() and axes.get_yscale() == "log"


def test_runs_that_are_missing_leave_their_panels_empty(found):
    one = found._replace(runs=found.runs[2:3])
    visible = [axes.get_visible() for axes in figures.saddle_to_saddle.modes(one).axes]
    assert visible == [False, False, True, False]
    assert len(figures.saddle_to_saddle.loss(one).axes) == 1


def test_nothing_learnt_has_no_figure_of_times(found, tmp_path):
    runs = tuple(run._replace(measured=np.full_like(run.measured, np.nan)) for run in found.runs)
    nothing = found._replace(runs=runs)
    paths = figures.saddle_to_saddle.save_all(nothing, tmp_path)
    assert {path.name.partition(".")[0] for path in paths} == {"modes", "loss"}
    assert study.worst(nothing) == np.inf
    assert study.sentences(nothing)[0] == "bures_wasserstein, aligned: no mode was learnt"


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=saddle_to_saddle", *overrides])
    return command_line.training(command_line.plain(composed)).config


@pytest.mark.parametrize("overrides", [(), ("network.depth=2", "loss.tau=0.01"), ("network.depth=1",)])
def test_the_experiment_needs_no_tuning_by_hand(tmp_path, overrides):
    config = experiment(*overrides)
    jobs = study.plan(config, **dict(config.study.options))
    assert list(jobs) == NAMES and len(studies.base.prepared(jobs, tmp_path)) == 4
    ends = [dict(job.dynamics.options)["end_time"] for job in jobs.values()]
    assert np.all(np.isfinite(ends)) and ends[0] < ends[2]


@pytest.mark.slow
def test_the_experiment_meets_the_predictions(tmp_path):
    findings = studies.conduct(experiment("seeds=2"), tmp_path)
    assert findings.score < 0.02 and not findings.interrupted
    assert {row[-1] for row in findings.rows} == {"2 of 2"}
    assert all("order of the eigenvalues in 2 of 2 seeds" in note for note in findings.notes)
