"""Studies: what they run, write, draw and refuse."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from readable import check_readable
from refusals import check_refused

from bwdln import figures, results, simulate, studies
from bwdln.comparison import descent_to_flow as comparison
from bwdln.config import Config, Training, from_mapping
from bwdln.errors import InvalidOption
from bwdln.registry import Choice
from bwdln.studies import descent_to_flow
from experiments import command_line, train
from tests import synthetic

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = (0.02, 0.01, 0.005)
OPTIONS = {
    "target": {"name": "power_law", "dimension": 4},
    "network": {"depth": 3, "bottleneck": 2},
    "initialization": {"name": "xavier_normal", "balanced": True},
    "loss": "bures_wasserstein",
    "dynamics": {"name": "gradient_flow", "end_time": 0.4, "relative_tolerance": 1e-10},
    "record": {"count": 4},
    "seeds": 2,
    "study": {"name": "descent_to_flow", "step_sizes": SIZES},
}


def configuration(**changes: object) -> Config:
    config: Config = from_mapping(OPTIONS | changes)
    return config


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    """The study of a tiny problem: its folder, findings, and the progress it told."""
    folder, told = tmp_path_factory.mktemp("study"), []
    return folder, studies.conduct(configuration(), folder, told.append), told


@pytest.fixture(scope="module")
def compared(conducted):
    folder, _, _ = conducted
    runs = {size: results.load(folder / f"step_size_{size:g}") for size in SIZES}
    return comparison.compare(results.load(folder / "flow"), runs)


# --- what is found --------------------------------------------------------------------------------


def test_distance_is_of_first_and_drift_of_second_order(compared):
    assert compared.distance.law.exponent == pytest.approx(1, abs=0.05)
    assert compared.drift.law.exponent == pytest.approx(2, abs=0.1)
    assert compared.compared.all() and compared.distance.law.points == 3


def test_drift_from_a_balanced_start_is_the_imbalance_itself(conducted, compared):
    folder, _, _ = conducted
    for size, steps, drift in zip(compared.step_size, compared.steps, compared.drift.values, strict=True):
        last = results.load(folder / f"step_size_{size:g}").dataset["imbalance"].values[:, -1]
        np.testing.assert_allclose(drift * steps, np.linalg.norm(last, axis=1), rtol=1e-3)


def test_every_run_starts_alike_and_is_recorded_at_the_flows_times(conducted):
    folder, _, _ = conducted
    flow = results.load(folder / "flow")
    assert flow.dataset.attrs["clock"] == "time"
    np.testing.assert_allclose(flow.dataset["time"], [np.linspace(0, 0.4, 5)] * 2, rtol=1e-12)
    for size in SIZES:
        run = results.load(folder / f"step_size_{size:g}")
        np.testing.assert_allclose(run.dataset["time"], flow.dataset["time"], rtol=1e-12)
        np.testing.assert_array_equal(run.dataset["step"][:, -1], round(0.4 / size))
        first = run.dataset["end_to_end"].isel(record=0)
        np.testing.assert_allclose(first, flow.dataset["end_to_end"].isel(record=0), atol=1e-14)
        assert run.config.study is None and dict(run.config.dynamics.options)["step_size"] == size


def test_findings_name_every_file_and_say_the_orders(conducted, compared):
    folder, found, told = conducted
    names = ["flow", *(f"step_size_{size:g}" for size in SIZES)]
    assert found.results == [folder / name / "result.nc" for name in names]
    assert found.tables == [folder / "descent_to_flow.csv"]
    stems = [
        f"{name}.{kind}" for name in ("gap", "distance", "imbalance") for kind in ("pdf", "png", "data.csv")
    ]
    assert [path.name for path in found.figures] == stems
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*found.results, *found.tables, *found.figures}
    assert all(path.stat().st_size > 0 for path in written)
    assert len(found.rows) == 3 and {len(row) for row in found.rows} == {len(found.columns)}
    assert found.rows[0][:3] == ("0.005", "80", "2 of 2")
    assert found.notes == [
        f"distance to the flow ~ (step size)^{compared.distance.law.exponent:.3f} "
        "at the 3 smallest step sizes; theory: 1",
        f"imbalance drift per step ~ (step size)^{compared.drift.law.exponent:.3f} "
        "at the 3 smallest step sizes; theory: 2",
    ]
    assert not found.interrupted and 0 < found.score < 1
    assert {at.clock for at in told} == {"time", "step"}


def test_the_table_holds_every_step_size_and_seed(conducted, compared):
    folder, _, _ = conducted
    with (folder / "descent_to_flow.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["step_size"]), int(row["seed"])) for row in rows] == [
        (size, seed) for size in sorted(SIZES) for seed in (0, 1)
    ]
    assert {row["outcome"] for row in rows} == {"reached_end"}
    for name, scaling in (("distance", compared.distance), ("imbalance_drift_per_step", compared.drift)):
        np.testing.assert_array_equal([float(row[name]) for row in rows], scaling.values.ravel())


def test_nothing_is_replaced(conducted):
    folder, _, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results; this one has flow"):
        studies.conduct(configuration(), folder)


def test_claims_hold_and_fail_at_another_order(conducted, compared):
    assert [claim.held for claim in conducted[1].claims] == [True, True]
    law = compared.distance.law
    spoiled = compared._replace(distance=compared.distance._replace(law=law._replace(exponent=2.0)))
    first, second = descent_to_flow.claims(spoiled)
    assert not first.held and first.measured == "slope 2.000" and second.held


# --- refusals -------------------------------------------------------------------------------------

SPACED = "takes whole fractions of dynamics.end_time / record.count = 0.1"
REFUSALS = [
    ({"study": {"name": "other"}}, "study: got other; takes one of certificate_tightness, descent_to_flow"),
    ({"study": {"name": "descent_to_flow"}}, "study.step_sizes: got nothing; takes a list"),
    ({"study": {**OPTIONS["study"], "more": 1}}, "study.more: got 1; takes one of step_sizes"),
    *(
        ({"study": {"name": "descent_to_flow", "step_sizes": sizes}}, f"study.step_sizes: got {message}")
        for sizes, message in (
            ([], r"\[\]; takes at least one"),
            ([0.03], f"0.03; {SPACED}"),
            ([0.01, 0.2], f"0.2; {SPACED}"),
            ([0.01, 0.0], "0.0; takes numbers above 0"),
            ([0.01, -0.01], "-0.01; takes numbers above 0"),
            ([0.01, 0.01], "0.01 twice; takes different"),
            ([float("inf")], "inf; takes numbers above 0"),
            (["a"], r"\('a',\); takes a list, each a number"),
        )
    ),
    (
        {"dynamics": {"name": "gradient_descent", "step_size": 0.1, "steps": 10}},
        "dynamics: got gradient_desc",
    ),
    (
        {"dynamics": OPTIONS["dynamics"] | {"gap_tolerance": 1e-3}},
        "dynamics.gap_tolerance: got 0.001; takes null",
    ),
    ({"dynamics": OPTIONS["dynamics"] | {"end_time": -1.0}}, "dynamics.end_time: got -1"),
    ({"record": {"count": 4, "spacing": "logarithmic"}}, "record.spacing: got logarithmic; takes linear"),
    ({"network": {"depth": 2.5}}, "network.depth: got 2.5"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


def test_a_configuration_without_a_study_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="no study"):
        studies.conduct(configuration(study=None), tmp_path)


def test_decimal_step_sizes_fit_although_they_are_no_binary_fractions():
    _, descents = descent_to_flow.plan(configuration(), (0.1, 0.05, 0.02, 1e-2, 1e-3, 0.1 / 3))
    steps = [dict(each.dynamics.options)["steps"] for each in descents.values()]
    assert list(descents) == sorted(descents, reverse=True)
    assert steps == [4, 8, 12, 20, 40, 400]


def test_a_study_of_the_users_is_checked_and_given_its_options(tmp_path, monkeypatch):
    monkeypatch.setattr(studies.STUDIES, "_functions", dict(studies.STUDIES._functions))

    @studies.STUDIES.register("mine")
    def mine(config, folder, on_progress, *, factor: float = 2.0):
        return config, folder, on_progress, factor

    config = configuration(study={"name": "mine", "factor": 3})
    assert studies.conduct(config, str(tmp_path)) == (config, tmp_path, None, 3.0)


# --- Ctrl-C ---------------------------------------------------------------------------------------


def interrupted_at(run: int):
    """A stand-in for `simulate.run_together` that is interrupted in that run."""
    calls = []

    def stand_in(problems, on_progress, places):
        (problem,) = problems  # step sizes differ in their number of steps, which is static
        config = problem.config
        calls.append(config)
        step_size = dict(config.dynamics.options).get("step_size")
        dataset = synthetic.gaussian(seeds=2).dataset.copy(deep=True)
        dataset["time"].values[:] = np.linspace(0, 0.4, dataset.sizes["record"])
        dims = ("seed", "record", "feature", "latent")
        trajectory = np.repeat(dataset["initial_end_to_end"].values[:, None], dataset.sizes["record"], axis=1)
        dataset["end_to_end"] = (
            dims,
            trajectory * (1 + (step_size or 0) * dataset["time"].values[..., None, None]),
        )
        attributes = {"interrupted": int(len(calls) == run), "configuration": config.json()}
        return [results.Result(dataset.assign_attrs(attributes))]

    return stand_in


@pytest.mark.parametrize("run", [1, 2, 3])
def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, run):
    monkeypatch.setattr(simulate, "run_together", interrupted_at(run))
    found = studies.conduct(configuration(), tmp_path)
    assert found.interrupted
    assert found.notes[-1] == f"interrupted: {run - 1} of 4 runs finished; all that was recorded is kept"
    assert len(found.results) == run and all(path.exists() for path in found.results)
    assert len(found.rows) == max(0, run - 2)
    assert bool(found.figures) == bool(found.tables) == (run > 2)


def test_the_command_ends_with_130(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "run_together", interrupted_at(3))
    with pytest.raises(SystemExit) as end:
        train.train(Training(configuration()), tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert end.value.code == command_line.INTERRUPTED
    assert out[0].split()[:2] == ["step", "size"] and out[1].split()[0] == "0.02"
    assert "interrupted: 2 of 4 runs finished; all that was recorded is kept" in out


# --- figures --------------------------------------------------------------------------------------


def damaged(compared, lost: dict[int, int]):
    """The comparison had so many seeds diverged at these step sizes, by position."""
    outcome, usable = compared.outcome.copy(), compared.compared.copy()
    curves = list(compared.descents)
    for row, count in lost.items():
        outcome[row, :count], usable[row, :count] = "diverged", False
        time = np.tile(compared.flow.band.axis[:3], (count, 1))
        curves[row] = curves[row]._replace(lost_time=time, lost_gap=np.tile([1.0, 1e5, np.inf], (count, 1)))
    scalings = [
        comparison.scaling(compared.step_size, list(np.where(usable, each.values, np.nan)))
        for each in (compared.distance, compared.drift)
    ]
    return compared._replace(
        outcome=outcome, compared=usable, distance=scalings[0], drift=scalings[1], descents=tuple(curves)
    )


CASES = {
    "all": {},
    "one diverged": {2: 1},
    "a step size diverged": {2: 2, 1: 1},
    "all diverged": {0: 2, 1: 2, 2: 2},
}


@pytest.mark.parametrize("case", CASES)
def test_figures_fit_a_column_and_can_be_read(compared, case):
    shown = damaged(compared, CASES[case])
    for draw in figures.descent_to_flow.FIGURES.values():
        figure = draw(shown)
        check_readable(figure)
        (axes,) = figure.axes
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_yscale() == "log"


def test_descent_that_is_the_flow_is_at_no_distance(compared):
    """As where the flow is Euler's with the step size of descent: 0 has no place on a log axis."""
    values = compared.distance.values.copy()
    values[0] = 0
    shown = compared._replace(distance=comparison.scaling(compared.step_size, list(values)))
    (axes,) = figures.descent_to_flow.distance(shown).axes
    (errors,) = axes.containers
    np.testing.assert_array_equal(errors[0].get_xdata(), compared.step_size[1:])
    assert axes.get_ylim()[0] > 1e-6


def named(axes):
    return axes.get_legend_handles_labels()[1]


def test_gap_shows_the_flow_and_every_step_size(compared):
    (axes,) = figures.descent_to_flow.gap(compared).axes
    assert axes.get_xlabel() == "flow time $t$" and axes.get_xscale() == "linear"
    assert named(axes) == [r"$\eta$ = 0.02", r"$\eta$ = 0.01", r"$\eta$ = 0.005", "flow"]
    bands = [each.band for each in (*reversed(compared.descents), compared.flow)]
    for line, band in zip(axes.lines, bands, strict=True):
        np.testing.assert_array_equal(line.get_data(), (band.axis, band.median))


def test_gap_counts_what_diverged_and_ends_it_with_a_cross(compared):
    (axes,) = figures.descent_to_flow.gap(damaged(compared, {2: 1})).axes
    assert named(axes)[0] == r"$\eta$ = 0.02 (1 diverged)"
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert cross.get_ydata() == axes.get_ylim()[1] < 10
    assert axes.get_title(loc="left") == "median, diverged seeds left out"


@pytest.mark.parametrize(("name", "order"), [("distance", 1), ("imbalance", 2)])
def test_orders_are_shown_beside_those_of_theory(compared, name, order):
    (axes,) = figures.descent_to_flow.FIGURES[name](compared).axes
    scaling = compared.distance if name == "distance" else compared.drift
    assert axes.get_xscale() == "log" and "step size" in axes.get_xlabel()
    assert named(axes) == [
        f"fit: slope {scaling.law.exponent:.2f} (3 smallest $\\eta$)",
        f"slope {order}",
    ]
    fit, reference = (line for line in axes.lines if line.get_label() in named(axes))
    for line, slope in ((fit, scaling.law.exponent), (reference, order)):
        x, y = np.log(line.get_data())
        assert (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(slope)
    (errors,) = axes.containers
    np.testing.assert_array_equal(errors[0].get_data(), (compared.step_size, scaling.median))


def test_step_sizes_with_diverged_seeds_are_marked(compared):
    (axes,) = figures.descent_to_flow.distance(damaged(compared, {2: 2, 1: 1})).axes
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses.get_label() == "seeds diverged"
    np.testing.assert_array_equal(crosses.get_xdata(), [0.01, 0.02])
    assert [each.get_text() for each in axes.texts] == ["1", "2"]


def test_depth_one_has_no_figure_of_the_imbalance(compared, tmp_path):
    paths = figures.descent_to_flow.save_all(compared._replace(drift=None), tmp_path)
    assert {path.name.partition(".")[0] for path in paths} == {"gap", "distance"}
    assert all("–" in row for row in descent_to_flow.table(compared._replace(drift=None)))


def test_notes_say_which_seeds_are_left_out(compared):
    notes = descent_to_flow.sentences(damaged(compared, {2: 1}))
    assert notes[-1] == "step size 0.02: 1 of 2 seeds are left out, 1 of them diverged"


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=descent_to_flow", *overrides])
    return command_line.training(command_line.plain(composed)).config


def test_the_experiment_is_what_it_should_be():
    config = experiment()
    assert config.study == Choice("descent_to_flow", (("step_sizes", (0.1, 0.05, 0.02, 0.01, 0.005, 0.002)),))
    flow, descents = descent_to_flow.plan(config, dict(config.study.options)["step_sizes"])
    assert flow == dataclasses.replace(
        config, study=None, record=dataclasses.replace(config.record, end_to_end=True)
    )
    assert {each.initialization for each in descents.values()} == {config.initialization}
    assert dict(config.initialization.options)["balanced"] is True


def test_the_command_conducts_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "run_together", interrupted_at(0))
    assert 0 < train.train(Training(experiment("seeds=2")), tmp_path) < 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step size") and len([line for line in out if line.startswith("result")]) == 7
    kinds = [line.split()[0] for line in out[-4:]]
    assert kinds == ["result", "table", "report", "figures"]
    assert all(os.path.exists(line.split()[1]) for line in out[-3:-1])
