"""From saddle to saddle: when a flow from a small start learns each mode of the target, by loss and start.

Bures-Wasserstein against Frobenius, from aligned starts, where the times are known exactly, and from
unaligned ones, where the same formula estimates them (docs/theory.md §5, §8).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bwdln import figures, results, simulate
from bwdln.comparison import saddle_to_saddle as comparison
from bwdln.comparison.saddle_to_saddle import Comparison, Learning
from bwdln.config import Config
from bwdln.errors import check
from bwdln.registry import Choice
from bwdln.simulate import Problem
from bwdln.studies.base import STUDIES, Claim, Findings, OnProgress, cut_short, prepared, run_all, write_table
from bwdln.theory.checks import LossName

COLUMNS = ("loss", "start", "mode", "λ", "predicted time", "measured time", "measured / predicted", "seeds")

#: How far a measured time may be from an exact prediction without being mentioned.
AGREES = 0.05

#: Logarithmic records begin so many decades before the first mode is predicted to be learnt.
BEFORE = 1.0
#: As many decades at most, where the first mode is predicted (almost) at once.
MOST_DECADES = 12.0


@STUDIES.register("saddle_to_saddle")
def saddle_to_saddle(
    config: Config, folder: Path, on_progress: OnProgress | None, *, fraction: float = 0.5
) -> Findings:
    """The flow of two losses from two starts: `config` as it is, and with Frobenius; aligned, and `small`.

    `config.initialization` is `aligned`; the unaligned start is `small` and balanced, of the same scale. A
    mode is learnt when ‖ω_iᵀ W‖, the singular value of an aligned mode, reaches `fraction` of where it
    ends. `dynamics.end_time` counts in units of the time at which the last mode is predicted to be learnt,
    for each run its own, and so does the range of logarithmic records (`record.decades` null).

    Writes the results of the runs into folders of their own (`bures_wasserstein_aligned`, …), a table
    `saddle_to_saddle.csv` with one row for each run, seed and mode, and the figures. Ctrl-C keeps the runs
    that finished, and what the one in progress has recorded. The score is the largest relative deviation of
    a measured time from the exact prediction, over the aligned runs.

    Raises `InvalidOption`, before anything compiles, for another loss or start, a fraction not between 0
    and 1, a start too large or a τ too large to learn anything, a dynamics that is no flow, and for
    whatever a run refuses.
    """
    jobs = plan(config, fraction)
    runs = run_all(prepared(jobs, folder), results.writable(folder), on_progress)
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    if runs.results:
        found = comparison.compare(list(runs.results.values()), fraction)
        files = [_write(found, folder / "saddle_to_saddle.csv")]
        drawn = figures.saddle_to_saddle.save_all(found, folder)
        rows, notes, score = table(found), sentences(found), worst(found)
        said = claims(found)
    notes += cut_short(runs, len(jobs))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, fraction: float) -> dict[str, Config]:
    """The four runs by the names of their folders, all of them checked, each with an end time of its own.

    Raises `InvalidOption` for what cannot be run or compared.
    """
    check(0 < fraction < 1, "study.fraction", fraction, "a number above 0 and below 1")
    takes = "bures_wasserstein: the study adds frobenius"
    check(config.loss.name == "bures_wasserstein", "loss", config.loss.name, takes)
    takes = "aligned: the study adds an unaligned start"
    check(config.initialization.name == "aligned", "initialization", config.initialization.name, takes)
    drafts = {
        f"{loss.name}_{name}": _job(config, loss, start)
        for loss in (config.loss, Choice("frobenius"))
        for name, start in _starts(config).items()
    }
    problems = {name: simulate.prepare(draft) for name, draft in drafts.items()}
    first = problems["bures_wasserstein_aligned"]
    check(first.dynamics.clock == "time", "dynamics", config.dynamics.name, "a flow, such as end_to_end_flow")
    tau = float(config.loss.option("tau", 0.0))
    largest = float(first.target.eigenvalues[0])
    check(tau < largest, "loss.tau", f"{tau:g}", f"a number below the largest eigenvalue, {largest:g}")
    _check_smallness(first, tau, fraction)
    free = {name: _free_strengths(problems[f"frobenius_{name}"]) for name in ("aligned", "unaligned")}
    jobs = {}
    for name, problem in problems.items():
        waits = _waits(problem, free[name.rpartition("_")[2]], fraction)
        jobs[name] = _timed(drafts[name], waits)
    return jobs


def _starts(config: Config) -> dict[str, Choice]:
    """The aligned start of the configuration, and an unaligned one of the same scale."""
    scale = config.initialization.option("scale", 0.1)
    return {
        "aligned": config.initialization,
        "unaligned": Choice("small", (("balanced", True), ("scale", scale))),
    }


def _job(config: Config, loss: Choice, start: Choice) -> Config:
    record = dataclasses.replace(config.record, end_to_end=True)
    return dataclasses.replace(config, loss=loss, initialization=start, record=record, study=None)


def _check_smallness(problem: Problem, tau: float, fraction: float) -> None:
    """Refuse a start from which no mode is waited for."""
    options = dict(problem.config.initialization.options)
    largest = float(problem.target.eigenvalues[0])
    size = options.get("scale", 0.1) * (largest**0.5 if options.get("spectrum") == "target" else 1)
    end = fraction * (largest - tau) ** 0.5
    takes = f"one that makes a start below {end:.4g}, the fraction of the largest mode that is learnt"
    check(size < end, "initialization.scale", options.get("scale", 0.1), takes)


def _free_strengths(problem: Problem) -> np.ndarray:
    """What the start of each seed has of each mode beyond those before it, (seeds, k)."""
    start = simulate.starts([problem])
    modes = np.asarray(problem.target.to_eigenbasis(start.end_to_end))
    return comparison.free_strengths(modes, min(problem.widths))


def _waits(problem: Problem, free: np.ndarray, fraction: float) -> np.ndarray:
    """The predicted times that are to be waited for, of all seeds and modes: positive and finite."""
    loss = problem.config.loss
    name: LossName = "frobenius" if loss.name == "frobenius" else "bures_wasserstein"
    tau = float(loss.option("tau", 0.0))
    spectrum, depth = np.asarray(problem.target.eigenvalues), float(problem.lane.depth)
    times = comparison.predictions(free, spectrum, depth, tau, name, fraction)
    return times[np.isfinite(times) & (times > 0)]


def _timed(draft: Config, waits: np.ndarray) -> Config:
    """The run until end_time times the last predicted time, with records that see the first."""
    options, record = dict(draft.dynamics.options), draft.record
    options["end_time"] = float(options["end_time"] * waits.max())
    if record.spacing == "logarithmic" and record.decades is None:
        decades = BEFORE + np.log10(options["end_time"] / waits.min())
        record = dataclasses.replace(record, decades=float(np.clip(decades, 0.1, MOST_DECADES)))
    dynamics = Choice(draft.dynamics.name, tuple(options.items()))
    return dataclasses.replace(draft, dynamics=dynamics, record=record)


# --- what was found -------------------------------------------------------------------------------


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each run and mode, as `COLUMNS` names them: medians over the seeds that learned it."""
    rows = []
    for run in found.runs:
        start = "aligned" if run.aligned else "unaligned"
        for mode, eigenvalue in enumerate(run.eigenvalue):
            learned = np.isfinite(run.measured[:, mode])
            count = f"{int(learned.sum())} of {len(learned)}"
            numbers = [_median(each[:, mode]) for each in (run.predicted, run.measured, run.ratio)]
            if run.optimal[mode] == 0:
                numbers[:2] = ["never", "never"]
            rows.append((run.loss, start, str(mode + 1), f"{eigenvalue:.4g}", *numbers, count))
    return rows


def _median(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{np.median(finite):.4g}" if finite.size else "–"


def claims(found: Comparison) -> list[Claim]:
    """That modes are learnt when they should, in their order, and the small ones sooner than by Frobenius."""
    said = []
    spreads: dict[str, float] = {}
    for run in found.runs:
        ratio = run.ratio[np.isfinite(run.ratio)]
        if not (run.aligned and ratio.size):
            continue
        away = float(np.abs(ratio - 1).max())
        measured = f"within {away:.2%}"
        statement = f"from an aligned start modes are learnt at the times of the exact solution ({run.loss})"
        said.append(Claim(statement, "§5 E3", "equal", measured, away <= AGREES))
        ordered = f"{int(run.in_order.sum())} of {len(run.seed)} seeds"
        statement = f"modes are learnt one by one, the largest first ({run.loss})"
        said.append(Claim(statement, "§8", "every seed", ordered, bool(run.in_order.all())))
        spreads[run.loss] = float(
            np.nanmedian(np.nanmax(run.measured, axis=1) / np.nanmin(run.measured, axis=1))
        )
    if len(spreads) == 2:
        ours, theirs = spreads["bures_wasserstein"], spreads["frobenius"]
        measured = f"the last mode after {ours:.3g} times the first, Frobenius {theirs:.3g}"
        statement = "Bures-Wasserstein learns small modes sooner than Frobenius"
        said.append(Claim(statement, "§8", "sooner", measured, ours < theirs))
    return said


def sentences(found: Comparison) -> list[str]:
    """How well times are predicted, in which order modes are learnt, and how far apart."""
    said = []
    for run in found.runs:
        ratio = run.ratio[np.isfinite(run.ratio)]
        if not ratio.size:
            said.append(f"{run.name}: no mode was learnt")
            continue
        if run.aligned:
            away = np.abs(ratio - 1).max()
            agrees = f"predicted times are met within {away:.2%}"
            agrees += "" if away <= AGREES else ": try more records or smaller tolerances"
        else:
            middle = f"measured times are {np.median(ratio):.3g} of the estimates"
            agrees = f"{middle} (from {ratio.min():.2g} to {ratio.max():.2g})"
        ordered = f"{int(run.in_order.sum())} of {len(run.seed)} seeds"
        order = f"modes learnt in the order of the eigenvalues in {ordered}"
        said.append(f"{run.name}: {agrees}; {order}{_spread(run)}")
        missing = int(np.sum(np.isnan(run.measured[:, run.optimal > 0])))
        if missing:
            advice = "try a larger dynamics.end_time"
            said.append(f"{run.name}: {missing} modes were not learnt by the end: {advice}")
    return said


def _spread(run: Learning) -> str:
    """How much later the last mode is than the first, of the seeds that learned several."""
    learned = [times[np.isfinite(times)] for times in run.measured]
    spread = [times.max() / times.min() for times in learned if len(times) > 1 and times.min() > 0]
    return f", the last {np.median(spread):.3g} times as late as the first" if spread else ""


def worst(found: Comparison) -> float:
    """The largest relative deviation from an exact prediction; inf where there is none."""
    away = [np.abs(run.ratio - 1).ravel() for run in found.runs if run.aligned]
    every = np.concatenate(away) if away else np.array([])
    return float(np.nanmax(every)) if np.isfinite(every).any() else np.inf


def _write(found: Comparison, path: Path) -> Path:
    """The table of every run, seed and mode; empty where a mode was not learnt."""
    columns = (
        "loss",
        "start",
        "prediction",
        "depth",
        "seed",
        "outcome",
        "mode",
        "eigenvalue",
        "free_start_strength",
        "predicted_time",
        "measured_time",
        "measured_over_predicted",
    )
    rows = []
    for run in found.runs:
        kind = ("aligned", "exact") if run.aligned else ("unaligned", "estimate")
        for lane, (seed, outcome) in enumerate(zip(run.seed, run.outcome, strict=True)):
            for mode, eigenvalue in enumerate(run.eigenvalue):
                cells = (each[lane, mode] for each in (run.free, run.predicted, run.measured, run.ratio))
                rows.append((run.loss, *kind, found.depth, seed, outcome, mode + 1, eigenvalue, *cells))
    return write_table(path, columns, rows)
