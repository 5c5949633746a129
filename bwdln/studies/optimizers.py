"""Which optimizers learn from a small start like the gradient flow: in low rank, and without coordinates.

From a small start the flow learns one mode after the other, so that its rank is low on the way. It is also
equivariant under the gauge group: orthogonal changes of coordinates between the layers, which leave the
generator as it is (docs/theory.md §8). Descent, with momentum or without, and Muon are equivariant, too;
Adam and RMSprop, which scale every entry of a layer on its own, are not. Both properties are measured here;
neither implies the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bwdln import figures, results, simulate
from bwdln.comparison import optimizers as comparison
from bwdln.comparison.optimizers import CONVERGED, LOW_RANK, PROGRESS, Comparison, Trial, largest, median
from bwdln.config import Config
from bwdln.dynamics.gradient_descent import OPTIMIZERS
from bwdln.errors import InvalidOption, check
from bwdln.registry import Choice, convert
from bwdln.simulate import Problem
from bwdln.studies.base import STUDIES, Claim, Findings, OnProgress, cut_short, prepared, run_all, write_table

#: What is compared unless the study says otherwise.
EVERY = tuple(map(Choice, ("descent", "momentum", "nesterov", "muon", "adam", "rmsprop")))

#: The optimizers whose updates have a size of their own, and how many times these could, in all steps of the
#: job, take a layer from 0 to where it ends: that makes their default step sizes.
OF_OWN_SIZE, TRAVELS = ("muon", "adam", "rmsprop"), 10

COLUMNS = (
    "optimizer",
    "step size",
    "seeds",
    "final gap",
    "rank, half learnt",
    "excess rank",
    "deviation, learning",
    "to the end",
)


@STUDIES.register("optimizers")
def optimizers(
    config: Config,
    folder: Path,
    on_progress: OnProgress | None,
    *,
    optimizers: tuple[Choice, ...] = EVERY,
) -> Findings:
    """Every optimizer from the start of `config` and from the same one in other coordinates, and the flow.

    `config.dynamics` is gradient descent: its steps and its schedule are those of every optimizer, its step
    size η that of plain descent. An optimizer is a name, or a name with options of its own and a `step_size`;
    the defaults (`default_step_size`) are sizes at which each should come to the end. The flow goes as far
    as the steps of plain descent, η · steps.

    Writes the results of all runs into folders of their own (`flow`, `adam`, `adam_rotated`, …), a table
    `optimizers.csv` with one row for each optimizer and seed, and the figures. Ctrl-C keeps the runs that
    finished, and what the one in progress has recorded. The score is the largest median final gap of all
    optimizers.

    Raises `InvalidOption`, before anything compiles, for a dynamics that is not plain gradient descent, a
    network of one layer, optimizers that are unknown or twice there, and for whatever a run refuses.
    """
    flow, pairs = plan(config, optimizers)
    jobs = {"flow": flow} | {name: job for pair in pairs.values() for name, job in pair.items()}
    runs = run_all(prepared(jobs, folder), results.writable(folder), on_progress)
    finished = {
        name: (runs.results[one], runs.results[other])
        for name, (one, other) in pairs.items()
        if one in runs.results and other in runs.results
    }
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    if "flow" in runs.results and finished:
        step_size = float(dict(config.dynamics.options)["step_size"])
        found = comparison.compare(runs.results["flow"], finished, step_size=step_size)
        files = [_write(found, folder / "optimizers.csv")]
        drawn = figures.optimizers.save_all(found, folder)
        rows, notes, said = table(found), sentences(found), claims(found)
        score = _score(found) if len(finished) == len(pairs) else np.inf
    notes += cut_short(runs, len(jobs))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, optimizers: Iterable[Choice]) -> tuple[Config, dict[str, dict[str, Config]]]:
    """The run of the flow and, by the name of the optimizer, its two runs by the name of their folder.

    Raises `InvalidOption` for what cannot be run or compared.
    """
    record = dataclasses.replace(config.record, end_to_end=True)
    plain = dataclasses.replace(config, record=record, study=None)
    problem = _checked(plain)
    pairs: dict[str, dict[str, Config]] = {}
    for choice in optimizers:
        check(choice.name not in pairs, "study.optimizers", f"{choice.name} twice", "different optimizers")
        job = dataclasses.replace(plain, dynamics=_dynamics(problem, choice))
        with _renamed("dynamics.optimizer", "study.optimizers"):
            simulate.prepare(job)
        other = Choice("rotated", (("start", config.initialization),))
        rotated = dataclasses.replace(job, initialization=other)
        pairs[choice.name] = {choice.name: job, f"{choice.name}_rotated": rotated}
    check(len(pairs) > 0, "study.optimizers", "[]", "at least one optimizer")
    options = dict(config.dynamics.options)
    end_time = float(options["step_size"]) * options["steps"]
    flow = dataclasses.replace(plain, dynamics=Choice("gradient_flow", (("end_time", end_time),)))
    return flow, pairs


def _checked(plain: Config) -> Problem:
    """The problem of the job itself. Raises `InvalidOption` where it is not what this study takes."""
    name, options = plain.dynamics.name, dict(plain.dynamics.options)
    check(name == "gradient_descent", "dynamics", name, "gradient_descent in this study")
    problem = simulate.prepare(plain)
    optimizer = options.get("optimizer", Choice("descent"))
    optimizer = optimizer if isinstance(optimizer, str) else optimizer.name
    takes = "descent in this study, whose optimizers are study.optimizers"
    check(optimizer == "descent", "dynamics.optimizer", optimizer, takes)
    tolerance = options.get("gap_tolerance")
    takes = "null in this study, whose runs all come to their end"
    check(tolerance is None, "dynamics.gap_tolerance", tolerance, takes)
    layers = len(problem.widths) - 1
    takes = "2 or more in this study: coordinates are changed between layers"
    check(layers > 1, "network.depth", layers, takes)
    return problem


def _dynamics(problem: Problem, choice: Choice) -> Choice:
    """The gradient descent of the job with this optimizer, at its step size."""
    with _renamed("optimizer", "study.optimizers"):
        known = OPTIMIZERS.options(choice.name)
    options = dict(choice.options)
    name = f"study.optimizers.{choice.name}.step_size"
    # An optimizer's own options are numbers; the default step size looks at the decay of a momentum.
    decay = options.get("decay", known["decay"].default if "decay" in known else 0.0)
    default = default_step_size(problem, choice.name, decay) if isinstance(decay, float | int) else 1.0
    size = convert(name, options.pop("step_size", default), float)
    check(0 < size < np.inf, name, size, "a finite number above 0")
    own = {"step_size": size, "optimizer": Choice(choice.name, tuple(sorted(options.items())))}
    return Choice(
        problem.config.dynamics.name, tuple(sorted((dict(problem.config.dynamics.options) | own).items()))
    )


def default_step_size(problem: Problem, optimizer: str, decay: float = 0.0) -> float:
    """A step size at which the optimizer should come to the end of the job.

    With η the step size of the job: η for descent, and (1 − `decay`) η with momentum, whose updates are
    sums of past gradients with the weights 1, decay, decay², …. The updates of the others have a size of
    their own: 1 for every singular value (Muon) or for every entry (Adam, RMSprop), and so up to the width
    for a singular value. In all steps they could go `TRAVELS` times from 0 to λ_1^{1/(2N)}, the largest
    singular value of a layer of the balanced minimizer (docs/theory.md §5).
    """
    options = dict(problem.config.dynamics.options)
    if optimizer not in OF_OWN_SIZE:
        momentum = optimizer in ("momentum", "nesterov")
        return float(options["step_size"]) * (1 - decay if momentum else 1)
    layer = float(problem.target.eigenvalues[0]) ** (0.5 / (len(problem.widths) - 1))
    width = 1 if optimizer == "muon" else max(problem.widths)
    return TRAVELS * layer / (options["steps"] * width)


@contextmanager
def _renamed(before: str, after: str) -> Iterator[None]:
    """Name what is refused as its user typed it."""
    try:
        yield
    except InvalidOption as error:
        name = error.option
        if name.startswith(before):
            name = after + name.removeprefix(before)
        raise InvalidOption(name, error.got, error.takes) from error


# --- what was found -------------------------------------------------------------------------------


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for the flow and for each optimizer, as `COLUMNS` names them.

    Medians over the seeds, but for the deviations, of which it is the largest.
    """
    flow_half = _number(float(median(found.flow.half)), ".2f")
    flow = ("flow", "–", "–", _number(float(found.flow_gap.median[-1]), ".1e"), flow_half, "0", "–", "–")
    of_trials = [
        (
            name,
            f"{trial.step_size:.3g}",
            f"{trial.compared.sum()} of {len(found.seed)}",
            _number(float(median(trial.final_gap)), ".1e"),
            _number(float(median(trial.learning.half)), ".2f"),
            _number(float(median(trial.excess)), "+.2f"),
            _number(largest(trial.while_learning), ".1e"),
            _number(largest(trial.in_all), ".1e"),
        )
        for name, trial in found.trials.items()
    ]
    return [flow, *of_trials]


def _number(value: float, style: str) -> str:
    return "–" if np.isnan(value) else format(value, style)


def claims(found: Comparison) -> list[Claim]:
    """Which optimizers know no coordinates, and which learn mode by mode."""
    expected = {
        "equivariant under orthogonal changes of coordinates": (
            {"descent", "momentum", "nesterov", "muon"},
            {name for name in found.trials if comparison.equivariant(found, name)},
        ),
        "learning mode by mode, as the flow does": (
            {"descent", "momentum", "nesterov"},
            {name for name in found.trials if comparison.low_rank(found, name)},
        ),
    }
    return [
        Claim(
            f"optimizers {what}",
            "§8",
            _listed(sorted(names & set(found.trials))),
            _listed(sorted(measured)),
            names & set(found.trials) == measured,
        )
        for what, (names, measured) in expected.items()
    ]


def sentences(found: Comparison) -> list[str]:
    """Which optimizers have which property by the stated thresholds, and what is left out."""
    gauge = {name: comparison.equivariant(found, name) for name in found.trials}
    rank = {name: comparison.low_rank(found, name) for name in found.trials}
    both = [name for name in found.trials if gauge[name] and rank[name]]
    said = [
        _verdict(f"equivariant while learning (deviation at most {found.rounding:.1e})", gauge),
        _verdict(f"of low rank (at equal gap at most {LOW_RANK:g} modes above the flow)", rank),
        f"both: {_listed(both)}",
    ]
    for name, trial in found.trials.items():
        late = largest(trial.in_all)
        if gauge[name] and late > found.rounding:
            said.append(
                f"{name}: {PROGRESS[-1]:.0%} of the gap is closed by step {trial.learnt:,.0f}; after that "
                f"the two runs part, to a deviation of {late:.1e}"
            )
        said += _shortcomings(name, trial)
    return said


def _verdict(what: str, holds: Mapping[str, bool | None]) -> str:
    yes, no = ([name for name, value in holds.items() if value is wanted] for wanted in (True, False))
    return f"{what}: {_listed(yes)}; not: {_listed(no)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _shortcomings(name: str, trial: Trial) -> list[str]:
    """What of an optimizer cannot be compared, and what did not converge."""
    said, every = [], len(trial.compared)
    left_out = int(np.sum(~trial.compared))
    if left_out:
        diverged = int(np.sum(trial.outcome == "diverged"))
        of_these = f", {diverged} of them diverged" if diverged else ""
        said.append(f"{name}: {left_out} of {every} seeds are left out{of_these}")
    short = int(np.sum(trial.final_gap > CONVERGED))
    if short:
        said.append(f"{name}: {short} of {every} seeds end above a relative gap of {CONVERGED:g}")
    unlearnt = int(np.sum(trial.compared & np.isnan(trial.excess)))
    if unlearnt:
        said.append(
            f"{name}: {unlearnt} of {every} seeds, or the flow, close less than {PROGRESS[-1]:.0%} of the gap"
        )
    return said


def _score(found: Comparison) -> float:
    """The largest median final gap; infinite where an optimizer has none."""
    gaps = [float(median(trial.final_gap)) for trial in found.trials.values()]
    return max(np.inf if np.isnan(gap) else gap for gap in gaps)


def _write(found: Comparison, path: Path) -> Path:
    """The table of every optimizer and seed; empty where not compared."""
    columns = (
        "optimizer",
        "step_size",
        "seed",
        "outcome",
        "final_relative_gap",
        "effective_rank_half_learnt",
        "flow_effective_rank_half_learnt",
        "excess_effective_rank",
        "deviation_while_learning",
        "deviation_to_the_end",
    )
    rows = []
    for name, trial in found.trials.items():
        for lane, seed in enumerate(found.seed):
            ranks = (trial.learning.half, found.flow.half, trial.excess)
            values = (trial.final_gap, *ranks, trial.while_learning, trial.in_all)
            rows.append((name, trial.step_size, seed, trial.outcome[lane], *(each[lane] for each in values)))
    return write_table(path, columns, rows)
