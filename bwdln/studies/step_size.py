"""The largest step size that converges against the stability limit and the paper's admissible one.

Near the balanced minimizer descent converges up to 2 / λ_max of the Hessian; the step sizes that the
paper's theorem admits are smaller by orders of magnitude (docs/theory.md §6). All cases are looked at
together: in every round the step sizes still possible are divided into sections, all of them lanes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bwdln import figures, networks, results
from bwdln.comparison import step_size as comparison
from bwdln.comparison.step_size import Bracket, Case, Limits
from bwdln.config import Config
from bwdln.dynamics.base import DYNAMICS
from bwdln.errors import check
from bwdln.initializations import STARTS
from bwdln.losses import LOSSES
from bwdln.registry import Choice
from bwdln.results import Result
from bwdln.simulate import Problem
from bwdln.studies.base import (
    STUDIES,
    Claim,
    Findings,
    OnProgress,
    check_different,
    prepared,
    run_all,
    write_table,
)
from bwdln.targets import TARGETS

#: How often all lanes are run. A round costs a program for the starts of each depth, a lane nearly
#: nothing: few rounds of many lanes are faster than many rounds that only halve.
ROUNDS = 3

#: The largest step size that converges counts as the predicted one up to this share.
AGREES = 0.01

COLUMNS = (
    "depth",
    "λ_min",
    "largest that converges",
    "stability limit",
    "measured / limit",
    "paper's admissible",
    "times smaller",
)


class Trial(NamedTuple):
    """A step size that was tried in a case, in which round, and how it ended."""

    case: Case
    round: int
    step_size: float
    converges: bool
    initial_gap: float
    final_gap: float


class Search(NamedTuple):
    """What the search came to: brackets by case, a run of each case, all trials, and rounds finished."""

    brackets: dict[Case, Bracket]
    starts: dict[Case, Result]
    trials: list[Trial]
    rounds: int
    interrupted: bool


@STUDIES.register("step_size")
def step_size(
    config: Config,
    folder: Path,
    on_progress: OnProgress | None,
    *,
    depths: tuple[int, ...],
    smallest_eigenvalues: tuple[float, ...],
    largest_step_size: float,
    tolerance: float = 0.005,
) -> Findings:
    """Bisect for the largest step size that converges, from `dynamics.step_size` to `largest_step_size`.

    At every depth, for targets with each of the smallest eigenvalues, until the bracket is within the
    relative `tolerance`. Runs start close to the minimizer; none is saved. Writes `step_size.csv` with one
    row for each case, `step_size_trials.csv` with all that was tried, and the figures. The score is the
    largest relative distance of a measured limit from the predicted one. Ctrl-C keeps what was found.

    Raises `InvalidOption`, before anything compiles, for a dynamics other than plain descent of constant
    step size, a start that is not close to the minimizer of the loss, a target whose smallest eigenvalue
    cannot be set, and for whatever a run refuses.
    """
    sizes = _range(config, largest_step_size, tolerance)
    problems = plan(config, depths, smallest_eigenvalues, folder)
    results.writable(folder)
    search = _search(problems, sizes, tolerance, on_progress)
    notes, rows = [], []
    claimed: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    if search.brackets:
        found = comparison.compare(search.brackets, search.starts)
        files = [_write(found, folder / "step_size.csv"), _write_trials(search, folder)]
        drawn = figures.step_size.save_all(found, folder)
        rows, notes = table(found), sentences(found)
        claimed = claims(found)
        known = found.ratio[np.isfinite(found.ratio)]
        score = float(np.max(np.abs(known - 1))) if known.size else np.inf
    if search.interrupted:
        said = f"interrupted in round {search.rounds + 1} of {ROUNDS}; brackets are as wide as the table says"
        notes.append(said)
    return Findings(COLUMNS, rows, notes, [], files, drawn, score, search.interrupted, claimed)


# --- the cases ------------------------------------------------------------------------------------


def plan(
    config: Config, depths: Sequence[int], smallest: Sequence[float], folder: Path
) -> dict[Case, Problem]:
    """The problem of each case, at the step size of the configuration: all of them checked.

    Raises `InvalidOption` for what cannot be run or compared.
    """
    _check_lists(depths, smallest)
    _check_descent(config)
    _check_start(config)
    takes = "geometric, whose smallest eigenvalue this study sets"
    check(config.target.name == "geometric", "target", config.target.name, takes)
    taken = [name for name in ("step_size.csv", "step_size_trials.csv") if (folder / name).exists()]
    check(not taken, "folder", folder, f"one without results; this one has {', '.join(taken)}")
    cases = [Case(depth, each) for depth in sorted(depths) for each in sorted(smallest)]
    problems = prepared({_name(case): _of_case(config, case) for case in cases}, folder)
    for problem in problems.values():
        dimension, narrowest = problem.target.dimension, networks.bottleneck(problem.widths)
        takes = f"a network as wide as the data dimension {dimension}"
        check(narrowest == dimension, "network", f"a bottleneck of {narrowest}", takes)
    return dict(zip(cases, problems.values(), strict=True))


def _check_lists(depths: Sequence[int], smallest: Sequence[float]) -> None:
    for option, values in (("depths", depths), ("smallest_eigenvalues", smallest)):
        check(len(values) > 0, f"study.{option}", "[]", "at least one number")
        check_different(f"study.{option}", values)
    for depth in depths:
        check(depth >= 1, "study.depths", depth, "integers from 1")


def _check_descent(config: Config) -> None:
    """Refuse what theory has no stability limit of, and what ends a run early."""
    motion = DYNAMICS.resolved(config.dynamics)
    check(motion.name == "gradient_descent", "dynamics", motion.name, "gradient_descent")
    options = dict(motion.options)
    for part, plain in (("optimizer", "descent"), ("schedule", "constant")):
        name = options[part].name if part in options else plain
        check(name == plain, f"dynamics.{part}", name, f"{plain} in this study")
    tolerance = options.get("gap_tolerance")
    takes = "null in this study, which looks at where runs end"
    check(tolerance is None, "dynamics.gap_tolerance", tolerance, takes)


def _check_start(config: Config) -> None:
    """Refuse starts that are not close to the minimizer of this loss."""
    start = STARTS.resolved(config.initialization)
    takes = "close_to_target: stability is decided near the minimizer"
    check(start.name == "close_to_target", "initialization", start.name, takes)
    tau, own = (each.option("tau", 0.0) for each in (LOSSES.resolved(config.loss), start))
    check(tau == own, "initialization.tau", own, f"loss.tau = {tau:g}")


def _of_case(config: Config, case: Case) -> Config:
    """The same job at this depth, with a target of this smallest eigenvalue."""
    target = dict(TARGETS.resolved(config.target).options)
    largest, tau = target.get("largest", 1.0), config.loss.option("tau", 0.0)
    takes = f"numbers above loss.tau = {tau:g}, at most target.largest = {largest:g}"
    check(tau < case.smallest <= largest, "study.smallest_eigenvalues", f"{case.smallest:g}", takes)
    check(target.get("rank") is None, "target.rank", target.get("rank"), "null: the target has full rank")
    target["condition_number"] = largest / case.smallest
    return dataclasses.replace(
        config,
        target=Choice("geometric", tuple(sorted(target.items()))),
        network=dataclasses.replace(config.network, depth=case.depth),
        study=None,
    )


def _name(case: Case) -> str:
    return f"depth_{case.depth}_smallest_{case.smallest:.12g}"


# --- the search -----------------------------------------------------------------------------------


def _range(config: Config, largest: float, tolerance: float) -> tuple[float, float]:
    """The smallest and the largest step size to try."""
    smallest = config.dynamics.option("step_size")
    if isinstance(smallest, int | float):  # whatever else it is, the dynamics refuses
        takes = f"a finite number above dynamics.step_size = {smallest:g}, where the search begins"
        check(smallest < largest < np.inf, "study.largest_step_size", f"{largest:g}", takes)
    check(1e-6 <= tolerance < 1, "study.tolerance", tolerance, "a number from 1e-6 to below 1")
    return float(smallest or 0), largest


def _search(
    problems: Mapping[Case, Problem],
    sizes: tuple[float, float],
    tolerance: float,
    on_progress: OnProgress | None,
) -> Search:
    """Round by round, the step sizes of all cases together; a depth is one program in all rounds."""
    sections = math.ceil((math.log(sizes[1] / sizes[0]) / math.log1p(tolerance)) ** (1 / ROUNDS))
    cases = Counter(problem.static for problem in problems.values())
    places = max(cases.values()) * (sections + 1)
    found: dict[Case, Bracket] = {}
    starts: dict[Case, Result] = {}
    trials: list[Trial] = []
    for number in range(ROUNDS):
        tried = {
            (case, float(size)): _with_step_size(problem, float(size))
            for case, problem in problems.items()
            for size in _sections(sizes, found.get(case), sections)
        }
        probes = {_probe(*key): problem for key, problem in tried.items()}
        runs = run_all(probes, None, on_progress, places)
        for case in problems:
            done = {size: runs.results.get(_probe(case, size)) for of, size in tried if of == case}
            ended = {size: result for size, result in done.items() if result is not None}
            if ended:  # then all are: the trials of a case are lanes of one program
                outcomes = {size: comparison.converges(result) for size, result in ended.items()}
                found[case] = comparison.narrowed(found.get(case, Bracket()), outcomes)
                starts[case] = next(iter(ended.values()))
                trials += [_trial(case, number + 1, size, ended[size], outcomes[size]) for size in ended]
        if runs.interrupted:
            return Search(found, starts, trials, number, True)
    return Search(found, starts, trials, ROUNDS, False)


def _sections(sizes: tuple[float, float], bracket: Bracket | None, count: int) -> np.ndarray:
    """The step sizes to try next: inside of the bracket, and at first also its ends; none if it is open."""
    if bracket is None:
        return np.geomspace(*sizes, count + 1)
    return np.geomspace(*bracket, count + 1)[1:-1] if bracket.closed else np.empty(0)


def _with_step_size(problem: Problem, size: float) -> Problem:
    """The same problem at another step size: the target and all checks stay as they are."""
    options = dict(problem.config.dynamics.options) | {"step_size": size}
    motion = Choice(problem.config.dynamics.name, tuple(sorted(options.items())))
    numbers = problem.lane.dynamics | {"step_size": size}
    config = dataclasses.replace(problem.config, dynamics=motion)
    return problem._replace(config=config, lane=problem.lane._replace(dynamics=numbers))


def _probe(case: Case, size: float) -> str:
    return f"{_name(case)}_step_size_{size!r}"


def _trial(case: Case, number: int, size: float, result: Result, converges: bool) -> Trial:
    """What is written of a run: the gaps are those of the seed that ends farthest away."""
    gaps = result.dataset["relative_gap"].transpose("seed", "record").values
    last = np.where(np.isfinite(gaps[:, -1]), gaps[:, -1], np.inf)
    worst = int(np.argmax(last))
    return Trial(case, number, size, converges, float(gaps[worst, 0]), float(last[worst]))


# --- what was found -------------------------------------------------------------------------------


def table(found: Limits) -> list[tuple[str, ...]]:
    """A row for each case, as `COLUMNS` names them."""
    return [
        (
            f"{found.depth[row]}",
            f"{found.smallest[row]:g}",
            _bracket(found, row),
            _shown(found.predicted[row], ".6g"),
            _shown(found.ratio[row], ".4f"),
            _shown(found.admissible[row], ".1e"),
            _shown(found.smaller[row], ".1e"),
        )
        for row in range(len(found.depth))
    ]


def _bracket(found: Limits, row: int) -> str:
    """The measured limit and half the relative width of its bracket, or the end that was found."""
    low, high, middle = found.low[row], found.high[row], found.measured[row]
    if np.isfinite(middle):
        return f"{middle:.6g} ± {50 * (high - low) / middle:.2g} %"
    return f"above {low:.6g}" if low > 0 else f"below {high:.6g}"


def _shown(value: float, how: str) -> str:
    return format(value, how) if np.isfinite(value) else "–"


def claims(found: Limits) -> list[Claim]:
    """That stability decides which step sizes converge, and that the theorem's are admissible."""
    ratios, smaller = (each[np.isfinite(each)] for each in (found.ratio, found.smaller))
    if not ratios.size:
        return []
    worst = float(np.max(np.abs(ratios - 1)))
    said = [
        Claim(
            "descent converges for step sizes below 2 / λ_max of the Hessian at the minimizer, and no others",
            "§6",
            "ratio 1",
            f"{ratios.min():.4f} to {ratios.max():.4f}",
            worst <= AGREES,
        )
    ]
    if smaller.size:
        measured = f"{smaller.min():.1e} to {smaller.max():.1e} times below the largest"
        statement = "the step sizes that the paper admits converge"
        said.append(
            Claim(statement, "the paper, §6", "below the largest", measured, bool(smaller.min() >= 1))
        )
    return said


def sentences(found: Limits) -> list[str]:
    """How the limits agree, how far the paper's step sizes are, and what was not found and why."""
    said = []
    ratios, smaller = (each[np.isfinite(each)] for each in (found.ratio, found.smaller))
    if ratios.size:
        worst = 100 * np.max(np.abs(ratios - 1))
        said.append(
            f"the largest step size that converges is within {worst:.2f} % of the stability limit "
            f"in {ratios.size} of {len(found.ratio)} cases"
        )
    if smaller.size:
        said.append(f"the paper's admissible one is {smaller.min():.1e} to {smaller.max():.1e} times smaller")
    for row in range(len(found.depth)):
        where = f"depth {found.depth[row]}, λ_min {found.smallest[row]:g}"
        if found.low[row] == 0:
            size = found.high[row]
            said.append(f"{where}: {size:g} does not converge; try a smaller dynamics.step_size")
        elif found.high[row] == np.inf:
            said.append(f"{where}: {found.low[row]:g} converges; try a larger study.largest_step_size")
    for failing in dict.fromkeys(each for each in found.failing if each):
        count = int(np.sum(found.failing == failing))
        said.append(f"the paper admits no step size in {count} of {len(found.failing)} cases: {failing}")
    return said


def _write(found: Limits, path: Path) -> Path:
    """The table of every case; empty where there is no number."""
    columns = {
        "depth": found.depth,
        "smallest_eigenvalue": found.smallest,
        "converges": np.where(found.low > 0, found.low, np.nan),
        "does_not_converge": np.where(found.high < np.inf, found.high, np.nan),
        "measured": found.measured,
        "stability_limit": found.predicted,
        "measured_over_limit": found.ratio,
        "admissible": found.admissible,
        "eta_1": found.eta_1,
        "eta_2": found.eta_2,
        "eta_3": found.eta_3,
        "failing": found.failing,
    }
    return write_table(path, tuple(columns), zip(*columns.values(), strict=True))


def _write_trials(search: Search, folder: Path) -> Path:
    """Every step size that was tried, in the order it was."""
    columns = (
        "round",
        "depth",
        "smallest_eigenvalue",
        "step_size",
        "converges",
        "initial_relative_gap",
        "final_relative_gap",
    )
    rows = [
        (each.round, *each.case, each.step_size, each.converges, each.initial_gap, each.final_gap)
        for each in search.trials
    ]
    return write_table(folder / "step_size_trials.csv", columns, rows)
