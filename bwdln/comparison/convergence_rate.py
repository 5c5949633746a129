"""The rate at which gaps close in every configuration of a sweep, against what theory says of it.

Rates are of the natural logarithm of the gap, per flow time (docs/theory.md §6, §7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.interpolate import PchipInterpolator

from bwdln import analysis
from bwdln.analysis import Dataset
from bwdln.fits import Line, exponential_rate, line
from bwdln.theory import certificates, hessians
from bwdln.theory.checks import LossName
from bwdln.theory.starts import start_at
from bwdln.types import Array

#: Where the paper fits the rate: between these gaps.
ABOVE, BELOW = 10**-3.5, 1e-2
#: Where the rate is near its limit: between these relative gaps.
LATE_ABOVE, LATE_BELOW = 1e-12, 1e-9
#: A window is asymptotic where its rate is the limit up to the share `SAME`, and at least `MOST` of the gap
#: falls at the smallest rate, up to the same share.
SAME, MOST = 0.02, 0.9

#: A power of time is fitted from this share of the flow time on.
LAST = 1 / 3

#: The losses whose rates theory knows.
LOSSES = ("bures_wasserstein", "frobenius")


class Points(NamedTuple):
    """A seed of a configuration each; all (points,), NaN for what is not there.

    `smallest`: λ_n of the target, `margin`: whether it is above τ; else there is no exponential rate.
    `rate`: fitted between `ABOVE` and `BELOW`, with its standard `error` and the number of `records` there.
    `limit`: that of the rate −d ln gap / dt = ‖∇L^N‖² / gap, extrapolated from between the relative gaps
    `LATE_ABOVE` and `LATE_BELOW`; `predicted`: the same in closed form. `slow`: the smallest share of the gap
    in the window that falls at the smallest rate (up to `SAME`). `sharp`, `paper`: promised by the
    certificates from the start of the run. `asymptotic`: whether the window is (`SAME`, `MOST`). `power`:
    without a margin, p of a gap that ends up falling like t^(−p). `failure`: why there is no rate, or "".
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
    limit: Float[Array, "points"]
    predicted: Float[Array, "points"]
    slow: Float[Array, "points"]
    sharp: Float[Array, "points"]
    paper: Float[Array, "points"]
    asymptotic: Bool[Array, "points"]
    power: Float[Array, "points"]
    failure: Shaped[Array, "points"]

    def where(self, chosen: Bool[Array, "points"]) -> Points:
        """Only those points."""
        return Points(*(values[chosen] for values in self))


class Group(NamedTuple):
    """The points of one loss and one τ, and their regression lines.

    `by_depth`, `by_smallest`: of the rate against the depth and against √λ_n, over all points with a margin;
    `at_smallest`, `at_depth`: against the same, at each value of the other. `deviation`: `rate` over
    `predicted` − 1 where the window is asymptotic, else NaN; `limit_deviation`: of `limit`, wherever it
    is known.
    """

    loss: str
    tau: float
    points: Points
    by_depth: Line
    by_smallest: Line
    at_smallest: dict[float, Line]
    at_depth: dict[float, Line]
    deviation: Float[Array, "points"]
    limit_deviation: Float[Array, "points"]

    @property
    def name(self) -> str:
        """The loss, by its τ where it has one."""
        return "Frobenius" if self.loss == "frobenius" else f"τ = {self.tau:g}"


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
    limit: float
    predicted: float
    slow: float
    sharp: float
    paper: float
    asymptotic: bool
    power: float
    failure: str


def compare(dataset: Dataset, losses: Mapping[int, tuple[str, float]]) -> list[Group]:
    """The groups of a sweep, by loss and τ; `losses`: name and τ by the number of the job.

    The losses are of `LOSSES`, the networks as wide as the data: rates are those at full rank.
    """
    found = [*_every_point(dataset, losses)]
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
        limit_deviation=np.where(points.margin, points.limit / points.predicted - 1, np.nan),
    )


# --- points ---------------------------------------------------------------------------------------


def _every_point(dataset: Dataset, losses: Mapping[int, tuple[str, float]]) -> Iterator[_Point]:
    """A point for each seed of each job."""
    names = ("time", "gap", "relative_gap", "gradient_norm", "loss", "singular_values")
    series = {name: dataset[name].transpose("config", "seed", "record", ...).values for name in names}
    outcomes = dataset["outcome"].transpose("config", "seed").values
    eigenvalues = dataset["target_eigenvalues"].transpose("config", "eigenvalue").values
    depths, lost = dataset["depth"].values, analysis.sweep_diverged(dataset)
    seeds = dataset.get("seed_number", dataset["seed"].expand_dims(config=dataset.sizes["config"])).values
    for row, job in enumerate(dataset["job"].values.tolist()):
        loss, tau = losses[job]
        values = eigenvalues[row][np.isfinite(eigenvalues[row])]
        theory = _theory(values, float(depths[row]), tau, cast(LossName, loss))
        for lane in np.flatnonzero(outcomes[row] != ""):
            own = {name: each[row, lane] for name, each in series.items()}
            end = str(outcomes[row, lane]), bool(lost[row, lane])
            yield _point(job, int(seeds[row, lane]), theory, *end, own)


class _Theory(NamedTuple):
    """What is known of a configuration: `rates` of all pairs of modes, NaN without a margin.

    `of_modes`: those of the pairs of a mode with itself.
    """

    eigenvalues: Float[Array, "n"]
    depth: float
    tau: float
    loss: LossName
    rates: Float[Array, "pairs"]
    of_modes: Float[Array, "n"]


def _theory(eigenvalues: Float[Array, "n"], depth: float, tau: float, loss: LossName) -> _Theory:
    number = len(eigenvalues)
    first, second = np.triu_indices(number)
    rates = np.full(len(first), np.nan)
    if eigenvalues[-1] > tau:
        every = tuple(range(number))
        rates = 2 * np.asarray(hessians.spectrum(eigenvalues, every, depth=depth, tau=tau, loss=loss))
    return _Theory(eigenvalues, depth, tau, loss, rates, rates[first == second])


def _point(
    job: int,
    seed: int,
    theory: _Theory,
    outcome: str,
    lost: bool,
    series: Mapping[str, Float[Array, "records ..."]],
) -> _Point:
    time, gap, smallest = series["time"], series["gap"], float(theory.eigenvalues[-1])
    margin = smallest > theory.tau
    fitted = exponential_rate(time, gap, above=ABOVE, below=BELOW)
    rate, limit, slow = np.nan if lost else fitted.rate, _limit(series), _slow(theory, series)
    sharp, paper = _promised(theory, float(series["loss"][0]))
    return _Point(
        job=job,
        seed=seed,
        loss=theory.loss,
        tau=theory.tau,
        depth=theory.depth,
        smallest=smallest,
        margin=margin,
        outcome=outcome,
        rate=rate,
        error=fitted.error,
        records=fitted.points,
        limit=limit,
        predicted=float(theory.rates.min()),
        slow=slow,
        sharp=sharp,
        paper=paper,
        power=np.nan if margin or lost else _power(series),
        asymptotic=bool(margin and abs(rate / limit - 1) <= SAME and slow >= MOST),
        failure="diverged" if lost else "" if np.isfinite(rate) else _why_not(time, gap),
    )


def _limit(series: Mapping[str, Float[Array, "records ..."]]) -> float:
    """The limit of the rate: Aitken's extrapolation of three equidistant ones; NaN if the run ends before.

    Where two exponentials are left, of rates r and r + δ, the rate tends to r like e^{−δ t}.
    """
    time, gap, relative = series["time"], series["gap"], series["relative_gap"]
    later = np.append(True, np.diff(time) > 0)
    late = later & (relative > LATE_ABOVE) & (relative < LATE_BELOW)
    if late.sum() < 3 or not np.nanmin(relative) <= LATE_ABOVE:
        return np.nan
    rates, times = series["gradient_norm"][late] ** 2 / gap[late], time[late]
    first, middle, last = PchipInterpolator(times, rates)(np.linspace(times[0], times[-1], 3))
    bend = (last - middle) - (middle - first)
    # A sequence that hardly bends, or bends away, is at its limit up to noise.
    settled = abs(bend) <= 1e-4 * last or abs(last - middle) >= abs(middle - first)
    return float(last if settled else last - (last - middle) ** 2 / bend)


def _power(series: Mapping[str, Float[Array, "records ..."]]) -> float:
    """p of a gap that ends up like (t + t₀)^(−p): one over its rate is (t + t₀) / p."""
    time = series["time"]
    last = np.append(True, np.diff(time) > 0) & (time > LAST * np.nanmax(time))
    slope = line(time[last], series["gap"][last] / series["gradient_norm"][last] ** 2).slope
    return 1 / slope if slope > 0 else np.nan


def _slow(theory: _Theory, series: Mapping[str, Float[Array, "records ..."]]) -> float:
    """The smallest share of the gap in the window that falls at the smallest rate, up to `SAME`.

    The part of each mode by itself is known by its singular value (§9); the rest is of pairs of modes.
    """
    within = (series["gap"] > ABOVE) & (series["gap"] < BELOW)
    if not within.any() or np.isnan(theory.rates).any():
        return np.nan
    near = (1 + SAME) * theory.rates.min()
    if theory.rates.max() <= near:
        return 1.0
    singular, values = series["singular_values"][within], theory.eigenvalues
    if theory.loss == "frobenius":
        parts = (singular**2 - values) ** 2
    else:
        parts = (np.sqrt(singular**2 + theory.tau) - np.sqrt(values)) ** 2
    return float(np.min(parts[:, theory.of_modes <= near].sum(axis=1) / series["gap"][within]))


def _why_not(time: Float[Array, "records"], gap: Float[Array, "records"]) -> str:
    """Why there are no three records in the window."""
    known = np.isfinite(gap)
    if gap[known][-1] > ABOVE:
        return f"gap {gap[known][-1]:.1e} at its end, flow time {time[known][-1]:.3g}"
    if gap[0] < BELOW:
        return f"begins below the window, at gap {gap[0]:.1e}"
    return "too few records in the window"


def _promised(theory: _Theory, value: float) -> tuple[float, float]:
    """The rates of the sharp certificate and of the paper's, by the start; NaN for what is not promised."""
    if theory.loss != "bures_wasserstein" or not np.isfinite(value):
        return np.nan, np.nan
    values, depth, tau, loss = theory[:4]
    start = start_at(values, value, depth=depth, tau=tau, loss=loss, rank=len(values))
    promised = certificates.sharp_constant(start), certificates.paper_flow(start)
    sharp, paper = (each.rate if each.holds and each.rate > 0 else np.nan for each in promised)
    return sharp, paper
