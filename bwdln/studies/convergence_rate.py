"""How fast gaps close over the whole of a sweep: the convergence figure of the paper (docs/theory.md §7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bwdln import figures
from bwdln.analysis import Dataset
from bwdln.comparison import convergence_rate as comparison
from bwdln.comparison.convergence_rate import Group, Points
from bwdln.config import Config
from bwdln.errors import check
from bwdln.studies.base import SWEEP_STUDIES, Claim, Findings, write_table

COLUMNS = (
    "loss",
    "points",
    "fitted",
    "failed",
    "no margin",
    "asymptotic",
    "deviation",
    "of limits",
    "r² N",
    "r² √λ_n",
    "/ sharp",
    "/ paper",
)

#: How far fitted rates may be from the closed form where their window is asymptotic.
AGREES = 0.03
#: How far exponents of a power of time may be from their limit by the end of the runs.
POWER = 0.1
#: In as many of the runs their limits have to be.
MOST = 0.99


@SWEEP_STUDIES.register("convergence_rate")
def convergence_rate(dataset: Dataset, configs: Mapping[int, Config], folder: Path) -> Findings:
    """The rate of every configuration in the window of the paper, against depth, √λ_n and theory.

    Writes `convergence_rates.csv`, a row for every seed of every configuration, `regressions.csv`, and the
    figures. The score is the largest relative deviation of a rate from the closed form, over the windows
    that are asymptotic.

    Raises `InvalidOption` for a sweep that is not of losses and networks whose rates are known.
    """
    chosen = {job: configs[job].loss for job in dataset["job"].values.tolist()}
    for name in {each.name for each in chosen.values()}:
        check(
            name in comparison.LOSSES,
            "sweep.study",
            f"a job with loss={name}",
            "bures_wasserstein, frobenius",
        )
    wide = dataset.sizes["mode"] == dataset.sizes["eigenvalue"]
    check(wide, "sweep.study", "a generator of low rank", "networks as wide as the data: rates at full rank")
    losses = {job: (each.name, float(each.option("tau", 0.0))) for job, each in chosen.items()}
    groups = comparison.compare(dataset, losses)
    check(len(groups) > 0, "sweep.study", "no result", "a sweep with results")
    files = [
        write_table(folder / "convergence_rates.csv", POINT_COLUMNS, _rows_of_points(groups)),
        write_table(folder / "regressions.csv", LINE_COLUMNS, _rows_of_lines(groups)),
    ]
    drawn = figures.convergence_rate.save_all(groups, folder)
    return Findings(
        COLUMNS, table(groups), sentences(groups), [], files, drawn, worst(groups), False, claims(groups)
    )


# --- what was found -------------------------------------------------------------------------------


def table(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """A row for each loss and τ, as `COLUMNS` names them.

    Deviations from the closed form are the largest, ratios of fitted to promised rates medians.
    """
    rows: list[tuple[str, ...]] = []
    for group in groups:
        points, margin = group.points, group.points.margin
        rated = np.isfinite(points.rate) & margin
        rows.append(
            (
                group.name,
                f"{len(margin)}",
                f"{int(rated.sum())}",
                f"{int(np.sum((points.failure != '') & margin))}",
                f"{int(np.sum(~margin))}",
                f"{int(points.asymptotic.sum())}",
                _percent(group.deviation),
                _percent(group.limit_deviation),
                _short(group.by_depth.r_squared, "{:.3f}"),
                _short(group.by_smallest.r_squared, "{:.3f}"),
                _short(_median(points.rate / points.sharp, rated), "{:.2g}"),
                _short(_median(points.rate / points.paper, rated), "{:.1e}"),
            )
        )
    return rows


def _percent(deviations: np.ndarray) -> str:
    known = np.abs(deviations[np.isfinite(deviations)])
    return f"{known.max():.2%}" if known.size else "–"


def _median(values: np.ndarray, chosen: np.ndarray) -> float:
    known = values[chosen & np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


def _short(value: float, form: str) -> str:
    return form.format(value) if np.isfinite(value) else "–"


def sentences(groups: Sequence[Group]) -> list[str]:
    """Where the closed form holds, where the window is not asymptotic, and what failed."""
    said = []
    deviation = np.concatenate([group.deviation for group in groups])
    limit = np.abs(np.concatenate([group.limit_deviation for group in groups]))
    every = _every(groups)
    rated = np.isfinite(every.rate) & every.margin
    window = f"gaps {comparison.BELOW:g} to {comparison.ABOVE:.1e}"
    said.append(
        f"the rate is fitted at {window}; {int(every.asymptotic.sum()):,} of {int(rated.sum()):,} windows "
        f"are asymptotic: the rate is its limit within {comparison.SAME:.0%}, and {comparison.MOST:.0%} of "
        "the gap fall at the smallest rate"
    )
    if every.asymptotic.any():
        agree = int(np.sum(np.abs(deviation[every.asymptotic]) <= AGREES))
        said.append(
            f"in {agree:,} of these {int(every.asymptotic.sum()):,} the rate is within {AGREES:.0%} of the "
            f"closed form, the worst within {np.nanmax(np.abs(deviation)):.2%}"
        )
    transient = rated & ~every.asymptotic
    if transient.any():
        faster = every.rate[transient] / every.predicted[transient]
        low, middle, high = np.quantile(faster, [0.1, 0.5, 0.9])
        said.append(
            f"in the other {int(transient.sum()):,} faster parts of the gap still die out: rates are "
            f"{middle:.3g} times the closed form (10–90 %: {low:.3g} to {high:.3g})"
        )
    known = np.isfinite(limit)
    if known.any():
        said.append(
            f"limits of the rate, from relative gaps {comparison.LATE_BELOW:g} to "
            f"{comparison.LATE_ABOVE:g}, are within {AGREES:.0%} of the closed form in "
            f"{int(np.sum(limit[known] <= AGREES)):,} of {int(known.sum()):,} runs "
            f"(median {np.median(limit[known]):.1e}, worst {limit[known].max():.1%})"
        )
    without = int(np.sum(~every.margin))
    if without:
        said.append(
            f"{without:,} points have λ_n ≤ τ: no margin, no exponential rate; their gap decays by a power"
        )
    reasons = Counter(_kind(each) for each in every.failure[every.margin] if each)
    said += [f"{count:,} without a rate: {reason}" for reason, count in reasons.most_common()]
    return said


def claims(groups: Sequence[Group]) -> list[Claim]:
    """What the paper shows of rates, what its theorem and ours promise, and the closed form."""
    every = _every(groups)
    rated = np.isfinite(every.rate) & every.margin
    said = []
    # At depth 1 the rate does not depend on λ_n.
    deeper = [fit for group in groups for fit in group.at_smallest.values() if np.isfinite(fit.slope)]
    wider = [
        fit for group in groups for at, fit in group.at_depth.items() if at > 1 and np.isfinite(fit.slope)
    ]
    for statement, lines in (
        ("deeper networks converge faster, at every √λ_n", deeper),
        ("targets with a larger √λ_n are learnt faster, at every depth above 1", wider),
    ):
        if lines:
            up = sum(fit.slope > 0 for fit in lines)
            squares = np.median([fit.r_squared for fit in lines])
            measured = f"{up} of {len(lines)} slopes above 0, median r² {squares:.3f}"
            said.append(Claim(statement, "the paper, §7", "all slopes above 0", measured, up == len(lines)))
    if every.asymptotic.any():
        away = worst(groups)
        statement = "where its window is asymptotic, the fitted rate is the closed form"
        measured = f"within {away:.2%} in {int(every.asymptotic.sum())} of {int(rated.sum()):,} windows"
        said.append(Claim(statement, "§4, §6", f"within {AGREES:.0%}", measured, away <= AGREES))
    limit = np.abs(np.concatenate([group.limit_deviation for group in groups]))
    known = limit[np.isfinite(limit)]
    if known.size:
        agree = int(np.sum(known <= AGREES))
        measured = f"{agree:,} of {known.size:,} runs, median deviation {np.median(known):.1e}"
        statement = "in the end every gap closes at the rate of the closed form"
        held = agree >= MOST * known.size
        said.append(Claim(statement, "§4, §6", f"within {AGREES:.0%} in {MOST:.0%}", measured, held))
    for field, statement, source in (
        ("sharp", "no run converges more slowly than the sharp certificate promises", "§6"),
        ("paper", "no run converges more slowly than the theorem promises", "the paper, §6"),
    ):
        ratio = (every.rate / getattr(every, field))[rated]
        ratio = ratio[np.isfinite(ratio)]
        if ratio.size:
            measured = f"{ratio.min():.3g} to {ratio.max():.3g} times as fast, {ratio.size:,} runs"
            held = bool(ratio.min() >= 1 - AGREES)
            said.append(Claim(statement, source, "at least 1 times as fast", measured, held))
    below = ~every.margin & (every.depth > 1) & np.isfinite(every.power)
    if below.any():
        ratio = every.power[below] * (every.depth[below] - 1) / every.depth[below]
        statement = "modes below τ decay by a power of time, t^(−N/(N−1)) at N ≥ 2"
        measured = f"exponents {ratio.min():.3f} to {ratio.max():.3f} times that, {ratio.size} runs"
        held = bool(np.abs(ratio - 1).max() <= POWER)
        said.append(Claim(statement, "§6", f"equal, within {POWER:.0%} by then", measured, held))
    return said


def _every(groups: Sequence[Group]) -> Points:
    """The points of all groups."""
    fields = zip(*(group.points for group in groups), strict=True)
    return Points(*(np.concatenate(values) for values in fields))


def _kind(failure: str) -> str:
    """A failure without its numbers."""
    if failure.startswith("gap "):
        return f"the gap is still above {comparison.ABOVE:.1e} in the end"
    if failure.startswith("begins"):
        return "the run begins below the window"
    return failure


def worst(groups: Sequence[Group]) -> float:
    """The largest deviation from the closed form in an asymptotic window; inf where there is none."""
    deviation = np.concatenate([np.abs(group.deviation) for group in groups])
    return float(np.nanmax(deviation)) if np.isfinite(deviation).any() else np.inf


# --- what is written ------------------------------------------------------------------------------

POINT_COLUMNS = (*Points._fields[:6], "root_smallest", *Points._fields[6:], "rate_over_predicted")
LINE_COLUMNS = ("loss", "tau", "against", "at", "slope", "intercept", "r_squared", "points")


def _rows_of_points(groups: Sequence[Group]) -> list[tuple[object, ...]]:
    rows = []
    for group in groups:
        for values in zip(*group.points, strict=True):
            point = Points(*values)
            root = float(np.sqrt(point.smallest))
            rows.append((*values[:6], root, *values[6:], point.rate / point.predicted))
    return rows


def _rows_of_lines(groups: Sequence[Group]) -> list[tuple[object, ...]]:
    """The regression lines: over all points, then at each √λ_n or depth (`at`)."""
    rows: list[tuple[object, ...]] = []
    for group in groups:
        lines = [
            ("depth", None, group.by_depth),
            ("root_smallest", None, group.by_smallest),
            *(("depth", float(np.sqrt(at)), line) for at, line in group.at_smallest.items()),
            *(("root_smallest", at, line) for at, line in group.at_depth.items()),
        ]
        rows += [(group.loss, group.tau, against, at, *line) for against, at, line in lines]
    return rows
