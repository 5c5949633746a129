"""The certificates of the flow along actual runs of it, over depths.

The sharp envelope's final rate is attained; the paper's bound holds and is far away (docs/theory.md §6).
All depths are lanes of one program: to the end-to-end flow, depth is a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bwdln import figures, networks, results
from bwdln.comparison import certificate_tightness as comparison
from bwdln.comparison.certificate_tightness import Tightness
from bwdln.config import Config
from bwdln.errors import check
from bwdln.simulate import Problem
from bwdln.studies.base import (
    STUDIES,
    Claim,
    Findings,
    OnProgress,
    check_different,
    cut_short,
    prepared,
    run_all,
    write_table,
)
from bwdln.types import Array

#: The final rate of the envelope counts as attained up to this share.
ATTAINED = 0.03

COLUMNS = (
    "depth",
    "seeds",
    "measured rate",
    "sharp rate",
    "sharp / measured",
    "worst",
    "paper's rate",
    "times looser",
    "obeyed",
)


@STUDIES.register("certificate_tightness")
def certificate_tightness(
    config: Config, folder: Path, on_progress: OnProgress | None, *, depths: tuple[float, ...]
) -> Findings:
    """The end-to-end flow at each depth, any numbers from 1, beside what theory promises of its starts.

    Writes the results of all runs into folders of their own (`depth_1`, `depth_2.5`, …), a table
    `certificate_tightness.csv` with one row for each depth and seed, and the figures. The score is how
    far the worst ratio of the sharp envelope's final rate to the measured one is from 1. Ctrl-C keeps what
    was recorded.

    Raises `InvalidOption`, before anything compiles, for another dynamics than `end_to_end_flow`, a loss
    or a network that no start is promised anything with, and for whatever a run refuses.
    """
    problems = plan(config, depths, folder)
    runs = run_all(problems, results.writable(folder), on_progress)
    finished = {depth: runs.results[name] for depth, name in names(depths).items() if name in runs.results}
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    if finished:
        found = comparison.compare(finished)
        files = [_write(found, folder / "certificate_tightness.csv")]
        drawn = figures.certificate_tightness.save_all(found, folder)
        rows, notes, said = table(found), sentences(found), claims(found)
        known = found.ratio[np.isfinite(found.ratio)]
        score = float(np.max(np.abs(known - 1), initial=0)) if known.size else np.inf
    notes += cut_short(runs, len(problems))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, depths: Sequence[float], folder: Path) -> dict[str, Problem]:
    """The problem of each depth, by the name of its folder, all checked."""
    motion = config.dynamics.name
    takes = "end_to_end_flow, to which depth is a number"
    check(motion == "end_to_end_flow", "dynamics", motion, takes)
    takes = "bures_wasserstein, which the certificates are of"
    check(config.loss.name == "bures_wasserstein", "loss", config.loss.name, takes)
    check(len(depths) > 0, "study.depths", "[]", "at least one number from 1")
    for depth in depths:
        check(1 <= depth < 2**31, "study.depths", f"{depth:g}", "numbers from 1 to below 2^31")
    check_different("study.depths", depths)
    problems = prepared({name: _at(config, depth) for depth, name in names(depths).items()}, folder)
    for problem in problems.values():
        _check_promising(problem)
    return problems


def names(depths: Sequence[float]) -> dict[float, str]:
    """The names of the folders of the runs, by depth, the smallest first."""
    return {depth: f"depth_{depth:.12g}" for depth in sorted(depths)}


def _at(config: Config, depth: float) -> Config:
    """The same job at another depth; a whole number of layers stays one."""
    whole = int(depth) if depth == int(depth) else depth
    return dataclasses.replace(config, network=dataclasses.replace(config.network, depth=whole), study=None)


def _check_promising(problem: Problem) -> None:
    """Refuse what no start has a margin with."""
    dimension, narrowest = problem.target.dimension, networks.bottleneck(problem.widths)
    takes = f"a network as wide as the data dimension {dimension}: the certificates are of full rank"
    check(narrowest == dimension, "network", f"a bottleneck of {narrowest}", takes)
    tau, smallest = float(problem.lane.loss.get("tau", 0.0)), float(problem.target.eigenvalues[-1])
    takes = f"numbers below the smallest eigenvalue of the target, {smallest:g}, or no start has a margin"
    check(tau < smallest, "loss.tau", f"{tau:g}", takes)


# --- what was found -------------------------------------------------------------------------------


def table(found: Tightness) -> list[tuple[str, ...]]:
    """A row for each depth, as `COLUMNS` names them: medians over the seeds, and the worst ratio."""
    rows = []
    for row, depth in enumerate(found.depth):
        ratios = found.ratio[row][np.isfinite(found.ratio[row])]
        worst = ratios[np.argmax(np.abs(ratios - 1))] if ratios.size else np.nan
        rows.append(
            (
                f"{depth:g}",
                f"{found.compared[row].sum()} of {len(found.seed)}",
                *(_shown(_median(each[row]), ".5g") for each in (found.measured, found.final)),
                _shown(_median(ratios), ".5f"),
                _shown(worst, ".5f"),
                _shown(_median(found.paper[row]), ".2e"),
                _shown(_median(found.looser[row]), ",.0f"),
                _obeyed(found, row),
            )
        )
    return rows


def _obeyed(found: Tightness, row: int) -> str:
    """How many of the bounds there are, of every kind and seed, the losses stayed within."""
    promised = sum(int(each[row].sum()) for each in found.promised.values())
    return f"{sum(int(each[row].sum()) for each in found.obeyed.values())} of {promised}"


def _median(values: Float[Array, "some"]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


def _shown(value: float, how: str) -> str:
    return format(value, how) if np.isfinite(value) else "–"


def claims(found: Tightness) -> list[Claim]:
    """That the envelope is attained, that every bound holds, and that the paper's is looser."""
    ratios, looser = (each[np.isfinite(each)] for each in (found.ratio, found.looser))
    if not ratios.size:
        return []
    broken = sum(int(np.sum(promised & ~found.obeyed[name])) for name, promised in found.promised.items())
    bounds = sum(int(promised.sum()) for promised in found.promised.values())
    said = [
        Claim(
            "the loss stays below every bound that its start is entitled to",
            "the paper; §6",
            f"{bounds} of {bounds}",
            f"{bounds - broken} of {bounds}",
            broken == 0,
        ),
        Claim(
            "the final rate of the sharp envelope is attained",
            "§6",
            "1",
            f"{ratios.min():.4f} to {ratios.max():.4f} of the measured rate",
            bool(np.all(np.abs(ratios - 1) <= ATTAINED)),
        ),
    ]
    if looser.size:
        found_looser = f"{looser.min():.1e} to {looser.max():.1e} times"
        said.append(
            Claim(
                "the paper's bound is thousands of times looser than the run",
                "§6",
                "> 1e3 times",
                found_looser,
                bool(looser.min() > 1e3),
            )
        )  # fmt: skip
    return said


def sentences(found: Tightness) -> list[str]:
    """How tight the envelope is, how loose the paper's bound, and what is missing and why."""
    said = []
    ratios, looser = (each[np.isfinite(each)] for each in (found.ratio, found.looser))
    if ratios.size:
        said.append(
            f"the sharp envelope's final rate is {ratios.min():.4f} to {ratios.max():.4f} of the measured one"
        )
    if looser.size:
        said.append(f"the paper's rate is {looser.min():,.0f} to {looser.max():,.0f} times smaller than that")
    for name, promised in found.promised.items():
        broken = int(np.sum(promised & ~found.obeyed[name]))
        said += [f"{broken} of {promised.sum()} runs broke the bound {name}"] if broken else []
    for row, depth in enumerate(found.depth):
        said += _missing(found, row, f"depth {depth:g}")
    return said


def _missing(found: Tightness, row: int, where: str) -> list[str]:
    """Which seeds are not compared at a depth, and which not measured."""
    said, count = [], len(found.seed)
    failing = [each for each in found.failing[row] if each]
    if failing:
        said.append(f"{where}: {len(failing)} of {count} seeds are promised nothing: {failing[0]}")
    lost = int(np.sum(~found.compared[row] & (found.failing[row] == "")))
    said += [f"{where}: {lost} of {count} seeds diverged"] if lost else []
    early = int(np.sum(found.compared[row] & np.isnan(found.measured[row])))
    if early:
        above, below = comparison.LATE
        window = f"relative gaps from {below:.0e} down to {above:.0e}"
        said.append(f"{where}: {early} of {count} seeds have fewer than 3 records at {window}")
    return said


def _write(found: Tightness, path: Path) -> Path:
    """The table of every depth and seed; empty where there is no number."""
    numbers: Mapping[str, Array] = {
        "initial_loss": found.loss,
        "initial_margin": found.margin,
        "measured_rate": found.measured,
        "measured_rate_error": found.error,
        "sharp_final_rate": found.final,
        "sharp_over_measured": found.ratio,
        "sharp_constant_rate": found.initial,
        "paper_rate": found.paper,
        "measured_over_paper": found.looser,
    }
    verdicts = [f"{name}_obeyed" for name in found.obeyed]
    rows = []
    for row, depth in enumerate(found.depth):
        for lane, seed in enumerate(found.seed):
            kept = [
                bool(each[row, lane]) if found.promised[name][row, lane] else None
                for name, each in found.obeyed.items()
            ]
            values = [each[row, lane] for each in numbers.values()]
            labels = (found.outcome[row, lane], found.failing[row, lane])
            rows.append((f"{depth:.12g}", seed, *labels, *values, *kept))
    return write_table(path, ("depth", "seed", "outcome", "failing", *numbers, *verdicts), rows)
