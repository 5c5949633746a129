"""The study of the largest step size that converges: the search, its numbers, files, figures, refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from readable import check_readable
from refusals import check_refused

from bwdln import figures, program, results, simulate, studies
from bwdln.comparison import step_size as comparison
from bwdln.comparison.step_size import Bracket, Case
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption
from bwdln.studies import step_size
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEPTHS, SMALLEST, TAU = (1, 3), (0.2, 0.6), 0.01
STUDY = {
    "name": "step_size",
    "depths": DEPTHS,
    "smallest_eigenvalues": SMALLEST,
    "largest_step_size": 2.0,
    "tolerance": 0.01,
}
OPTIONS = {
    "target": {"name": "geometric", "dimension": 3, "largest": 1.5},
    "network": {},
    "initialization": {"name": "close_to_target", "scale": 1e-5, "tau": TAU},
    "loss": {"name": "bures_wasserstein", "tau": TAU},
    "dynamics": {"name": "gradient_descent", "step_size": 0.05, "steps": 800},
    "record": {"count": 1},
    "seeds": 1,
    "study": STUDY,
}


def configuration(**changes: object) -> Config:
    return from_mapping(OPTIONS | changes)


def stability_limit(depth: int, largest: float = 1.5, tau: float = TAU) -> float:
    """2 / λ_max of docs/theory.md §4 at the minimizer of full rank, by hand."""
    learned = largest - tau
    return largest / (depth * learned ** ((depth - 1) / depth) * learned)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, studies.conduct(configuration(), folder)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- numbers --------------------------------------------------------------------------------------


def test_the_stability_limit_is_measured_within_one_percent(conducted):
    folder, found = conducted
    rows = read(folder / "step_size.csv")
    assert [(int(row["depth"]), float(row["smallest_eigenvalue"])) for row in rows] == [
        (depth, smallest) for depth in DEPTHS for smallest in SMALLEST
    ]
    for row in rows:
        expected = stability_limit(int(row["depth"]))
        assert float(row["stability_limit"]) == pytest.approx(expected, rel=1e-9)
        low, high = float(row["converges"]), float(row["does_not_converge"])
        assert 0.997 * expected < high and low < 1.003 * expected and low < high <= 1.01 * low * (1 + 1e-12)
        assert float(row["measured"]) == pytest.approx((low * high) ** 0.5)
        assert float(row["measured_over_limit"]) == pytest.approx(1, abs=0.01)
    assert 0 < found.score <= 0.01


def test_the_papers_step_sizes_are_admitted_and_far_below(conducted):
    folder, _ = conducted
    admissible = {}
    for row in read(folder / "step_size.csv"):
        etas = [float(row[name]) for name in ("eta_1", "eta_2", "eta_3")]
        assert row["failing"] == "" and float(row["admissible"]) == min(etas) > 0
        admissible[int(row["depth"]), float(row["smallest_eigenvalue"])] = min(etas)
        assert min(etas) < 0.1 * float(row["measured"])
    assert admissible[1, 0.2] < admissible[1, 0.6] and admissible[3, 0.2] < 1e-3 * admissible[1, 0.2]


def test_all_rounds_of_a_depth_are_one_program(conducted):
    folder, _ = conducted
    tried = {(row["round"], row["depth"]) for row in read(folder / "step_size_trials.csv")}
    assert tried == {(str(number), str(depth)) for number in (1, 2, 3) for depth in DEPTHS}
    problems = step_size.plan(configuration(), DEPTHS, SMALLEST, folder / "another")
    for depth in DEPTHS:
        compiled = program.program(problems[Case(depth, 0.2)].static)
        assert [each._cache_size() for each in compiled] == [1, 1, 1]


def test_trials_tell_growth_from_decay(conducted):
    folder, _ = conducted
    for row in read(folder / "step_size_trials.csv"):
        shrank = float(row["final_relative_gap"]) < float(row["initial_relative_gap"])
        assert row["converges"] == str(shrank)
        size, limit = float(row["step_size"]), stability_limit(int(row["depth"]))
        assert shrank == (size < limit) or abs(size / limit - 1) < 0.005


# --- the search -----------------------------------------------------------------------------------


@given(
    limit=st.floats(0.05, 2.0),
    sizes=st.lists(st.floats(0.05, 2.0), min_size=1, max_size=8, unique=True),
)
def test_a_bracket_holds_the_limit_and_never_widens(limit, sizes):
    before = Bracket(0.04, 3.0)
    after = comparison.narrowed(before, {size: size < limit for size in sizes})
    assert before.low <= after.low < limit <= after.high <= before.high
    assert all(size <= after.low or size >= after.high for size in sizes)


def test_what_converges_beyond_a_step_size_that_does_not_is_no_limit():
    assert comparison.narrowed(Bracket(), {0.1: True, 0.2: False, 0.3: True}) == (0.1, 0.2)
    assert comparison.narrowed(Bracket(), {0.2: False}) == (0.0, 0.2)
    assert not Bracket(0.0, 0.2).closed and np.isnan(Bracket(0.1).middle)


def stand_in(limit, stop_at: int | None = None):
    """For `simulate.run_together`: descent that converges below a limit by depth; and its calls."""
    calls = []

    def run_together(problems, on_progress, places):
        calls.append([problem.config for problem in problems])
        return [_result(problem, limit, len(calls) == stop_at) for problem in problems]

    return run_together, calls


def _result(problem, limit, interrupted: bool) -> results.Result:
    """As much of a result as the study looks at."""
    depth = int(problem.lane.depth)
    grows = float(problem.lane.dynamics["step_size"]) >= limit(depth)
    vectors, values = np.asarray(problem.target.eigenvectors), np.asarray(problem.target.eigenvalues)
    generator = vectors * np.sqrt(values - dict(problem.config.loss.options).get("tau", 0.0))
    gaps = np.array([[1e-12, 1e-9 if grows else 1e-20]])
    return results.Result(
        xarray.Dataset(
            {
                "relative_gap": (("seed", "record"), gaps),
                "loss": (("seed", "record"), gaps),
                "outcome": ("seed", np.array(["reached_end"], dtype=object)),
                "initial_end_to_end": (("seed", "feature", "latent"), generator[None]),
                "target_eigenvalues": ("eigenvalue", values),
                "target_eigenvectors": (("feature", "eigenvalue"), vectors),
            },
            {"seed": [0], "record": [0, 1]},
            {
                "configuration": problem.config.json(),
                "depth": float(depth),
                "interrupted": int(interrupted),
            },
        )
    )


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_the_search_comes_within_the_tolerance_in_three_rounds(tmp_path, monkeypatch, tolerance):
    run_together, calls = stand_in(lambda depth: 0.7 / depth)
    monkeypatch.setattr(simulate, "run_together", run_together)
    study = STUDY | {"tolerance": tolerance}
    findings = studies.conduct(configuration(study=study), tmp_path)
    assert len(calls) == 3 * len(DEPTHS)  # all λ_min of a depth together
    for row in read(tmp_path / "step_size.csv"):
        low, high = float(row["converges"]), float(row["does_not_converge"])
        limit = 0.7 / int(row["depth"])
        assert low < limit <= high <= low * (1 + tolerance) * (1 + 1e-12)
    assert "tolerance" not in "".join(findings.notes)


def test_limits_outside_of_the_range_are_said_to_be(tmp_path, monkeypatch):
    run_together, calls = stand_in(lambda depth: 5.0 if depth == 1 else 0.01)
    monkeypatch.setattr(simulate, "run_together", run_together)
    findings = studies.conduct(configuration(), tmp_path)
    assert len(calls) == len(DEPTHS)  # nothing more to try
    assert [row[2] for row in findings.rows] == ["above 2", "above 2", "below 0.05", "below 0.05"]
    assert "depth 1, λ_min 0.2: 2 converges; try a larger study.largest_step_size" in findings.notes
    assert "depth 3, λ_min 0.6: 0.05 does not converge; try a smaller dynamics.step_size" in findings.notes
    assert findings.score == np.inf
    assert read(tmp_path / "step_size.csv")[0]["measured"] == ""


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_ctrl_c_keeps_the_brackets_found(tmp_path, monkeypatch, stop_at):
    run_together, calls = stand_in(lambda depth: 0.7 / depth, stop_at)
    monkeypatch.setattr(simulate, "run_together", run_together)
    findings = studies.conduct(configuration(), tmp_path)
    assert findings.interrupted and len(calls) == stop_at
    number = (stop_at + 1) // 2
    said = f"interrupted in round {number} of 3; brackets are as wide as the table says"
    assert findings.notes[-1] == said
    assert len(findings.rows) == {1: 0, 2: 2, 4: 4}[stop_at]
    assert bool(findings.figures) == bool(findings.tables) == (stop_at > 1)


def two_seeds(scales: tuple[float, float], gaps: list[list[float]]) -> results.Result:
    """A run of two seeds that start at these multiples of the minimizer, with these gaps."""
    (problem,) = step_size.plan(configuration(), (2,), (0.2,), Path("nowhere")).values()
    first = _result(problem, stability_limit, False).dataset
    both = xarray.concat([first, first], "seed", data_vars="minimal", coords="minimal", compat="override")
    both["initial_end_to_end"] = both["initial_end_to_end"] * xarray.DataArray(list(scales), dims="seed")
    both["relative_gap"] = (("seed", "record"), np.array(gaps))
    return results.Result(both.assign_attrs(first.attrs))


@pytest.mark.parametrize("order", [1, -1])
def test_the_seed_the_paper_admits_most_for_counts(order):
    case, shrinking = Case(2, 0.2), [[1e-12, 1e-20]] * 2
    bracket = {case: Bracket(0.3, 0.4)}
    near = comparison.compare(bracket, {case: two_seeds((1.01, 1.01), shrinking)}).admissible
    far = comparison.compare(bracket, {case: two_seeds((1.1, 1.1), shrinking)}).admissible
    both = comparison.compare(bracket, {case: two_seeds((1.01, 1.1)[::order], shrinking)}).admissible
    assert both == near > far > 0


@pytest.mark.parametrize("last", [1e-11, np.inf, np.nan])
def test_every_seed_has_to_converge(last):
    assert comparison.converges(two_seeds((1.0, 1.0), [[1e-12, 1e-20], [1e-12, 1e-13]]))
    assert not comparison.converges(two_seeds((1.0, 1.0), [[1e-12, 1e-20], [1e-12, last]]))


def test_without_a_perturbation_the_paper_admits_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "run_together", stand_in(stability_limit)[0])
    start = {"name": "close_to_target", "scale": 1e-5}
    findings = studies.conduct(configuration(loss="bures_wasserstein", initialization=start), tmp_path)
    (said,) = [note for note in findings.notes if "paper" in note]
    assert said.startswith("the paper admits no step size in 4 of 4 cases: perturbed: τ = 0")
    assert {row[5:] for row in findings.rows} == {("–", "–")}
    for row in read(tmp_path / "step_size.csv"):
        assert float(row["stability_limit"]) == pytest.approx(
            1.5 / (1.5 * int(row["depth"])) * 1.5 ** (1 / int(row["depth"]) - 1)
        )


# --- files ----------------------------------------------------------------------------------------


def test_findings_name_every_file(conducted):
    folder, found = conducted
    assert found.results == []
    assert [path.name for path in found.tables] == ["step_size.csv", "step_size_trials.csv"]
    stems = [
        f"{name}.{kind}" for name in ("depth", "smallest_eigenvalue") for kind in ("pdf", "png", "data.csv")
    ]
    assert [path.name for path in found.figures] == stems
    assert {path for path in folder.rglob("*") if path.is_file()} == {*found.tables, *found.figures}
    assert {len(row) for row in found.rows} == {len(found.columns)} and len(found.rows) == 4
    assert found.notes[0].startswith("the largest step size that converges is within 0.")
    assert found.notes[0].endswith("% of the stability limit in 4 of 4 cases")
    assert not found.interrupted


def test_nothing_is_replaced(conducted):
    folder, _ = conducted
    message = r"folder: got .*; takes one without results; this one has step_size.csv, step_size_trials.csv"
    with pytest.raises(InvalidOption, match=message):
        studies.conduct(configuration(), folder)


# --- refusals -------------------------------------------------------------------------------------


def changed(**options: object) -> dict:
    return {"study": STUDY | options}


REFUSALS = [
    (changed(depths=[]), r"study.depths: got \[\]; takes at least one"),
    (changed(depths=[2, 2]), "study.depths: got 2 twice; takes different"),
    (changed(depths=[0]), "study.depths: got 0; takes integers from 1"),
    (changed(depths=[1.5]), "study.depths: got .*; takes a list, each an integer"),
    (changed(smallest_eigenvalues=[]), r"study.smallest_eigenvalues: got \[\]; takes at least"),
    (
        changed(smallest_eigenvalues=[0.01]),
        "study.smallest_eigenvalues: got 0.01; takes numbers above loss.tau = 0.01, at most .* = 1.5",
    ),
    (changed(smallest_eigenvalues=[2.0]), "study.smallest_eigenvalues: got 2; takes numbers above"),
    (
        changed(largest_step_size=0.01),
        "study.largest_step_size: got 0.01; takes a finite number above dynamics.step_size = 0.05",
    ),
    (changed(tolerance=0.0), "study.tolerance: got 0.0; takes a number from 1e-6"),
    ({"target": {"name": "zipf"}}, "target: got zipf; takes geometric"),
    ({"target": OPTIONS["target"] | {"rank": 2}}, "target.rank: got 2; takes null"),
    (
        {"dynamics": {"name": "gradient_flow", "end_time": 1.0}},
        "dynamics: got gradient_flow; takes gradient_descent",
    ),
    (
        {"dynamics": OPTIONS["dynamics"] | {"optimizer": "adam"}},
        "dynamics.optimizer: got adam; takes descent",
    ),
    (
        {"dynamics": OPTIONS["dynamics"] | {"schedule": "cosine"}},
        "dynamics.schedule: got cosine; takes constant",
    ),
    ({"dynamics": OPTIONS["dynamics"] | {"gap_tolerance": 1e-9}}, "dynamics.gap_tolerance: got 1e-09"),
    ({"dynamics": OPTIONS["dynamics"] | {"step_size": -1.0}}, "dynamics.step_size: got -1"),
    ({"initialization": "xavier_normal"}, "initialization: got xavier_normal; takes close_to_target"),
    ({"initialization": {"name": "close_to_target"}}, "initialization.tau: got 0.0; takes loss.tau = 0.01"),
    ({"network": {"bottleneck": 2}}, "network: got a bottleneck of 2; takes a network as wide as"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_bad_input_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, message):
    check_refused(configuration(**changes), tmp_path, monkeypatch, message)


def test_claims_hold(conducted):
    assert [claim.held for claim in conducted[1].claims] == [True, True]


def test_claims_fail_where_another_step_size_is_the_largest(limits):
    assert all(claim.held for claim in step_size.claims(limits))
    spoiled = limits._replace(ratio=1.1 * limits.ratio, smaller=0.5 * limits.smaller / limits.smaller.min())
    first, second = step_size.claims(spoiled)
    assert not first.held and not second.held and "1.1" in first.measured


# --- figures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limits():
    cases = [Case(depth, smallest) for depth in (1, 2, 10) for smallest in (0.1, 0.4)]
    problems = step_size.plan(configuration(), (1, 2, 10), (0.1, 0.4), Path("nowhere"))
    brackets = {
        case: Bracket(0.998 * stability_limit(case.depth), 1.002 * stability_limit(case.depth))
        for case in cases
    }
    return comparison.compare(
        brackets, {case: _result(problems[case], stability_limit, False) for case in cases}
    )


def opened(limits):
    """Some brackets are open, and the paper admits nothing."""
    low, high = limits.low.copy(), limits.high.copy()
    low[0], high[-1] = 0, np.inf
    nothing = np.full(len(low), np.nan)
    measured = np.where((low > 0) & (high < np.inf), limits.measured, np.nan)
    ratio = measured / limits.predicted
    return limits._replace(
        low=low, high=high, measured=measured, ratio=ratio, admissible=nothing, smaller=nothing
    )


@pytest.mark.parametrize("damage", [lambda shown: shown, opened], ids=["all", "open brackets"])
@pytest.mark.parametrize("name", figures.step_size.FIGURES)
def test_figures_fit_a_column_and_can_be_read(limits, name, damage):
    figure = figures.step_size.FIGURES[name](damage(limits))
    check_readable(figure)
    assert figure.axes[0].get_yscale() == "log" and figure.axes[-1].get_xlabel()


def test_depth_shows_every_kind_of_step_size_and_how_they_agree(limits):
    figure = figures.step_size.depth(limits)
    upper, lower = figure.axes
    drawn = [line for line in upper.lines if len(line.get_xdata())]
    kinds = (limits.predicted, limits.admissible, limits.measured)
    for place, smallest in enumerate((0.1, 0.4)):
        own = limits.smallest == smallest
        for line, values in zip(drawn[3 * place : 3 * place + 3], kinds, strict=True):
            np.testing.assert_array_equal(line.get_data(), (limits.depth[own], values[own]))
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [
        r"$\lambda_n$ = 0.1",
        r"$\lambda_n$ = 0.4",
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "measured",
        "stability limit",
        "paper's admissible",
    ]
    first, second = lower.containers
    for each, smallest in ((first, 0.1), (second, 0.4)):
        own = limits.smallest == smallest
        np.testing.assert_allclose(each[0].get_ydata(), 100 * (limits.ratio[own] - 1), atol=1e-12)


def test_smallest_eigenvalue_shows_a_color_for_each_depth(limits):
    figure = figures.step_size.smallest_eigenvalue(limits)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$N$ = 1", "$N$ = 2", "$N$ = 10"]
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    np.testing.assert_array_equal(drawn[0].get_data(), ([0.1, 0.4], limits.predicted[:2]))
    assert len({line.get_color() for line in drawn}) == 3


# --- the experiment -------------------------------------------------------------------------------


def experiment(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["+experiment=step_size", *overrides])
    return command_line.training(command_line.plain(composed)).config


def test_the_experiment_covers_the_limits(tmp_path):
    config = experiment()
    options = dict(config.study.options)
    problems = step_size.plan(config, options["depths"], options["smallest_eigenvalues"], tmp_path)
    tau = dict(config.loss.options)["tau"]
    assert tau > 0 and len(problems) == len(options["depths"]) * len(options["smallest_eigenvalues"])
    for case in problems:
        limit = stability_limit(case.depth, 1.0, tau)
        assert dict(config.dynamics.options)["step_size"] < limit < options["largest_step_size"]


@pytest.mark.slow
def test_the_experiment_finds_what_theory_says(tmp_path):
    findings = studies.conduct(experiment(), tmp_path)
    assert findings.score < 0.01 and len(findings.rows) == 12 and not findings.interrupted
    assert len(findings.notes) == 2
