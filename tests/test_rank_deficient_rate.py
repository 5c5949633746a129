"""The study of how fast low-rank generators find the subspace: numbers, files, refusals and figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray
from hydra import compose, initialize_config_dir
from readable import check_readable
from refusals import check_refused

from bwdln import figures, results, simulate, studies, sweep
from bwdln.comparison import rank_deficient_rate as comparison
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption
from bwdln.studies import rank_deficient_rate as study
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RATIOS, DEPTHS = (0.7, 0.4), (1.0, 2.5)
LEVEL = 0.25  # λ_k, of the eigenvalues 1, 1/4, 1/16, 1/64 and the rank 2
OPTIONS = {
    "target": {"name": "geometric", "dimension": 4, "condition_number": 64.0},
    "network": {"bottleneck": 2},
    "initialization": {"name": "orthogonal", "balanced": True},
    "loss": "bures_wasserstein",
    "dynamics": {
        "name": "end_to_end_flow",
        "end_time": 60.0,
        "gap_tolerance": 1e-19,
        "relative_tolerance": 1e-12,
        "absolute_tolerance": 1e-15,
    },
    "record": {"count": 120},
    "seeds": 2,
    "study": {"name": "rank_deficient_rate", "ratios": RATIOS, "depths": DEPTHS},
}
NAMES = [f"depth_{depth:g}_ratio_{ratio:g}" for depth in DEPTHS for ratio in RATIOS]


def configuration(**changes: object) -> Config:
    config: Config = from_mapping(OPTIONS | changes)
    return config


def formula(depth, ratio, level=LEVEL):
    return 4 * level ** ((depth - 1) / depth) * (1 - ratio)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


@pytest.fixture(scope="module")
def found(conducted):
    folder, _ = conducted
    return comparison.compare([results.load(folder / name) for name in NAMES])


# --- numbers --------------------------------------------------------------------------------------


def test_predicted_rates_are_those_of_the_formula(found):
    np.testing.assert_array_equal(found.depth, [1, 1, 2.5, 2.5])
    np.testing.assert_allclose(found.ratio, [0.4, 0.7, 0.4, 0.7], rtol=1e-12)
    assert found.level == pytest.approx(LEVEL, rel=1e-12)
    np.testing.assert_allclose(found.predicted, formula(found.depth, found.ratio), rtol=1e-10)


def test_measured_rates_agree_within_two_percent(found):
    expected = formula(found.depth, found.ratio)[:, None]
    np.testing.assert_allclose(found.measured / expected, np.ones((4, 2)), atol=0.02)
    assert np.all(found.points >= 10) and np.all(found.error < 0.01 * expected)
    np.testing.assert_allclose(found.deviation, found.measured / expected - 1, atol=1e-9)


def test_only_one_ratio_is_varied(conducted):
    folder, _ = conducted
    for name, (_, ratio) in zip(NAMES, [(d, r) for d in DEPTHS for r in RATIOS], strict=True):
        eigenvalues = results.load(folder / name).dataset["target_eigenvalues"].values
        np.testing.assert_allclose(eigenvalues, [1, 1 / 4, ratio / 4, ratio / 16], rtol=1e-12)


def test_theory_between_the_cases_is_that_of_the_formula(found):
    assert [line.fixed for line in found.against_gap] == [1, 2.5]
    for line in found.against_gap:
        np.testing.assert_allclose(line.rate, formula(line.fixed, 1 - line.along), rtol=1e-10)
        np.testing.assert_allclose(line.along[[0, -1]], [0.3, 0.6])
    assert [line.fixed for line in found.against_depth] == [0.4, 0.7]
    for line in found.against_depth:
        np.testing.assert_allclose(line.rate, formula(line.along, line.fixed), rtol=1e-10)
        np.testing.assert_allclose(line.along[[0, -1]], [1, 2.5])


def test_rates_are_fitted_inside_the_window_only():
    """Faster before, slower after: neither may count."""
    time = np.linspace(0, 40, 401)
    exponents = np.where(time < 9.8, -3 * time, np.maximum(-29.4 - (time - 9.8) / 2, -42))
    dims = ("seed", "record")
    lanes = {"time": (dims, time[None]), "relative_gap": (dims, np.exp(exponents)[None])}
    ((rate, error, points),) = comparison.fits(results.Result(xarray.Dataset(lanes)))
    inside = (exponents > np.log(comparison.ABOVE)) & (exponents < np.log(comparison.BELOW))
    assert rate == pytest.approx(0.5, rel=1e-9) and error < 1e-9 and points == inside.sum() > 100


def test_every_case_is_a_lane_of_one_program_and_ends_at_its_own_time(tmp_path):
    jobs = study.plan(configuration(), RATIOS, DEPTHS)
    assert list(jobs) == NAMES
    problems = studies.base.prepared(jobs, tmp_path)
    assert sweep.groups(problems) == [NAMES]
    for name, job in jobs.items():
        depth, ratio = float(name.split("_")[1]), float(name.split("_")[3])
        end = dict(job.dynamics.options)["end_time"]
        assert end == pytest.approx(60 / formula(depth, ratio), rel=1e-9)
        assert job.study is None and job.network.depth == depth


def test_frobenius_has_a_rate_of_its_own():
    jobs = study.plan(configuration(loss="frobenius"), (0.5,), (2.0,))
    end = dict(jobs["depth_2_ratio_0.5"].dynamics.options)["end_time"]
    # 2 · κ · 4 (λ_k − λ_{k+1}) with κ = √λ_k (docs/theory.md §4)
    assert end == pytest.approx(60 / (8 * LEVEL**0.5 * LEVEL * 0.5), rel=1e-9)


# --- files ----------------------------------------------------------------------------------------


def test_findings_name_every_file(conducted, found):
    folder, findings = conducted
    assert findings.results == [folder / name / "result.nc" for name in NAMES]
    assert findings.tables == [folder / "rank_deficient_rate.csv"]
    stems = [
        f"{name}.{kind}" for name in ("eigengaps", "depths", "gap") for kind in ("pdf", "png", "data.csv")
    ]
    assert [path.name for path in findings.figures] == stems
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*findings.results, *findings.tables, *findings.figures}
    assert {len(row) for row in findings.rows} == {len(findings.columns)}
    assert [row[:3] for row in findings.rows][:2] == [("1", "0.6", "2.4"), ("1", "0.3", "1.2")]
    assert all(abs(float(row[4]) - 1) < 0.02 and row[5] == "2 of 2" for row in findings.rows)
    assert findings.score == pytest.approx(np.max(np.abs(found.deviation))) and findings.score < 0.02
    (note,) = findings.notes
    assert note.startswith(f"measured and predicted rates agree within {findings.score:.2%} in 8 runs at 4 ")
    assert not findings.interrupted


def test_the_table_holds_every_case_and_seed(conducted, found):
    folder, _ = conducted
    with (folder / "rank_deficient_rate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["depth"]), float(row["ratio"]), int(row["seed"])) for row in rows] == [
        (depth, ratio, seed) for depth in DEPTHS for ratio in (0.4, 0.7) for seed in (0, 1)
    ]
    np.testing.assert_array_equal([float(row["measured_rate"]) for row in rows], found.measured.ravel())
    quotients = [float(row["measured_over_predicted"]) for row in rows]
    np.testing.assert_allclose(quotients, 1 + found.deviation.ravel(), rtol=1e-12)
    assert {row["outcome"] for row in rows} == {"converged"}
    assert {row["loss"] for row in rows} == {"bures_wasserstein"}


def test_what_could_not_be_fitted_is_said_and_left_empty(conducted, found, tmp_path):
    measured = found.measured.copy()
    measured[0, 0], measured[1] = np.nan, 1.05 * found.predicted[1]
    shown = found._replace(measured=measured)
    notes = study.sentences(shown)
    assert notes[0].startswith("measured and predicted rates agree within 5.00% in 7 runs")
    assert notes[1].startswith("2 of them are beyond 2%")
    assert notes[2].startswith("1 runs have no three records with 1e-18 < relative gap < 1e-13")
    assert study.table(shown)[0][-1] == "1 of 2" and study.worst(shown) == pytest.approx(0.05)
    nothing = found._replace(measured=np.full_like(measured, np.nan))
    assert study.table(nothing)[0][3:] == ("–", "–", "0 of 2") and study.worst(nothing) == np.inf
    path = study._write(nothing, tmp_path / "table.csv")
    with path.open(newline="") as file:
        assert {row["measured_rate"] for row in csv.DictReader(file)} == {""}
    for draw in figures.rank_deficient_rate.FIGURES.values():
        draw(nothing).draw_without_rendering()


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results"):
        studies.conduct(configuration(), folder)


def test_the_claim_holds_and_fails_where_a_rate_is_another(conducted, found):
    _, findings = conducted
    (claim,) = findings.claims
    assert claim.held and claim.source == "§6" and claim.measured == f"within {findings.score:.2%}"
    (spoiled,) = study.claims(found._replace(measured=found.measured * 1.1))
    assert not spoiled.held and "10" in spoiled.measured


# --- refusals -------------------------------------------------------------------------------------

STUDY = OPTIONS["study"]
REFUSALS = [
    *(
        ({"study": STUDY | {option: values}}, f"study.{option}: got {message}")
        for option, values, message in (
            ("ratios", [], r"\[\]; takes at least one of the numbers above 0"),
            ("ratios", [0.5, 1.0], "1.0; takes numbers above 0 and below 1"),
            ("ratios", [0.0], "0.0; takes numbers above 0 and below 1"),
            ("ratios", [0.5, 0.5], "0.5 twice; takes different"),
            ("ratios", ["a"], r"\('a',\); takes a list, each a number"),
            ("depths", [], r"\[\]; takes at least one of the numbers from 1"),
            ("depths", [2, 0.5], "0.5; takes numbers from 1"),
            ("depths", [float("inf")], "inf; takes numbers from 1"),
            ("depths", [3, 3.0], "3 twice; takes different"),
        )
    ),
    ({"network": {"bottleneck": 2, "depth": 3}}, "network.depth: got 3; takes null in this study"),
    ({"network": {"bottleneck": 4}}, "network: got a rank of 4; takes a rank from 1 to 3"),
    (
        {"target": {"name": "geometric", "dimension": 4, "rank": 2}},
        "network: got a rank of 2; takes a rank from 1 to 1",
    ),
    ({"loss": {"name": "bures_wasserstein", "tau": 0.1}}, "loss.tau: got 0.1; takes 0 in this study"),
    ({"precision": "float32"}, "precision: got float32; takes float64 in this study"),
    (
        {"dynamics": {"name": "gradient_flow", "end_time": 60.0}},
        "dynamics: got gradient_flow; takes an end-to-end flow",
    ),
    ({"dynamics": {"name": "end_to_end_flow"}}, "dynamics.end_time: got nothing"),
    ({"dynamics": {"name": "end_to_end_flow", "end_time": -1.0}}, "dynamics.end_time: got -1"),
    ({"initialization": {"name": "orthogonal"}}, "initialization.balanced: got False; takes true"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_recorded(conducted, tmp_path, monkeypatch):
    folder, _ = conducted
    done = [results.load(folder / name).dataset for name in NAMES]
    cut = [results.Result(each.isel(record=slice(0, 5)).assign_attrs(interrupted=1)) for each in done]
    monkeypatch.setattr(simulate, "run_together", lambda problems, on_progress, places: cut)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and findings.score == np.inf
    assert findings.notes == ["interrupted: 0 of 4 runs finished; all that was recorded is kept"]
    assert len(findings.results) == 4 and all(path.exists() for path in findings.results)
    assert not findings.rows and not findings.tables and not findings.figures


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.rank_deficient_rate.FIGURES)
def test_figures_fit_a_column_and_can_be_read(found, name):
    figure = figures.rank_deficient_rate.FIGURES[name](found)
    check_readable(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_yscale() == "log"


@pytest.mark.parametrize("name", ["eigengaps", "depths"])
def test_fits_are_circles_beside_the_lines_of_theory(found, name):
    figure = figures.rank_deficient_rate.FIGURES[name](found)
    (axes,) = figure.axes
    lines, fixed, along = (
        (found.against_gap, found.depth, 1 - found.ratio)
        if name == "eigengaps"
        else (found.against_depth, found.ratio, found.depth)
    )
    theory, fits = axes.lines[::2], axes.lines[1::2]
    for line, drawn, circles in zip(lines, theory, fits, strict=True):
        np.testing.assert_array_equal(drawn.get_data(), (line.along, line.rate))
        assert drawn.get_label() == f"{line.fixed:g}" and circles.get_linestyle() == "None"
        own = fixed == line.fixed
        np.testing.assert_array_equal(circles.get_xdata(), np.repeat(along[own], 2))
        np.testing.assert_array_equal(circles.get_ydata(), found.measured[own].ravel())
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [*(f"{line.fixed:g}" for line in lines), "fit", "theory"]
    assert axes.get_title(loc="left") == "each of 2 seeds"


def test_all_gaps_end_with_the_slope_of_theory(found):
    (axes,) = figures.rank_deficient_rate.gap(found).axes
    assert "rate" in axes.get_xlabel()
    *cases, theory = axes.lines
    assert len(cases) == 4
    for line, curve in zip(cases, found.curves, strict=True):
        x, y = line.get_data()
        np.testing.assert_array_equal((x, y), (curve.efolds, curve.gap))
        inside = (y > comparison.ABOVE) & (y < comparison.BELOW)
        assert np.polyfit(x[inside], np.log(y[inside]), 1)[0] == pytest.approx(-1, abs=0.02)
    x, y = theory.get_data()
    assert np.diff(np.log(y)) / np.diff(x) == pytest.approx(-1)


def test_one_depth_has_no_figure_against_depth(found, tmp_path):
    curves = tuple(curve._replace(depth=1.0) for curve in found.curves)
    one = found._replace(depth=np.ones(4), curves=curves, against_gap=found.against_gap[:1])
    paths = figures.rank_deficient_rate.save_all(one, tmp_path)
    assert {path.name.partition(".")[0] for path in paths} == {"eigengaps", "gap"}


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=rank_deficient_rate", *overrides])
    return command_line.training(command_line.plain(composed)).config


def test_the_experiment_is_one_program_over_eigengaps_and_depths(tmp_path):
    config = experiment()
    options = dict(config.study.options)
    assert min(options["ratios"]) <= 0.5 and max(options["ratios"]) >= 0.9 and 1 in options["depths"]
    problems = studies.base.prepared(study.plan(config, **options), tmp_path)
    assert len(problems) == len(options["ratios"]) * len(options["depths"])
    assert len(sweep.groups(problems)) == 1


@pytest.mark.slow
def test_the_experiment_agrees_within_two_percent_everywhere(tmp_path):
    findings = studies.conduct(experiment(), tmp_path)
    assert findings.score < 0.02 and not findings.interrupted
    assert {row[-1] for row in findings.rows} == {"2 of 2"} and len(findings.notes) == 1
