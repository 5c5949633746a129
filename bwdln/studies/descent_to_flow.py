"""Gradient descent at several step sizes against the gradient flow, from the same starts.

The distance between the trajectories is of first order in the step size, and descent moves the
imbalance, which the flow conserves, by the second order in every step (docs/theory.md §5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bwdln import figures, results, simulate
from bwdln.comparison import descent_to_flow as comparison
from bwdln.comparison.descent_to_flow import Comparison, Scaling
from bwdln.config import Config
from bwdln.errors import check
from bwdln.fits import Law
from bwdln.registry import Choice
from bwdln.results import Result
from bwdln.studies.base import STUDIES, Claim, Findings, OnProgress, cut_short, prepared, run_all, write_table

#: Records of descent and flow fall on the same times if a step size divides the time between two
#: records up to this relative error: what a decimal fraction in binary has.
DIVIDES = 1e-9

#: A fitted slope counts as an order up to this difference.
SLOPE = 0.1

COLUMNS = (
    "step size",
    "steps",
    "seeds",
    "distance to flow",
    "smallest–largest",
    "imbalance drift per step",
    "smallest–largest",
)


@STUDIES.register("descent_to_flow")
def descent_to_flow(
    config: Config, folder: Path, on_progress: OnProgress | None, *, step_sizes: tuple[float, ...]
) -> Findings:
    """The flow that `config.dynamics` says, and plain gradient descent at each step size.

    Writes the results of all runs into folders of their own (`flow`, `step_size_0.01`, …), a table
    `descent_to_flow.csv` with one row for each step size and seed, and the figures. Ctrl-C keeps the
    runs that finished, and what the one in progress has recorded.

    Raises `InvalidOption`, before anything compiles, for a dynamics that is no flow, records that are not
    equally spaced, step sizes that do not divide the time between two records, and for whatever a run
    refuses.
    """
    flow, descents = plan(config, step_sizes)
    jobs = dict(zip(folders(descents), (flow, *descents.values()), strict=True))
    runs = run_all(prepared(jobs, folder), results.writable(folder), on_progress)
    finished = {
        size: runs.results[name]
        for size, name in zip(descents, list(jobs)[1:], strict=True)
        if name in runs.results
    }
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    if "flow" in runs.results and finished:
        found = comparison.compare(runs.results["flow"], finished)
        files = [_write(found, folder / "descent_to_flow.csv")]
        drawn = figures.descent_to_flow.save_all(found, folder)
        rows, notes, said = table(found), sentences(found), claims(found)
    notes += cut_short(runs, len(jobs))
    score = _score(runs.results.get("flow"))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, step_sizes: Sequence[float]) -> tuple[Config, dict[float, Config]]:
    """The run of the flow, and those of descent by step size, the largest first: all of them checked.

    Raises `InvalidOption` for what cannot be run or compared.
    """
    record = dataclasses.replace(config.record, end_to_end=True)
    flow = dataclasses.replace(config, record=record, study=None)
    problem = simulate.prepare(flow)
    takes = "a flow, such as gradient_flow"
    check(problem.dynamics.clock == "time", "dynamics", config.dynamics.name, takes)
    tolerance = config.dynamics.option("gap_tolerance")
    takes = "null in this study, whose runs all end at the same time"
    check(tolerance is None, "dynamics.gap_tolerance", tolerance, takes)
    takes = "linear in this study"
    check(record.spacing == "linear", "record.spacing", record.spacing, takes)
    steps = _steps(step_sizes, float(problem.dynamics.end), record.count)
    descents = {size: _descent(flow, size, steps[size]) for size in sorted(steps, reverse=True)}
    return flow, descents


def _steps(step_sizes: Sequence[float], end_time: float, records: int) -> dict[float, int]:
    """How many steps of each size there are until the end time, a whole number between two records."""
    name, between = "study.step_sizes", end_time / records
    check(len(step_sizes) > 0, name, "[]", "at least one number above 0")
    counts = {}
    for size in step_sizes:
        check(0 < size < np.inf, name, size, "numbers above 0")
        check(size not in counts, name, f"{size:g} twice", "different numbers")
        count = round(between / size)
        fits = count >= 1 and abs(count * size - between) <= DIVIDES * between
        takes = f"whole fractions of dynamics.end_time / record.count = {between:g}, the time between records"
        check(fits, name, f"{size:g}", takes)
        counts[size] = count * records
    return counts


def _descent(flow: Config, step_size: float, steps: int) -> Config:
    """The same job with plain gradient descent."""
    options = (("step_size", step_size), ("steps", steps))
    return dataclasses.replace(flow, dynamics=Choice("gradient_descent", options))


def folders(step_sizes: Sequence[float] | Mapping[float, Config]) -> list[str]:
    """The names of the folders of the runs: of the flow, then of each step size."""
    return ["flow", *(f"step_size_{size:.12g}" for size in step_sizes)]


def _score(flow: Result | None) -> float:
    """The median of the flow's final relative gaps, as for a single run."""
    if flow is None:
        return np.inf
    return float(np.median(flow.dataset["relative_gap"].isel(record=-1).values))


# --- what was found -------------------------------------------------------------------------------


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each step size, as `COLUMNS` names them: median and range over the seeds."""
    return [
        (
            f"{size:g}",
            f"{found.steps[row]:,}",
            f"{found.compared[row].sum()} of {len(found.seed)}",
            *_median_and_range(found.distance, row),
            *_median_and_range(found.drift, row),
        )
        for row, size in enumerate(found.step_size)
    ]


def _median_and_range(scaling: Scaling | None, row: int) -> tuple[str, str]:
    if scaling is None or np.isnan(scaling.median[row]):
        return "–", "–"
    return f"{scaling.median[row]:.2e}", f"{scaling.low[row]:.1e}–{scaling.high[row]:.1e}"


def claims(found: Comparison) -> list[Claim]:
    """That descent follows the flow, and the imbalance drifts, at the orders of theory."""
    laws = [
        ("the distance of descent to the flow is of first order in the step size", found.distance, 1),
        ("the imbalance that the flow conserves drifts per step at second order", found.drift, 2),
    ]
    return [
        Claim(
            statement,
            "§5",
            f"slope {order}",
            f"slope {scaling.law.exponent:.3f}",
            abs(scaling.law.exponent - order) <= SLOPE,
        )
        for statement, scaling, order in laws
        if scaling is not None and np.isfinite(scaling.law.exponent)
    ]


def sentences(found: Comparison) -> list[str]:
    """The fitted orders, and which seeds are left out."""
    said = [
        _order("distance to the flow", found.distance.law, comparison.DISTANCE_ORDER),
        _order("imbalance drift per step", found.drift and found.drift.law, comparison.DRIFT_ORDER),
    ]
    for size, outcomes, compared in zip(found.step_size, found.outcome, found.compared, strict=True):
        diverged = int(np.sum(outcomes == "diverged"))
        left_out = int(np.sum(~compared))
        if left_out:
            of_these = f", {diverged} of them diverged" if diverged else ""
            said.append(f"step size {size:g}: {left_out} of {len(compared)} seeds are left out{of_these}")
    return [each for each in said if each]


def _order(what: str, law: Law | None, order: int) -> str:
    if law is None or law.points < 2:
        return ""
    return f"{what} ~ (step size)^{law.exponent:.3f} at the {law.points} smallest step sizes; theory: {order}"


def _write(found: Comparison, path: Path) -> Path:
    """The table of every step size and seed; empty where not compared."""
    columns = ("step_size", "steps", "seed", "outcome", "distance", "imbalance_drift_per_step")
    rows = []
    for row, size in enumerate(found.step_size):
        for lane, seed in enumerate(found.seed):
            values = [None if x is None else x.values[row, lane] for x in (found.distance, found.drift)]
            rows.append((size, found.steps[row], seed, found.outcome[row, lane], *values))
    return write_table(path, columns, rows)
