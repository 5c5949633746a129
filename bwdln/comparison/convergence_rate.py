"""The rate at which gaps close in every configuration of a sweep, against what theory says of it.

Rates are of the natural logarithm of the gap, per flow time (docs/theory.md §6, §7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bwdln import analysis
from bwdln.analysis import Dataset
from bwdln.config import Config
from bwdln.fits import Line, exponential_rate, line
from bwdln.theory import certificates, hessians
from bwdln.theory.checks import LossName
from bwdln.theory.starts import start_at
from bwdln.types import Array

#: Where the paper fits the rate: between these gaps.
ABOVE, BELOW = 10**-3.5, 1e-2
#: Where the rate no longer changes, if it ever does: between these relative gaps.
LATE_ABOVE, LATE_BELOW = 1e-13, 1e-9
#: A window is asymptotic where its rate is that of the late one up to this share.
SAME = 0.02

#: The losses whose rates theory knows.
LOSSES = ("bures_wasserstein", "frobenius")


class Points(NamedTuple):
    """A seed of a configuration each; all (points,), NaN for what is not there.

    `smallest`: λ_n of the target, `margin`: whether it is above τ; else there is no exponential rate.
    `rate`: fitted between `ABOVE` and `BELOW`, with its standard `error` and the number of `records` there;
    `late`: fitted between the relative gaps `LATE_ABOVE` and `LATE_BELOW`. `predicted`: in the end, in closed
    form. `sharp`, `paper`: promised by the certificates from the start of the run. `asymptotic`: whether the
    window is: `rate` is `late`. `failure`: why there is no rate, or "".
    """

    job: Int[Array, "points"]
    seed: Int[Array, "points"]
    loss: Shaped[Array, "points"]
    tau: Float[Array, "points"]
    depth: Float[Array, "points"]
    smallest: Float[Array, "points"]
    margin: Bool[Array, "points"]
    outcome: Shaped[Array, "points"]
    rate: Float[Array, "points"]
    error: Float[Array, "points"]
    records: Int[Array, "points"]
    late: Float[Array, "points"]
    predicted: Float[Array, "points"]
    sharp: Float[Array, "points"]
    paper: Float[Array, "points"]
    asymptotic: Bool[Array, "points"]
    failure: Shaped[Array, "points"]

    def where(self, chosen: Bool[Array, "points"]) -> Points:
        """Only those points."""
        return Points(*(values[chosen] for values in self))


class Group(NamedTuple):
    """The points of one loss and one τ, and their regression lines.

    `by_depth`, `by_smallest`: of the rate against the depth and against √λ_n, over all points with a margin;
    `at_smallest`, `at_depth`: against the same, at each value of the other. `deviation`: `rate` over
    `predicted` − 1 where the window is asymptotic, else NaN; `late_deviation`: of `late`, wherever it is
    known.
    """

    loss: str
    tau: float
    points: Points
    by_depth: Line
    by_smallest: Line
    at_smallest: dict[float, Line]
    at_depth: dict[float, Line]
    deviation: Float[Array, "points"]
    late_deviation: Float[Array, "points"]


class _Point(NamedTuple):
    """One of `Points`."""

    job: int
    seed: int
    loss: str
    tau: float
    depth: float
    smallest: float
    margin: bool
    outcome: str
    rate: float
    error: float
    records: int
    late: float
    predicted: float
    sharp: float
    paper: float
    asymptotic: bool
    failure: str


def compare(dataset: Dataset, configs: Mapping[int, Config]) -> list[Group]:
    """The groups of a sweep, by loss and τ; `configs` by the number of the job.

    The networks are as wide as the data: rates are those at full rank. Jobs whose loss theory knows
    nothing of are left out.
    """
    found = [*_every_point(dataset, configs)]
    columns = [np.array(values) for values in zip(*found, strict=True)] if found else []
    if not columns:
        return []
    points = Points(*columns)
    kinds = dict.fromkeys(sorted({(loss, tau) for loss, tau in zip(points.loss, points.tau, strict=True)}))
    return [
        _group(points.where((points.loss == loss) & (points.tau == tau)), str(loss), float(tau))
        for loss, tau in kinds
    ]


def _group(points: Points, loss: str, tau: float) -> Group:
    rate = np.where(points.margin, points.rate, np.nan)
    root = np.sqrt(points.smallest)
    depths, smallest = np.unique(points.depth), np.unique(points.smallest)
    return Group(
        loss=loss,
        tau=tau,
        points=points,
        by_depth=line(points.depth, rate),
        by_smallest=line(root, rate),
        at_smallest={
            float(each): line(points.depth[points.smallest == each], rate[points.smallest == each])
            for each in smallest
        },
        at_depth={
            float(each): line(root[points.depth == each], rate[points.depth == each]) for each in depths
        },
        deviation=np.where(points.asymptotic, points.rate / points.predicted - 1, np.nan),
        late_deviation=np.where(points.margin, points.late / points.predicted - 1, np.nan),
    )


# --- points ---------------------------------------------------------------------------------------


def _every_point(dataset: Dataset, configs: Mapping[int, Config]) -> Iterator[_Point]:
    """A point for each seed of each job."""
    names = ("time", "gap", "relative_gap", "loss")
    series = {name: dataset[name].transpose("config", "seed", "record").values for name in names}
    outcomes = dataset["outcome"].transpose("config", "seed").values
    eigenvalues = dataset["target_eigenvalues"].transpose("config", "eigenvalue").values
    depths, lost = dataset["depth"].values, analysis.sweep_diverged(dataset)
    seeds = dataset.get("seed_number", dataset["seed"].expand_dims(config=dataset.sizes["config"])).values
    predicted: dict[tuple[object, ...], float] = {}
    for row, job in enumerate(dataset["job"].values.tolist()):
        config = configs[job]
        if config.loss.name not in LOSSES:
            continue
        values = eigenvalues[row][np.isfinite(eigenvalues[row])]
        tau, depth = float(dict(config.loss.options).get("tau", 0.0)), float(depths[row])
        loss = cast(LossName, config.loss.name)
        key = (values.tobytes(), tau, depth, loss)
        if key not in predicted:
            rate = hessians.asymptotic_rate(values, len(values), depth=depth, tau=tau, loss=loss)
            predicted[key] = float(rate)
        for lane, outcome in enumerate(outcomes[row]):
            if outcome:
                own = {name: each[row, lane] for name, each in series.items()}
                failed = "diverged" if lost[row, lane] else ""
                yield _point(
                    job, int(seeds[row, lane]), loss, tau, depth, values, str(outcome), failed, own,
                    predicted[key],
                )  # fmt: skip


def _point(
    job: int,
    seed: int,
    loss: LossName,
    tau: float,
    depth: float,
    eigenvalues: Float[Array, "n"],
    outcome: str,
    failed: str,
    series: Mapping[str, Float[Array, "records"]],
    predicted: float,
) -> _Point:
    time, gap, smallest = series["time"], series["gap"], float(eigenvalues[-1])
    margin = smallest > tau
    fitted = exponential_rate(time, gap, above=ABOVE, below=BELOW)
    late = exponential_rate(time, series["relative_gap"], above=LATE_ABOVE, below=LATE_BELOW).rate
    rate = np.nan if failed else fitted.rate
    sharp, paper = _promised(eigenvalues, float(series["loss"][0]), depth, tau, loss)
    return _Point(
        job=job,
        seed=seed,
        loss=loss,
        tau=tau,
        depth=depth,
        smallest=smallest,
        margin=margin,
        outcome=outcome,
        rate=rate,
        error=fitted.error,
        records=fitted.points,
        late=late,
        predicted=predicted if margin else np.nan,
        sharp=sharp,
        paper=paper,
        asymptotic=bool(margin and abs(rate / late - 1) <= SAME),
        failure=failed or ("" if np.isfinite(rate) else _why_not(time, gap)),
    )


def _why_not(time: Float[Array, "records"], gap: Float[Array, "records"]) -> str:
    """Why there are no three records in the window."""
    known = np.isfinite(gap)
    if gap[known][-1] > ABOVE:
        return f"gap {gap[known][-1]:.1e} at its end, flow time {time[known][-1]:.3g}"
    if gap[0] < BELOW:
        return f"begins below the window, at gap {gap[0]:.1e}"
    return "too few records in the window"


def _promised(
    eigenvalues: Float[Array, "n"], value: float, depth: float, tau: float, loss: LossName
) -> tuple[float, float]:
    """The rates of the sharp certificate and of the paper's, by the start; NaN for what is not promised."""
    if loss != "bures_wasserstein" or not np.isfinite(value):
        return np.nan, np.nan
    start = start_at(eigenvalues, value, depth=depth, tau=tau, loss=loss, rank=len(eigenvalues))
    promised = certificates.sharp_constant(start), certificates.paper_flow(start)
    sharp, paper = (each.rate if each.holds and each.rate > 0 else np.nan for each in promised)
    return sharp, paper
