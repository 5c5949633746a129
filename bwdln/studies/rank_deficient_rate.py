"""How fast a generator of too low a rank finds the leading subspace, over eigengaps and depths.

The gap ends as exp(−rate · t) with rate = 4 λ_k^{(N−1)/N} (1 − λ_{k+1}/λ_k) at τ = 0 (docs/theory.md §6):
depth brings no factor N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bwdln import figures, results, simulate
from bwdln.comparison import rank_deficient_rate as comparison
from bwdln.comparison.rank_deficient_rate import Comparison
from bwdln.config import Config
from bwdln.errors import check
from bwdln.registry import Choice
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
from bwdln.theory.checks import LossName

COLUMNS = ("depth", "1 − λ_k+1/λ_k", "predicted rate", "measured", "measured / predicted", "seeds")

#: The losses whose rate is known, at τ = 0.
LOSSES = ("bures_wasserstein", "frobenius")

#: How far a measured rate may be from the predicted one without being mentioned.
AGREES = 0.02


@STUDIES.register("rank_deficient_rate")
def rank_deficient_rate(
    config: Config,
    folder: Path,
    on_progress: OnProgress | None,
    *,
    ratios: tuple[float, ...],
    depths: tuple[float, ...],
) -> Findings:
    """The end-to-end flow at every depth and every ratio λ_{k+1}/λ_k, all lanes of one program.

    The eigenvalues are those of `config.target`; the ones behind the rank k are multiplied by one number,
    which makes the ratio. `dynamics.end_time` counts in units of 1 / predicted rate, so that every run ends
    at a gap of the same order: about e^{−end_time}.

    Writes the results of all runs into folders of their own (`depth_2_ratio_0.5`, …), a table
    `rank_deficient_rate.csv` with one row for each depth, ratio and seed, and the figures. Ctrl-C keeps the
    runs that finished, and what the ones in progress have recorded. The score is the largest relative
    deviation of a measured rate from the predicted one.

    Raises `InvalidOption`, before anything compiles, for ratios and depths out of range, a dynamics that is
    no end-to-end flow, a perturbed loss, a rank that is not below the target's, float32 (the gap has to
    fall to 1e-18), and for whatever a run refuses.
    """
    jobs = plan(config, ratios, depths)
    runs = run_all(prepared(jobs, folder), results.writable(folder), on_progress)
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    if runs.results:
        found = comparison.compare(list(runs.results.values()))
        files = [_write(found, folder / "rank_deficient_rate.csv")]
        drawn = figures.rank_deficient_rate.save_all(found, folder)
        rows, notes, score = table(found), sentences(found), worst(found)
        said = claims(found)
    notes += cut_short(runs, len(jobs))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, ratios: Sequence[float], depths: Sequence[float]) -> dict[str, Config]:
    """The runs by the names of their folders, depth by depth: all of them checked.

    Raises `InvalidOption` for what cannot be run or compared.
    """
    _check_numbers("study.ratios", ratios, "numbers above 0 and below 1", 0, 1, open_end=True)
    _check_numbers("study.depths", depths, "numbers from 1", 1, np.inf, open_end=False)
    network = config.network
    takes = "null in this study: it takes study.depths"
    check(network.depth is None and network.widths is None, "network.depth", network.depth, takes)
    takes = "float64 in this study, whose gaps fall to 1e-18"
    check(config.precision == "float64", "precision", config.precision, takes)
    check(config.loss.name in LOSSES, "loss", config.loss.name, f"one of {', '.join(LOSSES)}")
    tau = config.loss.option("tau", 0.0)
    check(tau == 0, "loss.tau", tau, "0 in this study: modes below tau decay by a power of time")
    first = simulate.prepare(_job(config, depths[0]))
    check(first.dynamics.end_to_end, "dynamics", config.dynamics.name, "an end-to-end flow")
    spectrum, rank = np.asarray(first.target.eigenvalues), min(first.widths)
    behind = int(np.sum(spectrum > 0)) - 1
    takes = f"a rank from 1 to {behind}, below that of the target"
    check(rank <= behind, "network", f"a rank of {rank}", takes)
    name: LossName = "frobenius" if config.loss.name == "frobenius" else "bures_wasserstein"
    jobs = {}
    for depth in depths:
        for ratio in ratios:
            values = comparison.with_ratio(spectrum, rank, ratio)
            (rate,) = comparison.predictions(values[None], np.array([depth]), rank, name)
            jobs[f"depth_{depth:.12g}_ratio_{ratio:.12g}"] = _job(config, depth, values, float(rate))
    return jobs


def _check_numbers(
    option: str, values: Sequence[float], takes: str, lowest: float, below: float, open_end: bool
) -> None:
    """Refuse an empty list, numbers out of range and numbers that come twice."""
    check(len(values) > 0, option, "[]", f"at least one of the {takes}")
    for value in values:
        check(lowest <= value < below and not (open_end and value == lowest), option, value, takes)
    check_different(option, values)


def _job(config: Config, depth: float, spectrum: np.ndarray | None = None, rate: float = 1.0) -> Config:
    """The run at one depth, with these eigenvalues, until end_time / rate."""
    whole = int(depth) if depth == int(depth) else depth
    options = dict(config.dynamics.options)
    if isinstance(options.get("end_time"), int | float):
        options["end_time"] /= rate
    target = config.target
    if spectrum is not None:
        target = Choice("explicit", (("eigenvalues", tuple(map(float, spectrum))),))
    return dataclasses.replace(
        config,
        study=None,
        target=target,
        network=dataclasses.replace(config.network, depth=whole),
        dynamics=Choice(config.dynamics.name, tuple(options.items())),
    )


# --- what was found -------------------------------------------------------------------------------


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each case, as `COLUMNS` names them: medians over the seeds."""
    rows: list[tuple[str, ...]] = []
    for case, measured in enumerate(found.measured):
        fitted = measured[np.isfinite(measured)]
        middle = float(np.median(fitted)) if fitted.size else np.nan
        shown = f"{middle:.5g}", f"{middle / found.predicted[case]:.4f}"
        rows.append(
            (
                f"{found.depth[case]:g}",
                f"{1 - found.ratio[case]:.4g}",
                f"{found.predicted[case]:.5g}",
                *(shown if fitted.size else ("–", "–")),
                f"{fitted.size} of {len(measured)}",
            )
        )
    return rows


def claims(found: Comparison) -> list[Claim]:
    """That the subspace is found at the predicted rate, at all depths."""
    away = worst(found)
    if not np.isfinite(away):
        return []
    statement = "the subspace is found at the rate 4 λ_k^((N−1)/N) (1 − λ_k+1 / λ_k), without a factor N"
    return [Claim(statement, "§6", "equal", f"within {away:.2%}", away <= AGREES)]


def sentences(found: Comparison) -> list[str]:
    """How well theory and the fits agree, and what is left out."""
    away = np.abs(found.deviation)
    fitted = np.isfinite(away)
    said = []
    if fitted.any():
        case = int(np.argmax(np.where(fitted, away, -1).max(axis=1)))
        of_these = f"{int(fitted.sum())} runs at {len(found.depth)} depths and ratios"
        at = f"depth {found.depth[case]:g}, λ_k+1/λ_k = {found.ratio[case]:g}"
        agree = f"measured and predicted rates agree within {np.nanmax(away):.2%}"
        said = [f"{agree} in {of_these} (worst: {at})"]
    far = int(np.sum(away[fitted] > AGREES))
    if far:
        why = "faster parts of the gap die out late where their rates are close to the smallest"
        said.append(f"{far} of them are beyond {AGREES:.0%}: {why}")
    missing = int(np.sum(~fitted))
    if missing:
        window = f"{comparison.ABOVE:g} < relative gap < {comparison.BELOW:g}"
        said.append(f"{missing} runs have no three records with {window}: try a larger dynamics.end_time")
    return said


def worst(found: Comparison) -> float:
    """The largest relative deviation of a fitted rate; inf where there is none."""
    away = np.abs(found.deviation)
    return float(np.nanmax(away)) if np.isfinite(away).any() else np.inf


def _write(found: Comparison, path: Path) -> Path:
    """The table of every case and seed; empty where nothing could be fitted."""
    columns = (
        "loss",
        "depth",
        "ratio",
        "eigengap",
        "lambda_k",
        "predicted_rate",
        "seed",
        "outcome",
        "measured_rate",
        "standard_error",
        "points",
        "measured_over_predicted",
    )
    rows = []
    for case, (depth, ratio, predicted) in enumerate(
        zip(found.depth, found.ratio, found.predicted, strict=True)
    ):
        of_case = (found.loss, depth, ratio, 1 - ratio, found.level, predicted)
        for lane, seed in enumerate(found.seed):
            rate, error = found.measured[case, lane], found.error[case, lane]
            of_seed = (seed, found.outcome[case, lane], rate, error, found.points[case, lane])
            rows.append((*of_case, *of_seed, rate / predicted))
    return write_table(path, columns, rows)
