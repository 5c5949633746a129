"""Starts that know the target: aligned with its eigenvectors, or close to it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from bwdln.errors import check
from bwdln.initializations.base import STARTS, check_positive, from_factors, known, padded
from bwdln.networks import bottleneck
from bwdln.polar import polar_factor
from bwdln.targets import Target
from bwdln.types import Array, PRNGKey, Scalar, Spectrum, Weights, Widths

#: How often `close_to_target` halves its scale: enough to reach rounding from any scale it takes.
HALVINGS = 64


@STARTS.register("aligned")
def aligned(
    key: PRNGKey,
    widths: Widths,
    target: Target,
    *,
    scale: float = 0.1,
    spectrum: Literal["flat", "target"] = "flat",
) -> Weights:
    """W = Ω_k diag(s) Qᵀ, balanced: the modes of the target evolve each on its own (§5, E3).

    Ω_k are the eigenvectors of the k largest eigenvalues, k the bottleneck, and Q has random
    orthonormal columns. All s_i are `scale` (`flat`), or s_i = `scale` · √λ_i (`target`).

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    modes = bottleneck(widths)
    unit = jnp.ones(modes) if spectrum == "flat" else jnp.sqrt(target.eigenvalues[:modes])
    left = target.from_eigenbasis(jnp.eye(widths[-1], modes))
    right = jax.random.orthogonal(key, modes, m=widths[0])
    return from_factors(left, scale * unit, right, widths)


@STARTS.register("close_to_target")
def close_to_target(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.95, tau: float = 0.0
) -> Weights:
    """A balanced start near the minimizer: with a margin, for every key, wherever one exists (§6, §7).

    W = Σ^{1/2}, of shape (n, m) with zeros beyond n, for Σ = Ω (Λ − τ)₊ Ωᵀ + Γ D Γᵀ: the minimizer
    (§3) plus a perturbation with Γ random orthogonal and D evenly spaced from `scale` · λ_n to
    `scale` · λ_n · (2 − 1/n), as the authors draw it.

    Where λ_n > τ, this is Σ₀ − τ I + Γ D Γᵀ, and the scale is halved, for each key on its own, until
    the margin √L_τ(W) < √λ_n − √τ holds. It always comes to hold, since
    √L_τ ≤ ‖Γ D Γᵀ‖_F / (2 √λ_n) ≤ scale · √(n λ_n). Where λ_n ≤ τ, or differs from it by rounding
    only, no margin exists, and the scale is kept. There only the minimizer needs its projection to
    the semidefinite: Σ is positive definite, so that the modes below τ are there and have to decay.
    (Projecting Σ₀ − τ I + Γ D Γᵀ instead would remove many of them for ever: a flow of depth
    N ≥ 2 never raises the rank.) Then √L_τ ≤ √min L_τ + ‖Γ D Γᵀ‖_F / (2 √τ).

    The eigenvalues of the target, `scale` and `tau` may be traced: lanes with and without a margin
    are one program, in which only the bottleneck is checked.

    Raises `InvalidOption` for a bottleneck below n; for a singular target, in whose units nothing
    is perturbed, or one so ill-conditioned that rounding hides the perturbation; for a `tau` below
    0; and unless 0 < `scale` < 3.
    """
    eigenvalues = target.eigenvalues
    _check_closeness_possible(widths, eigenvalues, scale, tau)
    rounding = _rounding_of_distance(eigenvalues)
    largest_distance = jnp.sqrt(eigenvalues[-1]) - tau**0.5
    room, no_margin_exists = largest_distance - rounding, largest_distance <= 2 * rounding
    basis = jax.random.orthogonal(key, len(eigenvalues))

    def halved(state: _Attempt) -> _Attempt:
        scale = state.scale / 2
        left, values = _perturbed_root(eigenvalues, basis, scale, tau)
        accepted = no_margin_exists | (_distance(left, values, eigenvalues, tau) < room)
        return _Attempt(scale, left, values, accepted)

    def continues(state: tuple[Array, _Attempt]) -> Array:
        return ~state[1].accepted & (state[0] < HALVINGS)

    before = _Attempt(2 * jnp.asarray(scale, basis.dtype), basis, eigenvalues, jnp.asarray(False))
    _, found = lax.while_loop(continues, lambda s: (s[0] + 1, halved(s[1])), (0, before))
    left = target.from_eigenbasis(found.left)
    return from_factors(left, found.values, padded(left.T, len(left), widths[0]), widths)


class _Attempt(NamedTuple):
    """One scale of `close_to_target`: the root left · diag(values) · leftᵀ in the eigenbasis."""

    scale: Scalar
    left: Float[Array, "n n"]
    values: Float[Array, " n"]
    accepted: Array


def _perturbed_root(
    eigenvalues: Spectrum, basis: Float[Array, "n n"], scale: Scalar, tau: Scalar
) -> tuple[Array, Array]:
    """Eigenvectors (n, n) and root eigenvalues (n,) of (Λ − τ)₊ + Γ D Γᵀ.

    They are left singular vectors and values of [(Λ − τ)₊^{1/2}, Γ D^{1/2}]: squared, they would
    lose the small ones to rounding. The factor L of the L Q decomposition makes it (n, n).
    """
    count, learned = len(eigenvalues), jnp.maximum(eigenvalues - tau, 0)
    steps = 2 - jnp.arange(1, count + 1, dtype=eigenvalues.dtype) / count
    noise = basis * jnp.sqrt(scale * eigenvalues[-1] * steps)[None, :]
    stacked = jnp.concatenate([jnp.diag(jnp.sqrt(learned)), noise], axis=1)
    triangular = jnp.linalg.qr(stacked.T, mode="r").T
    left, values, _ = jnp.linalg.svd(triangular)
    return left, values


def _distance(
    left: Float[Array, "n n"], values: Float[Array, " n"], eigenvalues: Spectrum, tau: Scalar
) -> Scalar:
    """√L_τ = min ‖Σ_τ^{1/2} − R Q‖_F over orthogonal Q, without cancellation (§2, I3).

    The minimizer is the polar factor of R Σ_τ^{1/2}. The identity, near it, guards against polar
    factors that lost the smallest modes to rounding; every Q gives an upper bound.
    """
    root = (left * jnp.sqrt(values**2 + tau)[None, :]) @ left.T
    target_root = jnp.sqrt(eigenvalues)
    rotated = target_root[:, None] * polar_factor(target_root[:, None] * root)
    apart, commuting = root - rotated, root - jnp.diag(target_root)
    return jnp.minimum(jnp.linalg.norm(apart), jnp.linalg.norm(commuting))


def _rounding_of_distance(eigenvalues: Spectrum) -> Scalar:
    """What rounding may do to √L_τ, here and in up to a thousand layers: of the order eps · √λ_1.

    It does not know the depth: the end-to-end matrix is the same for every number of layers.
    """
    size = 8 * (len(eigenvalues) + 128) * jnp.finfo(eigenvalues.dtype).eps
    return size * eigenvalues[0] ** 0.5


def _check_closeness_possible(widths: Widths, eigenvalues: Spectrum, scale: Scalar, tau: Scalar) -> None:
    """Refuse what has no start of full rank near the minimizer, with the numbers."""
    dimension, narrowest = len(eigenvalues), bottleneck(widths)
    got = f"close_to_target with a bottleneck of {narrowest}"
    takes = f"a network as wide as the data dimension {dimension}: the start has full rank"
    check(narrowest == dimension, "name", got, takes)
    if known(scale):
        takes = "a number above 0 and below 3 (from 3 on no start has a margin)"
        check(0 < scale < 3, "scale", scale, takes)
    if known(tau):
        check(0 <= tau < np.inf, "tau", tau, "a finite number from 0")
    if not known(eigenvalues):
        return
    spectrum = np.asarray(eigenvalues)
    smallest = float(spectrum[-1])
    got = f"close_to_target with a singular target, whose smallest eigenvalue is {smallest:.6g}"
    takes = "a target of full rank: its smallest eigenvalue is the unit of the perturbation"
    check(smallest > 0, "name", got, takes)
    root, rounding = smallest**0.5, float(_rounding_of_distance(spectrum))
    got = f"close_to_target where √λ_n = {root:.3g} and √λ_1 = {spectrum[0] ** 0.5:.3g}"
    takes = f"√λ_n above {2 * rounding:.3g}, or rounding would hide the perturbation"
    check(root > 2 * rounding, "name", got, takes)
