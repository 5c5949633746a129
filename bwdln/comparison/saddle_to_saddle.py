"""When a flow from a small start learns the modes of the target, against what theory predicts.

Every mode waits near a saddle until its time comes. From an aligned start each evolves on its own and its
time is exact (docs/theory.md §5, E3). From any other start it is estimated by the same formula, from what
the start has of the mode beyond the modes that come before it (`free_strengths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from bwdln import analysis
from bwdln.errors import check
from bwdln.fits import crossing_time
from bwdln.results import Result
from bwdln.theory import critical_points, exact_solutions
from bwdln.theory.checks import LossName
from bwdln.types import Array


class Learning(NamedTuple):
    """One run: modes along the second axis of (seeds, k), in the order of the eigenvalues, largest first.

    `aligned`: whether the predicted times are exact; else they are estimates. `strength` (seeds, R+1, k):
    ‖ω_iᵀ W(t)‖, the standard deviation of what is generated along eigenvector i, and from an aligned start
    the singular value i. `value` (seeds, R+1): the loss. `optimal` (k,): where a strength ends, 0 for modes
    that are not learnt. `plateaus`: the values of the critical points {}, {1}, {1, 2}, …, those the flow
    passes if it learns the modes one by one. `predicted` and `measured`: the flow time at which a strength
    reaches the fraction of its end; inf and NaN where it does not.
    """

    loss: LossName
    aligned: bool
    seed: Int[Array, "seeds"]
    outcome: Shaped[Array, "seeds"]
    eigenvalue: Float[Array, "k"]
    time: Float[Array, "seeds records"]
    strength: Float[Array, "seeds records k"]
    value: Float[Array, "seeds records"]
    optimal: Float[Array, "k"]
    plateaus: Float[Array, "stages"]
    free: Float[Array, "seeds k"]
    predicted: Float[Array, "seeds k"]
    measured: Float[Array, "seeds k"]

    @property
    def name(self) -> str:
        """The loss and the start, in words."""
        return f"{self.loss}, {'aligned' if self.aligned else 'unaligned'}"

    @property
    def ratio(self) -> Float[Array, "seeds k"]:
        """Measured over predicted times; NaN where there is none, or nothing to wait for."""
        usable = np.isfinite(self.measured) & np.isfinite(self.predicted) & (self.predicted > 0)
        return np.where(usable, self.measured / np.where(usable, self.predicted, 1), np.nan)

    @property
    def in_order(self) -> Shaped[Array, "seeds"]:
        """Whether a seed learned several modes, and these in the order of the eigenvalues."""
        learned = [times[np.isfinite(times)] for times in self.measured]
        return np.array([len(times) > 1 and bool(np.all(np.diff(times) >= 0)) for times in learned])


class Comparison(NamedTuple):
    """What the runs of the study learned; `fraction` of its end makes a mode a learnt one."""

    fraction: float
    depth: float
    tau: float
    runs: tuple[Learning, ...]


def compare(runs: Sequence[Result], fraction: float) -> Comparison:
    """Measure and predict when the modes of each run are learnt; all have the same target and depth.

    The runs need `end_to_end` among their records. Raises `InvalidOption` where there are none.
    """
    check(len(runs) > 0, "runs", "nothing", "at least one run")
    tau = max(tau_of(run) for run in runs)
    depth = float(runs[0].dataset.attrs["depth"])
    return Comparison(fraction, depth, tau, tuple(learning(run, fraction) for run in runs))


def learning(run: Result, fraction: float) -> Learning:
    """What one run learned, and when."""
    dataset, loss, tau = run.dataset, loss_of(run), tau_of(run)
    eigenvalues, rank = dataset["target_eigenvalues"].values, dataset.sizes["mode"]
    optimal = dataset["optimal_singular_values"].values
    along = strengths(run)
    initial = dataset["initial_end_to_end"].transpose("seed", "feature", "latent").values
    start = free_strengths(np.einsum("fi,sfl->sil", analysis.eigenvectors(run), initial), rank)
    times = dataset["time"].transpose("seed", "record").values
    return Learning(
        loss=loss,
        aligned=run.config.initialization.name == "aligned",
        seed=dataset["seed"].values,
        outcome=np.array(run.outcomes),
        eigenvalue=eigenvalues[:rank],
        time=times,
        strength=along,
        value=dataset["loss"].transpose("seed", "record").values,
        optimal=optimal,
        plateaus=plateaus(eigenvalues, rank, tau, loss),
        free=start,
        predicted=predictions(start, eigenvalues, float(dataset.attrs["depth"]), tau, loss, fraction),
        measured=np.array([measured(*lane, optimal, fraction) for lane in zip(times, along, strict=True)]),
    )


def loss_of(run: Result) -> LossName:
    """The loss of a run, one of the two the study compares."""
    return "frobenius" if run.config.loss.name == "frobenius" else "bures_wasserstein"


def tau_of(run: Result) -> float:
    """The perturbation τ of a run; 0 for losses without it."""
    return float(run.config.loss.option("tau", 0.0))


def strengths(run: Result) -> Float[Array, "seeds records k"]:
    """‖ω_iᵀ W‖ at every record, of the k leading eigenvectors."""
    leading = analysis.eigenvectors(run)[:, : run.dataset.sizes["mode"]]
    dims = ("seed", "record", "feature", "latent")
    generators = run.dataset["end_to_end"].transpose(*dims).values
    return np.linalg.norm(np.einsum("fk,srfl->srkl", leading, generators), axis=3)


def free_strengths(modes: Float[Array, "seeds n m"], rank: int) -> Float[Array, "seeds k"]:
    """How long each row ω_iᵀ W of generators in the eigenbasis is beyond the span of the rows before it.

    A mode that has been learnt occupies its direction of the latent space, along which later modes then
    no longer grow. The rows of an aligned start are orthogonal: there these are its singular values.
    """
    # The rows are the columns of the transpose, of whose QR decomposition R has the lengths.
    return np.array([np.abs(np.diagonal(np.linalg.qr(each[:rank].T, mode="r"))) for each in modes])


def predictions(
    start: Float[Array, "seeds k"],
    eigenvalues: Float[Array, "n"],
    depth: float,
    tau: float,
    loss: LossName,
    fraction: float,
) -> Float[Array, "seeds k"]:
    """The flow times at which modes that evolve on their own reach the fraction of where they end."""
    modes = np.broadcast_to(eigenvalues[: start.shape[1]], start.shape)
    times = exact_solutions.learning_time(start, modes, depth=depth, tau=tau, loss=loss, fraction=fraction)
    return np.asarray(times)


def measured(
    time: Float[Array, "records"],
    strength: Float[Array, "records k"],
    optimal: Float[Array, "k"],
    fraction: float,
) -> Float[Array, "k"]:
    """When each strength first reaches the fraction of its end; NaN for modes that are not learnt."""
    found = [
        crossing_time(time, own, fraction * end) if end > 0 else np.nan
        for own, end in zip(strength.T, optimal, strict=True)
    ]
    return np.array(found)


def plateaus(eigenvalues: Float[Array, "n"], rank: int, tau: float, loss: LossName) -> Float[Array, "stages"]:
    """The loss with no mode, the first, the first two, …, of those that are learnt at this rank."""
    level = tau if loss == "bures_wasserstein" else 0.0
    most = min(rank, int(np.sum(eigenvalues > level)))
    sets = [tuple(range(count)) for count in range(most + 1)]
    return np.array([critical_points.value(eigenvalues, each, tau=tau, loss=loss) for each in sets])
