"""The start of a run as its promises see it: numbers alone, and which hypotheses hold for them (§6).

NumPy, float64, host side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bwdln.errors import check
from bwdln.networks import bottleneck, layer_widths
from bwdln.targets import Target
from bwdln.theory.checks import LossName, check_depth, check_loss, check_spectrum
from bwdln.types import Array, EndToEnd, Spectrum, Weights

#: Largest ‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖_F of a balanced start, relative to Σ_j ‖W_j‖_F².
BALANCED = 1e-8


class Start(NamedTuple):
    """All that the promises depend on; `start_of` and `start_at` make it.

    `eigenvalues` (n,) of the target; `depth` N ≥ 1, any number; `tau` τ and `loss` of what is trained;
    `rank` the bottleneck k; `value` L_τ(0), the squared Bures-Wasserstein distance of Σ_W + τ I to Σ₀,
    whatever the loss (Frobenius: τ = 0); `margin` c(0); `imbalance` the largest of the N − 1, relative
    to the squared size of the layers: 0 for a generator, which stands for its balanced layers.
    """

    eigenvalues: Spectrum
    depth: float
    tau: float
    loss: LossName
    rank: int
    value: float
    margin: float
    imbalance: float


class Hypothesis(NamedTuple):
    """A hypothesis, whether it holds, and what is the case, with the numbers."""

    name: str
    holds: bool
    says: str


def start_of(
    weights: Weights | EndToEnd, target: Target, *, depth: float, tau: float = 0.0, loss: LossName
) -> Start:
    """The start of a run from its first weights, in data coordinates.

    `weights` are N layers, or a generator (n, m), alone or as the only entry of a tuple: it stands for
    its balanced layers at any depth, with the bottleneck min(n, m).

    Raises `InvalidOption` for layers of another number than `depth`, weights that are not finite or do
    not fit the target, and what `check_loss`, `check_depth` and `check_spectrum` refuse.
    """
    layers = [np.asarray(each, float) for each in (weights if isinstance(weights, tuple) else (weights,))]
    check_depth(depth)
    check(len(layers) in (1, depth), "depth", depth, f"{len(layers)}, the number of layers")
    finite = all(bool(np.all(np.isfinite(layer))) for layer in layers)
    check(finite, "weights", "numbers that are not finite", "finite numbers")
    widths, dimension = layer_widths(tuple(layers)), len(target.eigenvalues)
    takes = f"{dimension} rows, the dimension of the target"
    check(widths[-1] == dimension, "weights", f"{widths[-1]} rows", takes)
    generator = layers[0]
    for layer in layers[1:]:
        generator = layer @ generator
    # In NumPy: where JAX has no float64, this has.
    basis = np.eye(dimension) if target.eigenvectors is None else np.asarray(target.eigenvectors, float)
    eigenvalues = np.asarray(target.eigenvalues, float)
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    distance = _distance(basis.T @ generator, eigenvalues, float(tau))
    return start_at(
        eigenvalues,
        distance**2,
        depth=depth,
        tau=tau,
        loss=loss,
        rank=bottleneck(widths),
        imbalance=_imbalance(layers),
    )


def start_at(
    eigenvalues: Spectrum,
    value: float,
    *,
    depth: float,
    tau: float = 0.0,
    loss: LossName,
    rank: int,
    imbalance: float = 0.0,
) -> Start:
    """The start of a run with the Bures-Wasserstein loss `value` there; see `Start`.

    Raises `InvalidOption` for a value or an imbalance that is negative or not finite, a rank not from
    1 to n, and what `check_loss`, `check_depth` and `check_spectrum` refuse.
    """
    check_loss(loss, tau)
    check_depth(depth)
    eigenvalues = np.asarray(eigenvalues, float)
    check_spectrum(eigenvalues)
    for name, number in (("value", value), ("imbalance", imbalance)):
        check(0 <= number < np.inf, name, number, "a finite number from 0")
    size = len(eigenvalues)
    check(1 <= rank <= size, "rank", rank, f"an integer from 1 to the dimension {size}")
    found = float(margin(eigenvalues, value, tau=float(tau))) if rank == size else 0.0
    return Start(
        eigenvalues, float(depth), float(tau), loss, int(rank), float(value), found, float(imbalance)
    )


def margin(eigenvalues: Spectrum, loss_value: Array, *, tau: float = 0.0) -> Array:
    """c = √max(0, r² − τ), r = max(0, √λ_n − √L_τ): at full rank σ_min(W) ≥ c wherever the loss is L_τ.

    It has the shape of `loss_value` L_τ ≥ 0. Computed as c² = q (q + 2√τ) with the room
    q = (λ_n − τ) / (√λ_n + √τ) − √L_τ, in which nothing cancels. Raises `InvalidOption`.
    """
    check_spectrum(eigenvalues)
    check_loss("bures_wasserstein", tau)
    values = np.asarray(loss_value, float)
    check(bool(np.all(values >= 0)), "loss_value", values, "numbers from 0")
    room = np.maximum(farthest_distance(float(eigenvalues[-1]), float(tau)) - np.sqrt(values), 0)
    return from_room(room, float(tau) ** 0.5)


def from_room(room: Array, floor: float) -> Array:
    """√(q (q + 2√τ)), as a product of roots: neither over- nor underflows."""
    return np.sqrt(room) * np.sqrt(room + 2 * floor)


def farthest_distance(smallest: float, tau: float) -> float:
    """√λ_n − √τ: the largest √L_τ that a margin goes with."""
    total = smallest**0.5 + tau**0.5
    return (smallest - tau) / total if total > 0 else 0.0


def _distance(modes: Float[Array, "n m"], eigenvalues: Spectrum, tau: float) -> float:
    """√L_τ = min ‖[W  √τ I] − R Q‖_F over Q Qᵀ = I, at the polar factor of R [W  √τ I] (§2, I3).

    Every Q gives an upper bound, so that rounding never makes a start better than it is.
    """
    if modes.shape[1] > len(modes):
        modes = np.asarray(np.linalg.qr(modes.T, mode="r")).T
    beside = tau**0.5 * np.eye(len(modes)) if tau > 0 else np.zeros((len(modes), len(modes) - modes.shape[1]))
    padded = np.concatenate([modes, beside], axis=1)
    root = np.sqrt(eigenvalues)[:, None]
    left, _, right = np.linalg.svd(root * padded, full_matrices=False)
    return float(np.linalg.norm(padded - root * (left @ right)))


def _imbalance(layers: Sequence[Array]) -> float:
    """The largest ‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖_F over Σ_j ‖W_j‖_F²; 0 for one layer, or for zeros."""
    norms = [np.linalg.norm(above.T @ above - below @ below.T) for below, above in pairwise(layers)]
    size = sum(np.sum(layer**2) for layer in layers)
    return float(max(norms, default=0.0) / size) if size > 0 else 0.0


# --- hypotheses -----------------------------------------------------------------------------------


def compared(name: str, holds: bool, left: str, right: str) -> Hypothesis:
    """The hypothesis that `left` is `right`, in words."""
    return Hypothesis(name, bool(holds), f"{left} is {'' if holds else 'not '}{right}")


def bures_wasserstein(start: Start) -> Hypothesis:
    """The loss is the Bures-Wasserstein loss."""
    return Hypothesis("loss", start.loss == "bures_wasserstein", f"the loss is {start.loss}")


def full_rank(start: Start) -> Hypothesis:
    """n ≤ k."""
    rank, dimension = start.rank, len(start.eigenvalues)
    return compared(
        "full_rank", rank >= dimension, f"the bottleneck {rank}", f"at least the dimension {dimension}"
    )


def balanced(start: Start) -> Hypothesis:
    """All layers are balanced, to `BALANCED`."""
    left = f"the relative imbalance {start.imbalance:.2g}"
    return compared("balanced", start.imbalance <= BALANCED, left, f"at most {BALANCED:g}")


def smallest_eigenvalue(start: Start) -> Hypothesis:
    """λ_n > τ."""
    smallest = float(start.eigenvalues[-1])
    left, right = f"λ_n = {smallest:.6g}", f"above τ = {start.tau:.6g}"
    return compared("smallest_eigenvalue", smallest > start.tau, left, right)


def positive_margin(start: Start) -> Hypothesis:
    """c(0) > 0, which is √L_τ < √λ_n − √τ."""
    farthest = farthest_distance(float(start.eigenvalues[-1]), start.tau)
    left, right = f"√L_τ = {start.value**0.5:.6g}", f"below √λ_n − √τ = {farthest:.6g}"
    return compared("margin", start.margin > 0, left, right)


def perturbed(start: Start) -> Hypothesis:
    """τ > 0."""
    return compared("perturbed", start.tau > 0, f"τ = {start.tau:.6g}", "above 0")


def with_margin(start: Start) -> tuple[Hypothesis, ...]:
    """What the sharp bounds need."""
    checks = (bures_wasserstein, full_rank, balanced, smallest_eigenvalue, positive_margin)
    return tuple(each(start) for each in checks)


def of_the_paper(start: Start) -> tuple[Hypothesis, ...]:
    """What the bounds and step sizes of the paper need."""
    return (*with_margin(start), perturbed(start))


def failing(hypotheses: Sequence[Hypothesis]) -> str:
    """The first hypothesis that does not hold, in words, or nothing."""
    return next((f"{each.name}: {each.says}" for each in hypotheses if not each.holds), "")
