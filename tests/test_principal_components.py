"""The study of generators against principal components: numbers, files, refusals and figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import sklearn.decomposition
from hydra import compose, initialize_config_dir
from readable import check_readable
from refusals import check_refused

from bwdln import data, figures, results, simulate, studies
from bwdln.comparison import principal_components as comparison
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption
from bwdln.registry import Choice
from bwdln.studies import principal_components as study
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BOTTLENECKS, TAUS = (2, 3), (5.0, 120.0)  # of digits: λ = 178.9, 163.6, 141.7, 101.0, …
OPTIONS = {
    "target": "digits",
    "network": {"depth": 2, "bottleneck": 4},
    "initialization": {"name": "orthogonal", "balanced": True},
    "loss": "bures_wasserstein",
    "dynamics": {"name": "end_to_end_flow", "end_time": 600.0, "gap_tolerance": 1e-14},
    "record": {"count": 20, "spacing": "logarithmic"},
    "seeds": 2,
    "study": {"name": "principal_components", "bottlenecks": BOTTLENECKS, "taus": TAUS},
}
NAMES = ["bottleneck_4", "bottleneck_2", "bottleneck_3", "tau_5", "tau_120"]


def configuration(**changes: object) -> Config:
    config: Config = from_mapping(OPTIONS | changes)
    return config


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


@pytest.fixture(scope="module")
def runs(conducted):
    folder, _ = conducted
    return {name: results.load(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def found(runs):
    return comparison.compare(
        list(runs.values()), runs["bottleneck_4"], comparison.components(data.digits().values)
    )


@pytest.fixture(scope="module")
def pca():
    """Principal components by scikit-learn; it divides by count − 1, and we by count."""
    samples = data.digits().values
    fitted = sklearn.decomposition.PCA(svd_solver="full").fit(samples)
    return fitted.explained_variance_ * (len(samples) - 1) / len(samples), fitted.components_.T


# --- numbers --------------------------------------------------------------------------------------


def test_components_are_those_of_scikit_learn(found, pca):
    variances, directions = pca
    np.testing.assert_allclose(found.components.variances[:61], variances[:61], rtol=1e-9)
    np.testing.assert_array_equal(found.components.variances[61:], 0)  # of rank 61
    cosines = np.abs(np.sum(found.components.directions * directions, axis=0))
    np.testing.assert_allclose(cosines[:40], 1, atol=1e-9)
    assert found.components.total == pytest.approx(variances.sum(), rel=1e-12)


def test_components_without_centering_are_about_zero():
    samples = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 2.0]])
    variances, directions = comparison.components(samples, center=False)
    np.testing.assert_allclose(directions * variances @ directions.T, samples.T @ samples / 3)


@pytest.mark.parametrize("name", ["bottleneck_2", "bottleneck_3", "bottleneck_4"])
def test_the_end_of_training_is_the_pca_of_scikit_learn(runs, pca, name):
    variances, directions = pca
    run, rank = runs[name], int(name.split("_")[1])
    np.testing.assert_allclose(run.dataset["loss"].values[:, -1], variances[rank:].sum(), rtol=1e-11)
    best = (directions[:, :rank] * variances[:rank]) @ directions[:, :rank].T
    for generator in run.dataset["final_end_to_end"].values:
        assert np.linalg.norm(generator @ generator.T - best) < 1e-5 * np.linalg.norm(best)


def test_every_run_ends_where_theory_says(found, pca):
    variances, _ = pca
    assert [each.rank for each in found.by_rank] == [2, 3, 4]
    assert [each.tau for each in found.by_tau] == [0, 5, 120]
    for each in found.by_rank:
        assert each.optimum == pytest.approx(variances[each.rank :].sum(), rel=1e-11)
        assert np.all(np.abs(found.gap(each)) < 1e-12) and set(each.outcome) == {"converged"}
        assert np.all(each.distance < 1e-5) and np.all(each.misalignment < 1e-9)
    _, low, high = found.by_tau
    np.testing.assert_allclose(low.expected, variances[:4] - 5, rtol=1e-9)
    np.testing.assert_allclose(low.variances, np.tile(low.expected, (2, 1)), rtol=1e-5)
    assert low.optimum == pytest.approx(np.sum((np.sqrt(np.abs(variances[4:])) - np.sqrt(5)) ** 2), rel=1e-7)
    np.testing.assert_allclose(high.expected, [*(variances[:3] - 120), 0], rtol=1e-9)
    np.testing.assert_allclose(high.variances[:, :3], np.tile(high.expected[:3], (2, 1)), rtol=1e-4)
    assert np.all(high.variances[:, 3] < 1) and not high.learnable[3]
    assert all(study._learnt(high) == 3)
    # Where a component that is not learnt would point does not count.
    assert np.all(high._replace(cosines=high.cosines * [1, 1, 1, 0]).misalignment < 1e-6)


def test_errors_of_a_generator_are_those_of_its_covariance(runs, found):
    """Against the n × n matrices themselves, at a generator far from the best one."""
    run = runs["bottleneck_3"]
    lanes = np.random.default_rng(0).standard_normal(run.dataset["final_end_to_end"].shape)
    moved = results.Result(run.dataset.assign(final_end_to_end=(("seed", "feature", "latent"), lanes)))
    shown = comparison.learned(moved, found.components)
    best = (found.components.directions[:, :3] * shown.expected) @ found.components.directions[:, :3].T
    for lane, generator in enumerate(lanes):
        expected = np.linalg.norm(generator @ generator.T - best) / np.linalg.norm(best)
        assert shown.distance[lane] == pytest.approx(expected, rel=1e-10)
        left, singular, _ = np.linalg.svd(generator)
        np.testing.assert_allclose(shown.variances[lane], singular**2)
        cosines = np.abs([left[:, i] @ found.components.directions[:, i] for i in range(3)])
        np.testing.assert_allclose(shown.cosines[lane], cosines)
        assert shown.misalignment[lane] == pytest.approx(1 - cosines.min())


def test_a_generator_that_is_not_finite_is_far_from_everything(runs, found):
    run = runs["bottleneck_2"]
    lanes, losses = run.dataset["final_end_to_end"].copy(), run.dataset["loss"].copy()
    lanes[1], losses[1, -1] = np.nan, np.nan
    cut = results.Result(run.dataset.assign(final_end_to_end=lanes, loss=losses))
    shown = comparison.learned(cut, found.components)
    assert np.isnan(shown.distance[1]) and np.isnan(shown.cosines[1]).all() and shown.distance[0] < 1e-5
    worse = found._replace(by_rank=(shown, *found.by_rank[1:]))
    assert study.worst(worse) == np.inf
    assert not any(claim.held for claim in study.claims(worse)[:2])
    for draw in figures.principal_components.FIGURES.values():
        draw(worse).draw_without_rendering()


# --- files ----------------------------------------------------------------------------------------


def test_findings_name_every_file(conducted):
    folder, findings = conducted
    assert findings.results == [folder / name / "result.nc" for name in NAMES]
    assert findings.tables == [folder / "principal_components.csv", folder / "components.csv"]
    names = {path.name.partition(".")[0] for path in findings.figures}
    assert names == {
        *("gap", "spectrum", "alignment", "samples"),
        *figures.principal_components.FIGURES,
    }
    pictures = {path.name for path in findings.figures}
    assert "components.data.csv" not in pictures and "generated.data.csv" not in pictures
    assert {"bottlenecks.data.csv", "taus.data.csv"} <= pictures
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*findings.results, *findings.tables, *findings.figures}
    assert [row[:2] for row in findings.rows] == [
        ("2", "0"),
        ("3", "0"),
        ("4", "0"),
        ("4", "5"),
        ("4", "120"),
    ]
    assert {len(row) for row in findings.rows} == {len(findings.columns)}
    assert findings.score < 1e-12 and not findings.interrupted
    assert len(findings.claims) == 4 and all(claim.held for claim in findings.claims)
    assert findings.claims[-1].predicted == "3 at 120" and findings.claims[-1].measured == "3 of 4 at 120"


def test_tables_hold_every_run_seed_and_component(conducted, found):
    folder, _ = conducted
    runs, components = (
        list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
        for name in ("principal_components", "components")
    )
    places = [(2, 0), (3, 0), (4, 0), (4, 5), (4, 120)]
    expected = [(*place, seed) for place in places for seed in (0, 1)]
    assert [(int(r["bottleneck"]), float(r["tau"]), int(r["seed"])) for r in runs] == expected
    for row, (rank, tau, seed) in zip(runs, expected, strict=True):
        own = next(e for e in study.everyone(found) if (e.rank, e.tau) == (rank, tau))
        assert float(row["loss"]) == own.loss[seed] and float(row["loss_of_pca"]) == own.optimum
        assert float(row["covariance_distance"]) == own.distance[seed]
    assert len(components) == 2 * (2 + 3 + 4 + 4 + 4)
    assert [int(row["component"]) for row in components[:4]] == [1, 2, 1, 2]
    last = components[-1]
    assert float(last["learned"]) == found.by_tau[-1].variances[1, 3] and float(last["expected"]) == 0


def test_a_seed_that_is_not_at_its_end_is_said(found):
    slow = found.by_rank[0]._replace(loss=found.by_rank[0].loss * [1, 1.5])
    notes = study.sentences(found._replace(by_rank=(slow, *found.by_rank[1:])))
    assert notes[2].startswith(
        "k = 2: 1 of 2 seeds end above a relative gap of 1e-09, at 3.6e-01: try a larger"
    )
    *kept, high = found.by_tau  # at τ = 120, which is above λ_4
    notes = study.sentences(found._replace(by_tau=(*kept, high._replace(loss=high.loss * 1.1))))
    assert notes[-1].startswith("k = 4, τ = 120: 2 of 2 seeds") and "power of time" in notes[-1]


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results"):
        studies.conduct(configuration(), folder)


def test_a_users_own_samples_have_no_pictures(tmp_path):
    samples = np.random.default_rng(1).standard_normal((40, 3)) * [3, 2, 1] + 5
    np.save(tmp_path / "mine.npy", samples)
    config = configuration(
        target={"name": "file", "path": str(tmp_path / "mine.npy")},
        network={"depth": 1, "bottleneck": 2},
        study={"name": "principal_components", "bottlenecks": [], "taus": []},
        seeds=1,
    )
    findings = studies.conduct(config, tmp_path / "out")
    names = {path.name.partition(".")[0] for path in findings.figures}
    assert names == {"gap", "spectrum", "alignment", "samples"} and findings.score < 1e-9
    (row,) = findings.rows
    variances = sklearn.decomposition.PCA().fit(samples).explained_variance_ * 39 / 40
    assert float(row[2]) == pytest.approx(variances[2], rel=1e-5)


# --- refusals -------------------------------------------------------------------------------------

STUDY = OPTIONS["study"]
REFUSALS = [
    *(
        ({"study": STUDY | {option: values}}, f"study.{option}: got {message}")
        for option, values, message in (
            ("bottlenecks", [0], "0; takes integers from 1"),
            ("bottlenecks", [2, 2], "2 twice; takes different"),
            ("bottlenecks", [1.5], r"\(1.5,\); takes a list, each an integer"),
            ("taus", [0.0], "0.0; takes finite numbers above 0"),
            ("taus", [float("inf")], "inf; takes finite numbers above 0"),
            ("taus", [1, 1.0], "1 twice; takes different"),
        )
    ),
    ({"study": STUDY | {"bottlenecks": [65]}}, "network.bottleneck: got 65; takes an integer up to"),
    ({"target": "zipf"}, "target: got zipf; takes a target estimated from samples"),
    ({"loss": "frobenius"}, "loss: got frobenius; takes bures_wasserstein"),
    ({"loss": {"name": "bures_wasserstein", "tau": 0.1}}, "loss.tau: got 0.1; takes 0 in this study"),
    ({"network": {"depth": 2}}, "network.bottleneck: got null; takes an integer in this study"),
    ({"network": {"widths": [4, 64]}}, r"network.widths: got \(4, 64\); takes null in this study"),
    ({"initialization": {"name": "orthogonal"}}, "initialization.balanced: got False; takes true"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_recorded(runs, tmp_path, monkeypatch):
    cut = [results.Result(runs["bottleneck_4"].dataset.isel(record=slice(0, 5)).assign_attrs(interrupted=1))]
    monkeypatch.setattr(simulate, "run_together", lambda problems, on_progress, places: cut)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and findings.score == np.inf
    assert findings.notes == ["interrupted: 0 of 5 runs finished; all that was recorded is kept"]
    assert findings.results == [tmp_path / "bottleneck_4" / "result.nc"]
    assert not findings.rows and not findings.tables and not findings.figures


def test_ctrl_c_after_the_main_run_compares_what_there_is(runs, tmp_path, monkeypatch):
    asked = iter([[runs["bottleneck_4"]], [runs["bottleneck_2"]]])

    def next_of_them(problems, on_progress, places):
        done = next(asked, None)
        cut = runs["bottleneck_3"].dataset.isel(record=slice(0, 5)).assign_attrs(interrupted=1)
        return done or [results.Result(cut)]

    monkeypatch.setattr(simulate, "run_together", next_of_them)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and [row[0] for row in findings.rows] == ["2", "4"]
    assert findings.notes[-1] == "interrupted: 2 of 5 runs finished; all that was recorded is kept"
    assert len(findings.claims) == 2


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.principal_components.FIGURES)
def test_figures_fit_a_column_and_can_be_read(found, name):
    figure = figures.principal_components.FIGURES[name](found)
    check_readable(figure)


def test_losses_are_drawn_on_the_curve_of_pca(found, pca):
    variances, _ = pca
    above, below = figures.principal_components.bottlenecks(found).axes
    curve, circles = above.lines
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(1, 62))
    tails = variances[:61].sum() - np.cumsum(variances[:61])
    np.testing.assert_allclose(curve.get_ydata()[:60], tails[:60], rtol=1e-8)
    np.testing.assert_array_equal(circles.get_xdata(), [2, 2, 3, 3, 4, 4])
    np.testing.assert_allclose(circles.get_ydata(), tails[[1, 1, 2, 2, 3, 3]], rtol=1e-11)
    assert above.get_yscale() == below.get_yscale() == below.get_xscale() == "log"
    assert above.get_ylabel() and below.get_xlabel() == "bottleneck $k$" and below.get_ylabel()


def test_variances_are_drawn_on_the_lines_of_theory(found, pca):
    variances, _ = pca
    above, below = figures.principal_components.taus(found).axes
    lines, circles = above.lines[0:8:2], above.lines[1:8:2]
    for mode, (line, points) in enumerate(zip(lines, circles, strict=True)):
        x, y = line.get_data()
        shown = np.isfinite(y)
        np.testing.assert_allclose(x[shown] + y[shown], variances[mode], rtol=1e-9)
        np.testing.assert_array_equal(points.get_xdata(), [5, 5, 120, 120])
        measured = [each.variances[:, mode] for each in found.by_tau[1:]]
        np.testing.assert_array_equal(points.get_ydata(), np.concatenate(measured))
    smallest, learnt = below.lines
    x, y = smallest.get_data()
    places = learnt.get_xdata()
    np.testing.assert_allclose(np.interp(places, x, y), learnt.get_ydata(), rtol=1e-3)
    assert above.get_xscale() == "log" and below.get_xlabel() and below.get_ylabel() and above.get_ylabel()


def test_learnt_components_are_drawn_below_those_of_pca_with_their_sign(found):
    shown = found.portraits
    for learnt, component in zip(shown.learned, shown.components, strict=True):
        np.testing.assert_allclose(learnt, component, atol=1e-5)
        assert np.linalg.norm(learnt) == pytest.approx(1)
    assert shown.learned.shape == (4, 8, 8)
    (axes,) = figures.principal_components.components(found).axes
    drawn = [image.get_array() for image in axes.images]
    assert len(drawn) == 8
    np.testing.assert_array_equal(drawn[0], shown.components[0] / np.abs(shown.components[0]).max())
    np.testing.assert_allclose(drawn[4:], drawn[:4], atol=1e-4)


def test_many_components_take_several_rows_of_eight(found):
    many = np.random.default_rng(0).standard_normal((20, 3, 3))
    shown = found._replace(portraits=comparison.Portraits(0, many, many, np.ones(20)))
    figure = figures.principal_components.components(shown)
    assert [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes] == ["1–8", "9–16"]
    nine = found._replace(portraits=comparison.Portraits(0, many[:9], many[:9], np.ones(9)))
    first, last = figures.principal_components.components(nine).axes
    assert last.get_title(loc="left").startswith("9: ")
    assert first.get_xlim() == last.get_xlim()  # the ninth is as large as the others


def test_generated_images_have_the_covariance_of_the_generator(runs, found):
    """A row of many draws: its covariance is W Wᵀ, its mean that of the data."""
    shown = comparison.generated([runs["bottleneck_3"]], found.components, count=20_000)
    rows = shown.rows[0].reshape(20_000, 64)
    generator = runs["bottleneck_3"].dataset["final_end_to_end"].values[0]
    expected = generator @ generator.T
    assert np.linalg.norm(np.cov(rows.T) - expected) < 0.05 * np.linalg.norm(expected)
    np.testing.assert_allclose(rows.mean(axis=0), data.digits().values.mean(axis=0), atol=0.2)
    # What a draw shows at k = 2 is what it shows at k = 3 less the third component.
    two, three = comparison.generated(
        [runs["bottleneck_2"], runs["bottleneck_3"]], found.components, count=4
    ).rows
    left_over = (three - two).reshape(4, 64)
    assert np.linalg.matrix_rank(left_over, tol=1e-4) == 1


def test_one_bottleneck_and_no_tau_have_no_curves(found, tmp_path):
    alone = found._replace(by_rank=found.by_rank[-1:], by_tau=found.by_tau[:1])
    paths = figures.principal_components.save_all(alone, tmp_path)
    assert {path.name.partition(".")[0] for path in paths} == {"components", "generated"}


# --- the experiments ------------------------------------------------------------------------------


def experiment(name: str, *overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", [f"+experiment={name}", *overrides])
    return command_line.training(command_line.plain(composed)).config


@pytest.mark.parametrize(("name", "rank"), [("faces", 99), ("digits", 61)])
def test_experiments_sweep_around_their_bottleneck(name, rank):
    config = experiment(name)
    options = dict(config.study.options)
    jobs = study.plan(config, **options)
    own = config.network.bottleneck
    assert next(iter(jobs)) == f"bottleneck_{own}" and len(jobs) > 10
    samples = data.samples(Choice(name))
    variances = comparison.components(samples.values).variances
    assert np.sum(variances > 0) == rank  # singular
    below = [tau for tau in options["taus"] if tau < variances[own - 1]]
    assert 0 < len(below) < len(options["taus"])
    assert min(options["bottlenecks"]) < own < max(options["bottlenecks"])


@pytest.mark.parametrize("name", ["faces", "digits"])
def test_experiments_at_reduced_size_hold_their_claims(name, tmp_path):
    small = ("network.bottleneck=2", "study.bottlenecks=[1]", "study.taus=[]", "seeds=1", "record.count=10")
    findings = studies.conduct(experiment(name, *small), tmp_path)
    assert all(claim.held for claim in findings.claims) and findings.score < 1e-11
    for path in findings.figures:
        assert path.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faces", "digits"])
def test_experiments_hold_their_claims(name, tmp_path):
    findings = studies.conduct(experiment(name), tmp_path)
    assert len(findings.claims) == 4 and all(claim.held for claim in findings.claims)
