"""The study of optimizers: what it runs, measures, writes, draws and refuses."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import synthetic
from hydra import compose, initialize_config_dir
from readable import check_readable

from bwdln import figures, results, simulate, studies
from bwdln.comparison import optimizers as comparison
from bwdln.comparison.optimizers import PROGRESS
from bwdln.config import Config, Training, from_mapping
from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS
from bwdln.registry import Choice
from bwdln.studies import optimizers
from experiments import command_line, train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMES = ("descent", "muon", "adam")
OPTIONS = {
    "target": {"name": "power_law", "dimension": 4, "exponent": 2.0},
    "network": {"depth": 3, "bottleneck": 3},
    "initialization": {"name": "small", "scale": 0.1},
    "loss": "bures_wasserstein",
    "dynamics": {"name": "gradient_descent", "step_size": 0.1, "steps": 400},
    "record": {"count": 100},
    "seeds": 2,
    "study": {"name": "optimizers", "optimizers": NAMES},
}


def configuration(**changes: object) -> Config:
    config: Config = from_mapping(OPTIONS | changes)
    return config


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    """The study of a tiny problem: its folder, and findings."""
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


@pytest.fixture(scope="module")
def found(conducted):
    folder, _ = conducted
    pairs = {name: (results.load(folder / name), results.load(folder / f"{name}_rotated")) for name in NAMES}
    return comparison.compare(results.load(folder / "flow"), pairs, step_size=0.1)


# --- what is found --------------------------------------------------------------------------------


def test_descent_and_muon_see_no_coordinates_and_adam_does(found):
    for name in ("descent", "muon"):
        assert np.all(found.trials[name].while_learning < 1e-12) and comparison.equivariant(found, name)
    assert np.all(found.trials["descent"].in_all < 1e-8)
    assert np.all(found.trials["adam"].while_learning > 0.05)
    assert comparison.equivariant(found, "adam") is False


def test_descent_is_of_low_rank_like_the_flow_and_muon_is_not(found):
    assert np.all(np.abs(found.trials["descent"].excess) < 0.1)
    assert np.all(found.trials["muon"].excess > 0.5)
    verdicts = [comparison.low_rank(found, name) for name in ("descent", "muon")]
    assert verdicts == [True, False]
    assert np.all(found.flow.half < 1.5) and np.all(found.trials["muon"].learning.half > 2)


def test_descent_learns_in_the_flow_time_of_the_flow(found):
    gap = np.interp(found.flow_gap.axis, found.trials["descent"].gap.axis, found.trials["descent"].gap.median)
    np.testing.assert_allclose(found.flow_gap.axis[-1], 400)
    assert np.max(np.abs(gap - found.flow_gap.median)) < 0.1 * found.flow_gap.median[0]


def layers_of(conducted, name: str) -> list[list[np.ndarray]]:
    """The layers that both runs of an optimizer start with, seed 0, the last one in the eigenbasis."""
    folder, _ = conducted
    target = results.load(folder / name).target
    starts = []
    for folder_of_run in (name, f"{name}_rotated"):
        chosen = results.load(folder / folder_of_run).config.initialization
        drawn = STARTS.build(chosen, jax.random.key(0), (3, 4, 4, 4), target)
        starts.append([*map(np.asarray, drawn[:-1]), np.asarray(target.eigenvectors).T @ drawn[-1]])
    return starts


def test_one_step_of_adam_is_that_of_numpy(conducted, tmp_path):
    """Its first step is −η g / (|g| + eps), entry by entry, in the eigenbasis of the target."""
    dynamics = {"name": "gradient_descent", "step_size": 0.1, "steps": 1}
    study = {"name": "optimizers", "optimizers": [{"name": "adam", "step_size": 0.01}]}
    config = configuration(dynamics=dynamics, study=study, record={"count": 1}, seeds=1)
    studies.conduct(config, tmp_path)
    generators = []
    for layers in layers_of(conducted, "adam"):
        spectrum = 1 / np.arange(1, 5) ** 2.0
        _, gradient = synthetic.loss_and_gradient(synthetic._product(layers), spectrum, 0.0)
        gradients = synthetic._pull_back(layers, gradient)
        moved = [w - 0.01 * g / (abs(g) + 1e-8) for w, g in zip(layers, gradients, strict=True)]
        generators.append(synthetic._product(moved))
    with (tmp_path / "optimizers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    expected = np.linalg.norm(generators[0] - generators[1]) / np.linalg.norm(generators[0])
    assert float(row["deviation_to_the_end"]) == pytest.approx(expected, rel=1e-6)
    assert row["excess_effective_rank"] == "" and expected > 0.1
    vectors = results.load(tmp_path / "adam").dataset["target_eigenvectors"].values
    for name, generator in zip(("adam", "adam_rotated"), generators, strict=True):
        last = results.load(tmp_path / name).dataset["end_to_end"].values[0, -1]
        np.testing.assert_allclose(last, vectors @ generator, rtol=1e-6, atol=1e-12)


def test_both_runs_of_an_optimizer_are_those_of_the_job(conducted):
    folder, _ = conducted
    plain, rotated = (results.load(folder / name) for name in ("adam", "adam_rotated"))
    same = Choice("rotated", (("start", plain.config.initialization),))
    assert plain.config.initialization.name == "small"
    assert rotated.config == dataclasses.replace(plain.config, initialization=same)
    assert plain.config.study is None and dict(plain.config.dynamics.options)["steps"] == 400
    first, other = (run.dataset["initial_end_to_end"].values for run in (plain, rotated))
    np.testing.assert_allclose(other, first, rtol=0, atol=1e-14 * np.linalg.norm(first))
    imbalances = [run.dataset["imbalance"].isel(record=0) for run in (plain, rotated)]
    np.testing.assert_allclose(*imbalances, rtol=1e-10)
    one, two = layers_of(conducted, "adam")
    assert not np.allclose(one[0], two[0], atol=1e-3)


def test_findings_name_every_file_and_say_what_holds(conducted, found):
    folder, findings = conducted
    runs = ["flow", *(f"{name}{kind}" for name in NAMES for kind in ("", "_rotated"))]
    assert findings.results == [folder / name / "result.nc" for name in runs]
    assert findings.tables == [folder / "optimizers.csv"]
    stems = [f"{name}.{kind}" for name in ("gap", "rank", "deviation") for kind in ("pdf", "png", "data.csv")]
    assert [path.name for path in findings.figures] == stems
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*findings.results, *findings.tables, *findings.figures}
    assert [row[0] for row in findings.rows] == ["flow", *NAMES]
    assert {len(row) for row in findings.rows} == {len(findings.columns)}
    assert [row[1:3] for row in findings.rows[1:3]] == [("0.1", "2 of 2"), ("0.025", "2 of 2")]
    assert findings.notes[0] == (
        "equivariant while learning (deviation at most 1.5e-08): descent, muon; not: adam"
    )
    assert findings.notes[1].startswith(
        "of low rank (at equal gap at most 0.25 modes above the flow): descent"
    )
    assert findings.notes[2] == "both: descent"
    worst = max(float(np.median(trial.final_gap)) for trial in found.trials.values())
    assert findings.score == worst and not findings.interrupted


def test_the_table_holds_every_optimizer_and_seed(conducted, found):
    folder, _ = conducted
    with (folder / "optimizers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["optimizer"], int(row["seed"])) for row in rows] == [(n, s) for n in NAMES for s in (0, 1)]
    assert {row["outcome"] for row in rows} == {"reached_end"}
    for row in rows:
        trial, lane = found.trials[row["optimizer"]], int(row["seed"])
        expected = {
            "step_size": trial.step_size,
            "final_relative_gap": trial.final_gap[lane],
            "effective_rank_half_learnt": trial.learning.half[lane],
            "flow_effective_rank_half_learnt": found.flow.half[lane],
            "excess_effective_rank": trial.excess[lane],
            "deviation_while_learning": trial.while_learning[lane],
            "deviation_to_the_end": trial.in_all[lane],
        }
        assert {name: float(row[name]) for name in expected} == expected


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    with pytest.raises(InvalidOption, match=r"folder: got .*; takes one without results; this one has flow"):
        studies.conduct(configuration(), folder)


# --- the comparison, of results made by hand ------------------------------------------------------


def made(scale: float = 0.0, seeds: int = 2):
    """A run of NumPy with all its generators, moved by `scale` relative to their size after the start."""
    dataset = synthetic.gaussian(seeds=seeds).dataset.copy(deep=True)
    count = dataset.sizes["record"]
    trajectory = np.repeat(dataset["initial_end_to_end"].values[:, None], count, axis=1)
    trajectory = trajectory * (1 + scale * np.arange(count) / (count - 1))[:, None, None]
    dataset["end_to_end"] = (("seed", "record", "feature", "latent"), trajectory)
    return results.Result(dataset)


def test_levels_are_reached_between_records():
    values = np.array([0.0, 0.5, 0.4, 1.0])
    places = comparison.first_reached(values, np.array([-1, 0, 0.25, 0.5, 0.7, 1.0, 1.1]))
    np.testing.assert_allclose(places, [0, 0, 0.5, 1, 2.5, 3, np.nan])


def test_ranks_at_equal_gap_are_those_of_the_records():
    result = made()
    gaps = result.dataset["relative_gap"].values
    assert np.all(np.diff(gaps) < 0)
    learning = comparison.learning(result, np.array([True, False]))
    ranks = result.dataset["effective_rank"].values[0]
    expected = np.interp(PROGRESS, 1 - gaps[0] / gaps[0, 0], ranks)
    np.testing.assert_allclose(learning.ranks[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(learning.median, learning.ranks[0])
    assert np.isnan(learning.ranks[1]).all() and np.isnan(learning.half[1])
    leading = result.dataset["singular_values"].values[0, :, 0]
    optimal = result.dataset["optimal_singular_values"].values[0]
    if leading[0] >= optimal / 2:
        assert learning.half[0] == ranks[0]
    else:
        assert learning.half[0] == pytest.approx(np.interp(optimal / 2, leading, ranks))


def test_deviation_until_the_gap_is_closed_and_in_all():
    found = comparison.compare(made(), {"descent": (made(), made(0.1))}, step_size=0.1)
    trial = found.trials["descent"]
    count = len(trial.deviation)
    np.testing.assert_allclose(trial.deviation, 0.1 * np.arange(count) / (count - 1), atol=1e-15)
    np.testing.assert_allclose(trial.in_all, 0.1)
    gaps = made().dataset["relative_gap"].values
    closed = np.argmax(gaps <= (1 - PROGRESS[-1]) * gaps[:, :1], axis=1)
    assert np.all(closed > 0) and np.all(closed < count - 1)
    np.testing.assert_allclose(trial.while_learning, 0.1 * closed / (count - 1))
    assert trial.learnt == np.median(made().dataset["step"].values[[0, 1], closed])
    np.testing.assert_array_equal(trial.excess, 0)
    assert comparison.equivariant(found, "descent") is False and comparison.low_rank(found, "descent")


def test_other_starts_and_other_records_are_mistakes():
    away = made()
    away.dataset["end_to_end"].values[1] *= 1.01
    with pytest.raises(ValueError, match="different generators"):
        comparison.compare(made(), {"adam": (made(), away)}, step_size=0.1)
    with pytest.raises(ValueError, match="different generators"):
        comparison.compare(made(), {"adam": (away, away)}, step_size=0.1)
    late = made()
    late.dataset["step"].values[:] += 1
    with pytest.raises(ValueError, match="different steps"):
        comparison.compare(made(), {"adam": (made(), late)}, step_size=0.1)
    with pytest.raises(InvalidOption, match="pairs: got nothing"):
        comparison.compare(made(), {}, step_size=0.1)


def diverged(lanes: tuple[int, ...]):
    return synthetic.with_diverged(made(), lanes)


@pytest.mark.parametrize("which", [0, 1])
def test_seeds_that_diverged_are_left_out(which):
    pair = (made(), diverged((0,))) if which else (diverged((0,)), made())
    found = comparison.compare(made(), {"adam": pair}, step_size=0.1)
    trial = found.trials["adam"]
    assert trial.outcome.tolist() == ["diverged", "reached_end"]
    assert trial.compared.tolist() == [False, True]
    for values in (trial.final_gap, trial.excess, trial.while_learning, trial.in_all, trial.learning.half):
        assert np.isnan(values).tolist() == [True, False]
    assert "adam: 1 of 2 seeds are left out, 1 of them diverged" in optimizers.sentences(found)


def test_an_optimizer_that_diverged_has_no_verdict():
    pair = (diverged((0, 1)), made())
    found = comparison.compare(made(), {"adam": pair, "descent": (made(), made())}, step_size=0.1)
    assert comparison.equivariant(found, "adam") is None and comparison.low_rank(found, "adam") is None
    notes = optimizers.sentences(found)
    assert notes[0].endswith(": descent; not: none") and "both: descent" in notes
    assert optimizers.table(found)[1][3:] == ("–",) * 5
    for draw in figures.optimizers.FIGURES.values():
        drawn(draw(found))


def test_notes_say_what_did_not_converge_or_learn():
    result = made()
    gaps = result.dataset["relative_gap"].values
    gaps[0] = np.maximum(gaps[0], 0.5 * gaps[0, 0])
    notes = optimizers.sentences(comparison.compare(made(), {"adam": (result, made())}, step_size=0.1))
    assert "adam: 1 of 2 seeds end above a relative gap of 0.001" in notes
    assert "adam: 1 of 2 seeds, or the flow, close less than 95% of the gap" in notes


def test_notes_say_where_runs_part_after_learning(found):
    trial = found.trials["descent"]._replace(in_all=np.array([1e-3, 1e-9]), learnt=120.0)
    notes = optimizers.sentences(found._replace(trials={"descent": trial}))
    expected = (
        "descent: 95% of the gap is closed by step 120; after that the two runs part, to a deviation of"
    )
    assert f"{expected} 1.0e-03" in notes


def test_claims_are_of_the_properties_that_were_measured(found):
    gauge, rank = optimizers.claims(found)
    spoiled = {
        name: trial._replace(
            while_learning=np.ones_like(trial.while_learning), excess=np.full_like(trial.excess, 9.0)
        )
        for name, trial in found.trials.items()
    }
    worse_gauge, worse_rank = optimizers.claims(found._replace(trials=spoiled))
    assert gauge.held and not worse_gauge.held and not worse_rank.held
    assert worse_gauge.measured == worse_rank.measured == "none"
    assert rank.predicted == worse_rank.predicted != "none"


# --- the runs, and what is refused ----------------------------------------------------------------


def step_sizes(*chosen: object, **changes: object) -> dict[str, float]:
    _, pairs = optimizers.plan(configuration(**changes), [Choice.of(each) for each in chosen])
    jobs = {name: pair[name] for name, pair in pairs.items()}
    return {name: dict(job.dynamics.options)["step_size"] for name, job in jobs.items()}


def test_default_step_sizes_follow_from_the_job():
    dynamics = {"name": "gradient_descent", "step_size": 0.3, "steps": 100}
    target = {"name": "power_law", "dimension": 5, "largest": 64.0}
    names = ("descent", "momentum", "nesterov", "muon", "adam", "rmsprop")
    sizes = step_sizes(*names, dynamics=dynamics, target=target)
    layer = 64 ** (1 / 6)
    expected = (0.3, 0.03, 0.03, 0.1 * layer, 0.02 * layer, 0.02 * layer)
    np.testing.assert_allclose([sizes[name] for name in names], expected, rtol=1e-12)


def test_options_of_an_optimizer_and_its_step_size_are_its_own():
    chosen = [{"name": "momentum", "decay": 0.5}, {"name": "adam", "step_size": 0.25, "b1": 0.5}]
    sizes = step_sizes(*chosen)
    assert sizes == {"momentum": pytest.approx(0.05), "adam": 0.25}
    _, pairs = optimizers.plan(configuration(), [Choice.of(each) for each in chosen])
    options = dict(pairs["adam"]["adam_rotated"].dynamics.options)
    assert options["optimizer"] == Choice("adam", (("b1", 0.5),)) and options["steps"] == 400


def test_the_flow_goes_as_far_as_plain_descent():
    flow, _ = optimizers.plan(configuration(), [Choice("adam")])
    assert flow.dynamics == Choice("gradient_flow", (("end_time", 40.0),))
    assert flow.initialization == configuration().initialization and flow.record.end_to_end


def study(*chosen: object) -> dict[str, object]:
    return {"study": {"name": "optimizers", "optimizers": chosen}}


def motion(**changes: object) -> dict[str, object]:
    return {"dynamics": OPTIONS["dynamics"] | changes}


REFUSALS = [
    (study(), r"study.optimizers: got \[\]; takes at least one optimizer"),
    (study("adma"), r"study.optimizers: got adma; takes one of adam, .*did you mean adam\?"),
    (study("adam", "adam"), "study.optimizers: got adam twice; takes different optimizers"),
    (study({"name": "adam", "b1": 2.0}), "study.optimizers.b1: got 2.0; takes a number from 0 to below 1"),
    (study({"name": "adam", "beta": 0.5}), "study.optimizers.beta: got 0.5; takes one of b1, b2, eps"),
    (study({"name": "momentum", "decay": "a"}), "study.optimizers.decay: got 'a'; takes a number"),
    (study({"name": "adam", "step_size": 0.0}), "study.optimizers.adam.step_size: got 0.0; takes a finite"),
    (study({"name": "adam", "step_size": "a"}), "study.optimizers.adam.step_size: got 'a'; takes a number"),
    (study(3), r"study.optimizers: got \(3,\); takes a list, each a name with options"),
    ({"study": {"name": "optimizers", "more": 1}}, "study.more: got 1; takes one of optimizers"),
    ({"dynamics": {"name": "gradient_flow"}}, "dynamics: got gradient_flow; takes gradient_descent in this"),
    (motion(optimizer="adam"), "dynamics.optimizer: got adam; takes descent in this study"),
    (motion(gap_tolerance=1e-3), "dynamics.gap_tolerance: got 0.001; takes null in this study"),
    (motion(step_size=-1.0), "dynamics.step_size: got -1.0; takes a finite number above 0"),
    (motion(steps=10), "record.count: got 100; takes an integer up to steps = 10"),
    ({"network": {"depth": 1}}, "network.depth: got 1; takes 2 or more in this study"),
    ({"initialization": {"name": "small", "scale": 0.0}}, "initialization.scale: got 0.0; takes a finite"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_compiles(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(simulate, "Lanes", None)
    with pytest.raises(InvalidOption, match=message) as caught:
        studies.conduct(configuration(**changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- Ctrl-C ---------------------------------------------------------------------------------------


def interrupted_at(run: int):
    """A stand-in for `simulate.run_together` that is interrupted in that run; 0: in none."""
    calls = []

    def stand_in(problems, on_progress, places):
        (problem,) = problems
        calls.append(problem)
        rotated = problem.config.initialization.name == "rotated"
        dataset = made(0.1 if rotated else 0.0).dataset
        attributes = {"interrupted": int(len(calls) == run), "configuration": problem.config.json()}
        return [results.Result(dataset.assign_attrs(attributes))]

    return stand_in


@pytest.mark.parametrize("run", [1, 3, 4, 7])
def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, run):
    monkeypatch.setattr(simulate, "run_together", interrupted_at(run))
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and findings.score == np.inf
    assert findings.notes[-1] == f"interrupted: {run - 1} of 7 runs finished; all that was recorded is kept"
    assert len(findings.results) == run and all(path.exists() for path in findings.results)
    pairs = max(0, run - 2) // 2
    assert [row[0] for row in findings.rows] == (["flow", *NAMES[:pairs]] if pairs else [])
    assert bool(findings.figures) == bool(findings.tables) == (pairs > 0)


def test_the_command_ends_with_130(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "run_together", interrupted_at(4))
    with pytest.raises(SystemExit) as end:
        train.train(Training(configuration()), tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert end.value.code == command_line.INTERRUPTED
    assert out[0].split()[:2] == ["optimizer", "step"] and out[2].split()[0] == "descent"


# --- figures --------------------------------------------------------------------------------------


def drawn(figure):
    """The figure's only axes, after a check that it fits a column and can be read."""
    check_readable(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() and axes.get_ylabel()
    return axes


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.lines if line.get_label()[0] != "_"}


def test_gap_and_rank_show_every_optimizer_and_the_flow(found):
    gap, rank = (drawn(figures.optimizers.FIGURES[name](found)) for name in ("gap", "rank"))
    assert gap.get_yscale() == "log" and rank.get_yscale() == "linear"
    assert list(lines(gap)) == list(lines(rank)) == [*NAMES, "flow"]
    for name, trial in found.trials.items():
        np.testing.assert_array_equal(lines(gap)[name], np.transpose([trial.gap.axis, trial.gap.median]))
        np.testing.assert_array_equal(lines(rank)[name], np.transpose([PROGRESS, trial.learning.median]))
    flow = np.transpose([found.flow_gap.axis, found.flow_gap.median])
    np.testing.assert_array_equal(lines(gap)["flow"], flow)
    np.testing.assert_array_equal(lines(rank)["flow"], np.transpose([PROGRESS, found.flow.median]))
    assert gap.get_title(loc="left") == rank.get_title(loc="left") == "median of 2 seeds"


def test_deviation_shows_where_learning_ends_and_what_is_rounding(found):
    axes = drawn(figures.optimizers.deviation(found))
    shown = lines(axes)
    assert axes.get_yscale() == "log" and list(shown) == list(NAMES)
    for name, trial in found.trials.items():
        np.testing.assert_array_equal(
            shown[name][:, 1], np.where(trial.deviation > 0, trial.deviation, np.nan)
        )
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(np.ravel(dots), [trial.learnt for trial in found.trials.values()])
    (level,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert set(level.get_ydata()) == {found.rounding}
    assert axes.get_title(loc="left") == "median of 2 seeds; dots: 95% of the gap closed"


def test_figures_of_optimizers_of_the_users_and_of_seeds_left_out(found):
    trial = found.trials["adam"]
    trials = {f"mine_{number}": trial for number in range(4)}
    trials["adam"] = trial._replace(compared=np.array([True, False]))
    for draw in figures.optimizers.FIGURES.values():
        axes = drawn(draw(found._replace(trials=trials)))
        labels = list(lines(axes))
        assert labels[:5] == ["mine_0", "mine_1", "mine_2", "mine_3", "adam (1 left out)"]


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=optimizers", *overrides])
    return command_line.training(command_line.plain(composed)).config


def test_the_experiment_is_what_it_should_be():
    config = experiment()
    assert config.study == Choice(
        "optimizers", (("optimizers", tuple(each.name for each in optimizers.EVERY)),)
    )
    assert config.initialization.name == "small"
    fewer = experiment("study.optimizers=[adam,{name: momentum, decay: 0.8}]")
    assert fewer.study is not None
    chosen = studies.STUDIES.resolved(fewer.study)
    _, pairs = optimizers.plan(fewer, dict(chosen.options)["optimizers"])
    assert list(pairs) == ["adam", "momentum"]


@pytest.mark.slow
def test_the_experiment_tells_optimizers_apart(tmp_path):
    findings = studies.conduct(experiment("seeds=2"), tmp_path)
    assert findings.notes[:3] == [
        "equivariant while learning (deviation at most 1.5e-08): descent, momentum, nesterov, muon; "
        "not: adam, rmsprop",
        "of low rank (at equal gap at most 0.25 modes above the flow): descent, momentum, nesterov; "
        "not: muon, adam, rmsprop",
        "both: descent, momentum, nesterov",
    ]
    assert [note.split(":")[0] for note in findings.notes[3:]] == ["muon"]
    assert findings.score < comparison.CONVERGED
