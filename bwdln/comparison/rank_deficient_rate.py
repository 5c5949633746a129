"""How fast runs of too low a rank find the leading subspace, against the rate that theory predicts.

With k < n and τ = 0 the gap ends as exp(−rate · t), where rate = 4 λ_k^{(N−1)/N} (1 − λ_{k+1}/λ_k) for
Bures-Wasserstein (docs/theory.md §6): there is no factor N. Rates are of the natural logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from bwdln.errors import check
from bwdln.fits import exponential_rate
from bwdln.results import Result
from bwdln.theory import hessians
from bwdln.theory.checks import LossName
from bwdln.types import Array, Spectrum

#: The window of the relative gap a rate is fitted in. Late, so that faster parts of the gap are gone: one
#: whose rate is larger by a half has lost a factor of e^15 against the slowest. Not so late that the error
#: of an integration to 1e-12 could be seen: it enters the gap by its square.
ABOVE, BELOW = 1e-18, 1e-13

#: How many points the curves of theory have.
POINTS = 65


class Curve(NamedTuple):
    """The relative gap of the first seed of a case: `efolds` (R+1,), predicted rate · time, and `gap`."""

    depth: float
    ratio: float
    efolds: Float[Array, "records"]
    gap: Float[Array, "records"]


class Line(NamedTuple):
    """What theory says at one depth, or at one ratio: `rate` against `along` (eigengaps or depths)."""

    fixed: float
    along: Float[Array, "points"]
    rate: Float[Array, "points"]


class Comparison(NamedTuple):
    """Fitted rates against predicted ones, by case; a case is a depth and a ratio λ_{k+1}/λ_k.

    `level` is λ_k, `loss` the name of the loss. `measured`, `error` (of the fit, by its scatter) and
    `points`: (cases, seeds); NaN where fewer than three records lie in the window. `against_gap` has a
    line for each depth, `against_depth` for each ratio.
    """

    loss: LossName
    level: float
    depth: Float[Array, "cases"]
    ratio: Float[Array, "cases"]
    predicted: Float[Array, "cases"]
    seed: Int[Array, "seeds"]
    outcome: Shaped[Array, "cases seeds"]
    measured: Float[Array, "cases seeds"]
    error: Float[Array, "cases seeds"]
    points: Int[Array, "cases seeds"]
    curves: tuple[Curve, ...]
    against_gap: tuple[Line, ...]
    against_depth: tuple[Line, ...]

    @property
    def deviation(self) -> Float[Array, "cases seeds"]:
        """How far measured rates are from the predicted ones, relative to these."""
        return self.measured / self.predicted[:, None] - 1


def compare(runs: Sequence[Result]) -> Comparison:
    """Fit the rate of every seed of every run; all of one loss, rank and λ_1, …, λ_k.

    Raises `InvalidOption` where there are none.
    """
    check(len(runs) > 0, "runs", "nothing", "at least one run")
    ordered = sorted(runs, key=lambda run: (depth_of(run), ratio_of(run)))
    spectra = [run.dataset["target_eigenvalues"].values for run in ordered]
    loss, rank = _loss(ordered[0]), ordered[0].dataset.sizes["mode"]
    depths = np.array([depth_of(run) for run in ordered])
    ratios = np.array([ratio_of(run) for run in ordered])
    predicted = predictions(np.array(spectra), depths, rank, loss)
    fitted = np.array([fits(run) for run in ordered])
    return Comparison(
        loss=loss,
        level=float(spectra[0][rank - 1]),
        depth=depths,
        ratio=ratios,
        predicted=predicted,
        seed=ordered[0].dataset["seed"].values,
        outcome=np.array([run.outcomes for run in ordered]),
        measured=fitted[..., 0],
        error=fitted[..., 1],
        points=fitted[..., 2].astype(int),
        curves=tuple(curve(run, rate) for run, rate in zip(ordered, predicted, strict=True)),
        against_gap=_against_gap(spectra[0], rank, depths, ratios, loss),
        against_depth=_against_depth(spectra[0], rank, depths, ratios, loss),
    )


def with_ratio(eigenvalues: Spectrum, rank: int, ratio: float) -> np.ndarray:
    """The spectrum with all behind λ_k, k the rank, multiplied by one number: λ_{k+1} = ratio · λ_k."""
    values = np.array(eigenvalues, dtype=np.float64)
    values[rank:] *= ratio * values[rank - 1] / values[rank]
    return values


def predictions(
    eigenvalues: Float[Array, "cases n"], depths: Float[Array, "cases"], rank: int, loss: LossName
) -> Float[Array, "cases"]:
    """The predicted rate of each case, per flow time."""

    def one(values: Array, depth: Array) -> Array:
        return jnp.asarray(hessians.asymptotic_rate(values, rank, depth=depth, tau=0.0, loss=loss))

    return np.asarray(jax.vmap(one)(jnp.asarray(eigenvalues), jnp.asarray(depths)))


def fits(run: Result) -> Float[Array, "seeds 3"]:
    """Rate, its standard error and the number of records it is fitted to, of each seed."""
    times = run.dataset["time"].transpose("seed", "record").values
    gaps = run.dataset["relative_gap"].transpose("seed", "record").values
    laws = [exponential_rate(*lane, above=ABOVE, below=BELOW) for lane in zip(times, gaps, strict=True)]
    return np.array([(law.rate, law.error, law.points) for law in laws])


def curve(run: Result, rate: float) -> Curve:
    """The relative gap of the first seed, against its time in units of 1 / rate."""
    time, gap = (run.dataset[name].isel(seed=0).values for name in ("time", "relative_gap"))
    return Curve(depth_of(run), ratio_of(run), rate * time, gap)


def _loss(run: Result) -> LossName:
    return "frobenius" if run.config.loss.name == "frobenius" else "bures_wasserstein"


def depth_of(run: Result) -> float:
    """The depth N of a run."""
    return float(run.dataset.attrs["depth"])


def ratio_of(run: Result) -> float:
    """λ_{k+1} / λ_k of a run, to the digits that tell one ratio from another."""
    eigenvalues, rank = run.dataset["target_eigenvalues"].values, run.dataset.sizes["mode"]
    return round(float(eigenvalues[rank] / eigenvalues[rank - 1]), 12)


def _against_gap(
    eigenvalues: Spectrum, rank: int, depths: Array, ratios: Array, loss: LossName
) -> tuple[Line, ...]:
    """A line for each depth, over the eigengaps between the smallest and the largest."""
    gaps = np.geomspace(1 - ratios.max(), 1 - ratios.min(), POINTS)
    spectra = np.array([with_ratio(eigenvalues, rank, 1 - gap) for gap in gaps])
    lines = []
    for depth in np.unique(depths):
        rates = predictions(spectra, np.full(len(gaps), depth), rank, loss)
        lines.append(Line(float(depth), gaps, rates))
    return tuple(lines)


def _against_depth(
    eigenvalues: Spectrum, rank: int, depths: Array, ratios: Array, loss: LossName
) -> tuple[Line, ...]:
    """A line for each ratio, over all real depths between the smallest and the largest."""
    along = np.geomspace(depths.min(), depths.max(), POINTS)
    lines = []
    for ratio in np.unique(ratios):
        spectra = np.tile(with_ratio(eigenvalues, rank, ratio), (POINTS, 1))
        lines.append(Line(float(ratio), along, predictions(spectra, along, rank, loss)))
    return tuple(lines)
