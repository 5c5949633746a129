"""What a record holds: pure functions of one iterate, all of the same weights."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from bwdln import networks
from bwdln.linalg import numerical_rank, safe_divide, safe_sqrt, squared_distance
from bwdln.losses import Loss, bures_wasserstein
from bwdln.networks import Packed
from bwdln.targets import Target
from bwdln.types import Array, Scalar


def record(weights: Packed, target: Target, loss: Loss) -> dict[str, Array]:
    """Everything that is recorded of one iterate (docs/theory.md §7), by name.

    `weights` and `target` are in the eigenbasis of the target; k is the bottleneck. Scalars: `loss`,
    `gap`, `relative_gap` (gap / tr Σ₀), `rank`, `effective_rank`,
    `covariance_distance` ‖Σ_W + τ I − Σ₀‖_F, and the Bures-Wasserstein and Frobenius distances of
    Σ_W to the loss's minimizer. `imbalance` has N − 1 entries; `singular_values`, `alignment`
    |u_i · ω_i| and `eigenvalue_error` s_i² + τ − λ_i have k.
    """
    layers = networks.unpack(weights)
    generator = networks.reduced(layers)
    count = min(generator.shape)
    left, singular, _ = jnp.linalg.svd(generator, full_matrices=False)
    gap = loss.gap(generator, target, count)
    shifted = singular**2 + jnp.asarray(loss.perturbation, singular.dtype)
    values = {
        "loss": loss.value(generator, target),
        "gap": gap,
        "relative_gap": gap / jnp.sum(target.eigenvalues),
        "rank": numerical_rank(singular),
        "effective_rank": effective_rank(singular),
        "imbalance": networks.imbalance(layers),
        "singular_values": singular,
        "alignment": jnp.abs(jnp.diagonal(left)),
        "eigenvalue_error": shifted - target.eigenvalues[:count],
    }
    return values | _distances(generator, target, loss)


def cosines(weights: Packed) -> Float[Array, "k n"]:
    """|u_i · ω_j| between the left singular vectors of the generator and the eigenvectors."""
    left, _, _ = jnp.linalg.svd(networks.reduced(networks.unpack(weights)), full_matrices=False)
    return jnp.abs(left.T)


def effective_rank(singular_values: Float[Array, "k"]) -> Scalar:
    """The exponential of the entropy of the singular values divided by their sum; 0 for none."""
    shares = safe_divide(singular_values, jnp.sum(singular_values))
    logarithms = jnp.log(jnp.where(shares > 0, shares, 1))
    return jnp.where(jnp.any(shares > 0), jnp.exp(-jnp.sum(shares * logarithms)), 0)


def margin(generator: Float[Array, "n m"], target: Target, loss: Loss) -> Scalar:
    """The margin c = √max(0, r² − τ) with r = max(0, √λ_n − √L_τ), of docs/theory.md §6.

    `generator` and `target` are in one basis, and only W Wᵀ counts: the reduced generator (n, k)
    will do. L_τ is the Bures-Wasserstein loss at the loss's own perturbation, for Frobenius τ = 0.
    At a start, c bounds the singular values from below for all times. It is 0 where there is no
    margin: exactly so for k < n and for λ_n ≤ τ.
    """
    if min(generator.shape) < target.dimension:
        return jnp.zeros((), generator.dtype)
    tau, smallest = jnp.asarray(loss.perturbation, generator.dtype), target.eigenvalues[-1]
    floor = safe_sqrt(tau)
    # √λ_n − √τ and, below, r² − τ = (r − √τ)(r + √τ): nothing cancels.
    largest_distance = safe_divide(smallest - tau, safe_sqrt(smallest) + floor)
    distance = safe_sqrt(bures_wasserstein(loss.perturbation).value(generator, target))
    room = jnp.maximum(largest_distance - distance, 0)
    return safe_sqrt(room * (room + 2 * floor))


def _distances(generator: Array, target: Target, loss: Loss) -> dict[str, Array]:
    """Distances of covariances: to the target, and to the minimizer in two metrics."""
    optimum = jnp.diagonal(loss.minimizer(target, min(generator.shape)))
    nearest = Target(optimum, None)
    # Σ_W + τ I − Σ₀ in the eigenbasis, where Σ₀ − τ I is diagonal.
    aim = target.eigenvalues - jnp.asarray(loss.perturbation, generator.dtype)
    return {
        "covariance_distance": safe_sqrt(squared_distance(generator, aim)),
        "optimum_distance_bures_wasserstein": safe_sqrt(bures_wasserstein().value(generator, nearest)),
        "optimum_distance_frobenius": safe_sqrt(squared_distance(generator, optimum)),
    }
