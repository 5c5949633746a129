"""The study of how tight certificates are: its numbers against theory, its files, figures and refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from readable import check_readable
from refusals import check_refused

from bwdln import figures, results, simulate, studies, sweep
from bwdln.comparison import certificate_tightness as comparison
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption
from bwdln.studies import certificate_tightness
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEPTHS = (1.0, 3.5)
TAU = 0.02
EIGENVALUES = np.array([1.0, 0.8, 0.5])
OPTIONS = {
    "target": {"name": "explicit", "eigenvalues": tuple(EIGENVALUES)},
    "network": {},
    "initialization": {"name": "close_to_target", "tau": TAU},
    "loss": {"name": "bures_wasserstein", "tau": TAU},
    "dynamics": {
        "name": "end_to_end_flow",
        "end_time": 30.0,
        "relative_tolerance": 1e-10,
        "absolute_tolerance": 1e-12,
        "gap_tolerance": 1e-13,
    },
    "record": {"count": 100, "spacing": "logarithmic", "decades": 3.0},
    "seeds": 2,
    "study": {"name": "certificate_tightness", "depths": DEPTHS},
}


def configuration(**changes: object) -> Config:
    return from_mapping(OPTIONS | changes)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


@pytest.fixture(scope="module")
def found(conducted):
    folder, _ = conducted
    return comparison.compare({depth: results.load(folder / f"depth_{depth:g}") for depth in DEPTHS})


# --- numbers --------------------------------------------------------------------------------------


def test_the_sharp_envelopes_final_rate_is_attained(found):
    learned = EIGENVALUES[-1] - TAU
    expected = [4 * depth * learned ** ((depth - 1) / depth) * learned / EIGENVALUES[-1] for depth in DEPTHS]
    np.testing.assert_allclose(found.final, np.repeat(expected, 2).reshape(2, 2), rtol=1e-12)
    np.testing.assert_allclose(found.ratio, found.final / found.measured, rtol=1e-12)
    assert np.all((found.ratio >= 0.97) & (found.ratio <= 1 + 1e-4))
    assert np.all(found.error < 1e-2 * found.measured)


def test_rates_are_ordered_and_the_papers_is_far_away(found):
    assert np.all(found.initial < found.final) and np.all(found.paper < 0.25 * found.initial)
    np.testing.assert_allclose(found.looser, found.measured / found.paper)
    assert np.all(found.looser > 1e3)


def test_every_bound_is_obeyed_and_above_the_loss(found):
    assert found.compared.all() and set(found.obeyed) == {"sharp", "sharp_constant", "paper"}
    for name in found.obeyed:
        assert found.promised[name].all() and found.obeyed[name].all()
    for course in found.courses:
        assert len(course.time) > 60 and np.all(np.diff(course.time) > 0)
        sharp, constant, paper = course.bounds.values()
        assert np.all(course.loss <= sharp * (1 + 1e-6))
        assert np.all(sharp <= constant * (1 + 1e-12)) and np.all(constant <= paper * (1 + 1e-12))
        np.testing.assert_allclose([sharp[0], constant[0], paper[0]], course.loss[0], rtol=1e-9)


def test_a_broken_bound_is_noticed(conducted):
    folder, _ = conducted
    result = results.load(folder / "depth_1")
    dataset = result.dataset.copy(deep=True)
    dataset["loss"].values[1, 5:] *= 3  # above the sharp envelope, which at depth one is close
    broken = comparison.compare({1.0: results.Result(dataset)})
    assert broken.obeyed["sharp"].tolist() == [[True, False]]
    assert broken.obeyed["paper"].tolist() == [[True, False]]  # right after the start it is as close
    assert "1 of 2 runs broke the bound sharp" in certificate_tightness.sentences(broken)
    assert certificate_tightness.table(broken)[0][-1] == "3 of 6"


def test_seeds_without_a_margin_or_that_diverged_are_left_out(conducted):
    folder, _ = conducted
    result = results.load(folder / "depth_3.5")
    dataset = result.dataset.copy(deep=True)
    dataset["initial_end_to_end"].values[0] *= 3
    dataset["outcome"].values[1] = "diverged"
    left_out = comparison.compare({3.5: results.Result(dataset)})
    assert not left_out.compared.any() and np.isnan(left_out.measured).all()
    notes = certificate_tightness.sentences(left_out)
    assert notes[0].startswith("depth 3.5: 1 of 2 seeds are promised nothing: margin: √L_τ = ")
    assert notes[1:] == ["depth 3.5: 1 of 2 seeds diverged"]
    assert certificate_tightness.table(left_out) == [("3.5", "0 of 2", *["–"] * 6, "0 of 0")]
    for draw in figures.certificate_tightness.FIGURES.values():
        draw(left_out).draw_without_rendering()


def test_runs_that_end_early_have_no_rate(conducted):
    folder, _ = conducted
    result = results.load(folder / "depth_1")
    early = comparison.compare({1.0: results.Result(result.dataset.isel(record=slice(0, 40)))})
    assert np.isnan(early.ratio).all() and early.compared.all()
    said = "depth 1: 2 of 2 seeds have fewer than 3 records at relative gaps from 1e-09 down to 1e-13"
    assert said in certificate_tightness.sentences(early)


def test_without_a_perturbation_the_paper_promises_nothing(conducted):
    folder, _ = conducted
    result = results.load(folder / "depth_1")
    loss = '"loss": {"name": "bures_wasserstein", "tau": 0.02}'
    configured = result.dataset.attrs["configuration"]
    assert loss in configured
    plain = result.dataset.assign_attrs(configuration=configured.replace(loss, loss.replace("0.02", "0.0")))
    found = comparison.compare({1.0: results.Result(plain)})
    assert found.compared.all() and not found.promised["paper"].any() and np.isnan(found.paper).all()
    assert list(found.courses[0].bounds) == ["sharp", "sharp_constant"]
    assert certificate_tightness.table(found)[0][6:8] == ("–", "–")


# --- files ----------------------------------------------------------------------------------------


def test_findings_name_every_file(conducted, found):
    folder, findings = conducted
    assert findings.results == [folder / f"depth_{depth:g}" / "result.nc" for depth in DEPTHS]
    assert findings.tables == [folder / "certificate_tightness.csv"]
    stems = [f"{name}.{kind}" for name in ("certificates", "rates") for kind in ("pdf", "png", "data.csv")]
    assert [path.name for path in findings.figures] == stems
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*findings.results, *findings.tables, *findings.figures}
    assert {len(row) for row in findings.rows} == {len(findings.columns)}
    assert [row[:2] for row in findings.rows] == [("1", "2 of 2"), ("3.5", "2 of 2")]
    assert [row[-1] for row in findings.rows] == ["6 of 6", "6 of 6"]
    assert findings.score == pytest.approx(np.max(np.abs(found.ratio - 1)))
    assert findings.notes[0] == (
        f"the sharp envelope's final rate is {found.ratio.min():.4f} to {found.ratio.max():.4f} "
        "of the measured one"
    )
    assert not findings.interrupted


def test_the_table_holds_every_depth_and_seed(conducted, found):
    folder, _ = conducted
    with (folder / "certificate_tightness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["depth"]), int(row["seed"])) for row in rows] == [
        (depth, seed) for depth in DEPTHS for seed in (0, 1)
    ]
    assert {(row["outcome"], row["failing"], row["paper_obeyed"]) for row in rows} == {
        ("converged", "", "True")
    }
    columns = {"measured_rate": found.measured, "paper_rate": found.paper, "sharp_over_measured": found.ratio}
    for name, values in columns.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], values.ravel())


def test_depths_are_lanes_of_one_program(tmp_path):
    problems = certificate_tightness.plan(configuration(), (1.0, 2.0, 7.5), tmp_path)
    assert list(problems) == ["depth_1", "depth_2", "depth_7.5"]
    assert sweep.groups(problems) == [list(problems)]
    assert problems["depth_2"].config.network.depth == 2


def test_claims_hold_and_fail_where_the_loss_breaks_a_bound(conducted, found):
    assert [claim.held for claim in conducted[1].claims] == [True, True, True]
    name = next(iter(found.obeyed))
    broken = found.obeyed | {name: np.zeros_like(found.obeyed[name])}
    spoiled = found._replace(obeyed=broken, ratio=found.ratio / 2, looser=found.looser * 0 + 10)
    assert not any(claim.held for claim in certificate_tightness.claims(spoiled))


# --- refusals -------------------------------------------------------------------------------------

REFUSALS = [
    *(
        ({"study": {"name": "certificate_tightness", "depths": depths}}, f"study.depths: got {message}")
        for depths, message in (
            ([], r"\[\]; takes at least one number from 1"),
            ([2, 0.5], "0.5; takes numbers from 1"),
            ([2, 2.0], "2 twice; takes different"),
            ([float("inf")], "inf; takes numbers from 1"),
        )
    ),
    (
        {"dynamics": {"name": "gradient_descent", "step_size": 0.1, "steps": 10}},
        "dynamics: got gradient_descent; takes end_to_end_flow",
    ),
    ({"loss": "frobenius"}, "loss: got frobenius; takes bures_wasserstein"),
    (
        {"loss": {"name": "bures_wasserstein", "tau": 0.5}},
        "loss.tau: got 0.5; takes numbers below the smallest eigenvalue of the target, 0.5",
    ),
    (
        {"network": {"bottleneck": 2}, "initialization": {"name": "orthogonal", "balanced": True}},
        "network: got a bottleneck of 2; takes a network as wide as the data dimension 3",
    ),
    ({"dynamics": OPTIONS["dynamics"] | {"end_time": -1.0}}, "dynamics.end_time: got -1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results"):
        studies.conduct(configuration(), folder)


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_recorded(conducted, tmp_path, monkeypatch):
    folder, _ = conducted
    done = [results.load(folder / f"depth_{depth:g}").dataset for depth in DEPTHS]
    cut = [results.Result(each.isel(record=slice(0, 5)).assign_attrs(interrupted=1)) for each in done]
    monkeypatch.setattr(simulate, "run_together", lambda problems, on_progress, places: cut)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and findings.score == np.inf
    assert findings.notes == ["interrupted: 0 of 2 runs finished; all that was recorded is kept"]
    assert [path.exists() for path in findings.results] == [True, True]
    assert not findings.rows and not findings.tables and not findings.figures


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.certificate_tightness.FIGURES)
def test_figures_fit_a_column_and_can_be_read(found, name):
    figure = figures.certificate_tightness.FIGURES[name](found)
    check_readable(figure)
    assert all(axes.get_yscale() == "log" and axes.get_xlabel() for axes in figure.axes)


def test_every_depth_has_a_panel_with_loss_and_bounds(found):
    figure = figures.certificate_tightness.certificates(found)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["$N$ = 1", "$N$ = 3.5"]
    for axes, course in zip(figure.axes, found.courses, strict=True):
        for line, values in zip(axes.lines, (course.loss, *course.bounds.values()), strict=True):
            np.testing.assert_array_equal(line.get_data(), (course.time, values))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["measured", "sharp, $c(t)$", "sharp, $c(0)$", "paper"]


def test_rates_are_shown_against_depth(found):
    (axes,) = figures.certificate_tightness.rates(found).axes
    assert axes.get_xlabel() == "depth $N$" and axes.get_title(loc="left") == "median and range of 2 seeds"
    lines = {line.get_label(): line for line in axes.lines}
    for label, values in (
        ("sharp, final", found.final),
        ("sharp, initial", found.initial),
        ("paper", found.paper),
    ):
        np.testing.assert_allclose(lines[label].get_data(), (found.depth, np.median(values, axis=1)))
    (errors,) = axes.containers
    np.testing.assert_allclose(errors[0].get_ydata(), np.median(found.measured, axis=1))


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=certificate_tightness", *overrides])
    return command_line.training(command_line.plain(composed)).config


def test_the_experiment_is_promised_everything(tmp_path):
    config = experiment()
    tau = dict(config.loss.options)["tau"]
    assert tau > 0 and dict(config.initialization.options)["tau"] == tau
    problems = certificate_tightness.plan(config, dict(config.study.options)["depths"], tmp_path)
    assert len(problems) >= 4 and len(sweep.groups(problems)) == 1


@pytest.mark.slow
def test_the_experiment_finds_what_theory_says(tmp_path):
    findings = studies.conduct(experiment("seeds=2"), tmp_path)
    assert findings.score < 0.1 and not findings.interrupted
    assert [row[-1] for row in findings.rows] == ["6 of 6"] * len(findings.rows)
    assert not any("fewer" in note or "broke" in note for note in findings.notes)
