"""What generators learn of data against principal component analysis of the same data.

At τ = 0 the best generator of rank k has the k leading principal components, and its loss is the variance
behind them, Σ_{i>k} λ_i; with τ the variances are λ_i − τ, and components with λ_i ≤ τ are not learnt
(docs/theory.md §3). The components are computed here from the samples, in another way than the target is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from bwdln import analysis
from bwdln.analysis import Images
from bwdln.errors import check
from bwdln.results import Result
from bwdln.types import Array, Covariance, EndToEnd, Spectrum


class Components(NamedTuple):
    """Principal components: `variances` (n,), descending, and `directions` (n, n), as columns."""

    variances: Spectrum
    directions: Float[Array, "n n"]

    @property
    def total(self) -> float:
        """The variance of the data, over all directions."""
        return float(self.variances.sum())


class Learned(NamedTuple):
    """A run of rank k at one τ, at its end, beside what principal components say of it.

    `optimum`: the smallest loss; `expected` (k,): the variances of the best generator. Of each seed:
    `loss`, `variances` s_i² (k,), `cosines` |u_i · ω_i| (k,), and `distance`: ‖W Wᵀ − Σ*‖_F / ‖Σ*‖_F from
    the best covariance, NaN where that is zero.
    """

    rank: int
    tau: float
    optimum: float
    expected: Float[Array, "k"]
    seed: Int[Array, "seeds"]
    outcome: Shaped[Array, "seeds"]
    loss: Float[Array, "seeds"]
    variances: Float[Array, "seeds k"]
    cosines: Float[Array, "seeds k"]
    distance: Float[Array, "seeds"]

    @property
    def learnable(self) -> np.ndarray:
        """Which of the k components the best generator has, (k,)."""
        return np.asarray(self.expected > 0)

    @property
    def misalignment(self) -> Float[Array, "seeds"]:
        """The largest 1 − |u_i · ω_i| of the components that can be learnt; 0 where there are none."""
        return np.max(1 - self.cosines, axis=1, where=self.learnable, initial=0.0)


class Portraits(NamedTuple):
    """What a generator has learnt, as images (k, height, width), beside the components, signs alike."""

    seed: int
    learned: Float[Array, "k height width"]
    components: Float[Array, "k height width"]
    cosines: Float[Array, "k"]


class Generated(NamedTuple):
    """Images of the same draws by generators of rank `rank`: `rows` (ranks, count, height, width)."""

    rank: Int[Array, "ranks"]
    rows: Float[Array, "ranks count height width"]
    low: float
    high: float


class Comparison(NamedTuple):
    """The main run, and runs by rank at τ = 0 and by τ at the rank of the main run, it among both.

    `portraits` and `generated` are None where samples are no images.
    """

    components: Components
    main: Learned
    by_rank: tuple[Learned, ...]
    by_tau: tuple[Learned, ...]
    portraits: Portraits | None
    generated: Generated | None

    def gap(self, learned: Learned) -> Float[Array, "seeds"]:
        """The loss above the smallest one, relative to the variance of the data; rounding may be negative."""
        return (learned.loss - learned.optimum) / self.components.total


def components(samples: Float[Array, "count n"], *, center: bool = True) -> Components:
    """Principal components of samples, one a row, by the eigenvectors of their covariance matrix.

    Variances that are rounding of that matrix are zero.
    """
    rows = np.asarray(samples, np.float64)
    rows = rows - rows.mean(axis=0) * center
    covariance: Covariance = rows.T @ rows / len(rows)
    variances, directions = np.linalg.eigh(covariance)
    rounding = len(variances) * np.finfo(float).eps * variances[-1]
    return Components(np.where(variances > rounding, variances, 0)[::-1], directions[:, ::-1])


def compare(runs: Sequence[Result], main: Result, pca: Components) -> Comparison:
    """Hold runs against the components: of one data set and loss, with the main run among them.

    Raises `InvalidOption` where there are none.
    """
    check(len(runs) > 0, "runs", "nothing", "at least one run")
    everyone = [(run, learned(run, pca)) for run in runs]
    own = next(each for run, each in everyone if run is main)
    by_rank = sorted(((run, each) for run, each in everyone if each.tau == 0), key=lambda pair: pair[1].rank)
    by_tau = sorted((each for _, each in everyone if each.rank == own.rank), key=lambda each: each.tau)
    pictures = analysis.image_shape(main) is not None
    return Comparison(
        components=pca,
        main=own,
        by_rank=tuple(each for _, each in by_rank),
        by_tau=tuple(by_tau),
        portraits=portraits(main, pca) if pictures else None,
        generated=generated([run for run, _ in by_rank], pca) if pictures else None,
    )


def learned(run: Result, pca: Components) -> Learned:
    """What a run came to, seed by seed, and what it should have."""
    rank = run.dataset.sizes["mode"]
    tau = float(run.config.loss.option("tau", 0.0))
    ends = [_svd(generator, rank) for generator in run.dataset["final_end_to_end"].values]
    expected = np.maximum(pca.variances[:rank] - tau, 0)
    return Learned(
        rank=rank,
        tau=tau,
        optimum=optimum(pca, rank, tau),
        expected=expected,
        seed=run.dataset["seed"].values,
        outcome=np.array(run.outcomes),
        loss=run.dataset["loss"].transpose("seed", "record").values[:, -1],
        variances=np.array([singular**2 for _, singular in ends]),
        cosines=np.array([np.abs(np.sum(left * pca.directions[:, :rank], axis=0)) for left, _ in ends]),
        distance=np.array([_distance(*end, expected, pca) for end in ends]),
    )


def optimum(pca: Components, rank: int, tau: float = 0.0) -> float:
    """The smallest loss of a generator of that rank: Σ (√λ_i − √τ)² of the components it does not have."""
    has = np.sum(pca.variances[:rank] > tau)
    return float(np.sum((np.sqrt(pca.variances[has:]) - np.sqrt(tau)) ** 2))


def _svd(generator: EndToEnd, rank: int) -> tuple[Float[Array, "n k"], Float[Array, "k"]]:
    """Left singular vectors and singular values; NaN where the generator is not finite."""
    if not np.isfinite(generator).all():
        return np.full((len(generator), rank), np.nan), np.full(rank, np.nan)
    left, singular, _ = np.linalg.svd(generator, full_matrices=False)
    return left[:, :rank], singular[:rank]


def _distance(left: Array, singular: Array, expected: Array, pca: Components) -> float:
    """‖U S² Uᵀ − Ω E Ωᵀ‖_F / ‖E‖_F, from products of k × k only."""
    size = np.linalg.norm(expected)
    if size == 0:
        return np.nan
    values, own = np.concatenate([singular**2, -expected]), pca.directions[:, : len(expected)]
    _, triangular = np.linalg.qr(np.concatenate([left, own], axis=1))
    return float(np.linalg.norm(triangular * values @ triangular.T) / size)


def _signed(run: Result, pca: Components) -> tuple[int, Array, Array]:
    """The lane that is shown, and its left singular vectors, signs as the components', and values."""
    lane, rank = analysis.shown_lane(run), run.dataset.sizes["mode"]
    left, singular = _svd(analysis.end_to_end(run, lane), rank)
    signs = np.where(np.sum(left * pca.directions[:, :rank], axis=0) < 0, -1.0, 1.0)
    return lane, left * signs, singular


def portraits(run: Result, pca: Components) -> Portraits:
    """The components that the first seed that did not diverge has learnt; the data are images."""
    lane, left, _ = _signed(run, pca)
    size = (-1, *(analysis.image_shape(run) or ()))
    own = pca.directions[:, : left.shape[1]]
    return Portraits(
        seed=int(run.dataset["seed"].values[lane]),
        learned=left.T.reshape(size),
        components=own.T.reshape(size),
        cosines=np.abs(np.sum(left * own, axis=0)),
    )


def generated(runs: Sequence[Result], pca: Components, count: int = 8) -> Generated:
    """The same draws by generators of every rank: a draw has a number for each component, the first k used.

    A generator is known up to a rotation of its latent space, which moves no distribution; here each
    number goes to one component, so that rows can be compared. Draws are from a fixed seed.
    """
    draws = np.random.default_rng(0).standard_normal((count, len(pca.variances)))
    shown: Images = analysis.images(runs[0], count)
    _, *size = shown.real.shape
    rows = []
    for run in runs:
        _, left, singular = _signed(run, pca)
        images = draws[:, : len(singular)] * singular @ left.T + analysis.sample_mean(run)
        rows.append(images.reshape(count, *size))
    return Generated(
        np.array([run.dataset.sizes["mode"] for run in runs]), np.array(rows), shown.low, shown.high
    )
