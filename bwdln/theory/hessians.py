"""The Hessian of the deep loss at its critical points, in closed form (docs/theory.md §4).

At a critical point W = Ω_J S Qᵀ with balanced layers every eigenvalue is that of a pair of modes, a number
for each pair: no matrix is built and none decomposed, so that thousands of points, or dimensions in the
hundreds, are one small program. Depth N is a number, any from 1. Curvature at weights that are not
critical: `theory.curvature`.

Everything but `zero_multiplicity` can be compiled, and mapped by `jax.vmap` over eigenvalues, depth, τ and
integer arrays of positions. Values that are traced are not checked.

Repeated eigenvalues: all formulas hold as they stand at any W = Ω_J S Qᵀ, whatever basis Ω of the
eigenspaces is taken. Critical points are then no longer isolated up to the latent basis: a pair λ_a = λ_l
with a outside J and l in it turns the point within an eigenspace at no cost, and its eigenvalue is exactly
0. `spectrum` keeps it in its place; `zero_multiplicity` counts it and `extremes` leaves it out.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bwdln.errors import check
from bwdln.initializations.base import check_positive, known
from bwdln.theory.checks import (
    IndexSet,
    LossName,
    check_depth,
    check_index_set,
    check_loss,
    check_spectrum,
)
from bwdln.types import Array, Scalar, Spectrum, Widths

# --- the spectrum at a critical point -------------------------------------------------------------


def spectrum(
    eigenvalues: Spectrum,
    index_set: IndexSet,
    *,
    depth: Scalar,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Float[Array, "pairs"]:
    """The eigenvalues of the Hessian in all layers, without the zeros that every such point has (§4).

    One for each pair of positions a ≤ l in the index set J, in the order of `numpy.triu_indices`; then
    one for each a outside J, ascending, and l in J, a by a: |J| (|J| + 1) / 2 + |J| (n − |J|) in all. They
    are those of balanced layers with bottleneck |J|, or, at depths above 1 with τ > 0 or Frobenius, of any
    bottleneck from |J|. At depth 1 with more latent dimensions than |J|, those of `rank_raising` join them.

    Args:
        eigenvalues: λ of the target, shape (n,), descending.
        index_set: J, positions in them; their eigenvalues are above τ.
        depth: N, any number from 1.
        tau: The perturbation τ of the Bures-Wasserstein loss.
        loss: `bures_wasserstein` or `frobenius`.

    Raises:
        InvalidOption: For values out of range, positions repeated, or modes that are not above τ.
    """
    check_depth(depth)
    return _spectrum(*_checked(eigenvalues, index_set, tau, loss), depth, tau, loss)


@functools.partial(jax.jit, static_argnames="loss")
def _spectrum(values: Array, positions: Array, depth: Scalar, tau: Scalar, loss: str) -> Array:
    inside, outside = _split(values, positions)
    tau, depth = jnp.asarray(tau, inside.dtype), jnp.asarray(depth, inside.dtype)
    first, second = np.triu_indices(len(inside))
    within = _within(inside[first], inside[second], depth, tau, loss)
    across = _across(outside[:, None], inside[None, :], depth, tau, loss)
    return jnp.concatenate([within, across.ravel()])


def rank_raising(
    eigenvalues: Spectrum,
    index_set: IndexSet,
    *,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Float[Array, "outside"]:
    """The curvature at depth 1 along the eigenvectors outside J, which raises the rank; shape (n − |J|,).

    2 (1 − √(λ_a/τ)), and −4 λ_a for Frobenius: m − |J| eigenvalues each for m latent dimensions. As
    τ → 0 it goes to −∞ like τ^{-1/2} where λ_a > 0, and is 2 where λ_a = 0 (§4).

    Raises `InvalidOption` as `spectrum` does, and at τ = 0 where some λ_a > 0 is left: the loss has a
    kink there. A traced τ of 0 gives −∞.
    """
    values, positions = _checked(eigenvalues, index_set, tau, loss)
    if known(eigenvalues) and known(index_set) and known(tau):
        _check_smooth(_others(eigenvalues, index_set), tau, loss)
    return _rank_raising(values, positions, tau, loss)


@functools.partial(jax.jit, static_argnames="loss")
def _rank_raising(values: Array, positions: Array, tau: Scalar, loss: str) -> Array:
    return _raising(_split(values, positions)[1], jnp.asarray(tau, values.dtype), loss)


def zero_multiplicity(
    eigenvalues: Spectrum,
    index_set: IndexSet,
    widths: Widths,
    *,
    tau: float = 0.0,
    loss: LossName = "bures_wasserstein",
) -> int:
    """How many eigenvalues of the Hessian in all layers are 0, for a network of these widths (§4).

    Changes of basis between the layers, at depth above 1 the directions that would raise the rank, and
    one for each pair λ_a = λ_l with a outside J and l in it.

    Raises `InvalidOption` as `spectrum` does, for more positions than the bottleneck, widths that do not
    end with n, and at τ = 0 for fewer than the bottleneck where the loss has a kink.
    """
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    size, count = len(eigenvalues), len(index_set)
    check(widths[-1] == size, "widths", list(widths), f"widths that end with the dimension {size}")
    check_index_set(eigenvalues, index_set, tau=tau, loss=loss, rank=min(widths))
    inside, outside = np.asarray(eigenvalues)[list(index_set)], _others(eigenvalues, index_set)
    if count < min(widths):
        _check_smooth(outside, tau, loss)
    others = count * (count + 1) // 2 + np.count_nonzero(outside[:, None] != inside[None, :])
    if len(widths) == 2:
        flat = outside == tau if loss == "frobenius" or tau > 0 else np.zeros(len(outside), bool)
        others += (widths[0] - count) * np.count_nonzero(~flat)
    return sum(columns * rows for columns, rows in pairwise(widths)) - int(others)


class Extremes(NamedTuple):
    """The ends of the Hessian's spectrum over its non-zero eigenvalues, as scalars.

    Attributes:
        largest: λ_max.
        smallest: λ_min, negative at a saddle.
        smallest_absolute: The smallest size of an eigenvalue.
        relative_condition: λ_max / λ_min, with its sign.
        absolute_condition: λ_max over `smallest_absolute`.
        negative: The number of negative eigenvalues, the index of the saddle; an integer.
    """

    largest: Scalar
    smallest: Scalar
    smallest_absolute: Scalar
    relative_condition: Scalar
    absolute_condition: Scalar
    negative: Scalar


def extremes(
    eigenvalues: Spectrum,
    index_set: IndexSet,
    *,
    depth: Scalar,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
    latent_dim: int | None = None,
) -> Extremes:
    """What the spectrum at a critical point comes to (§4).

    `latent_dim` m matters at depth 1 alone: with more latent dimensions than |J| the eigenvalues of
    `rank_raising` are among the others; None stands for |J|. Where no eigenvalue differs from 0 all is 0
    and the condition numbers are infinite.

    Raises `InvalidOption` as `spectrum` and, at depth 1 with more than |J| latent dimensions,
    `rank_raising` do, and for fewer latent dimensions than |J|.
    """
    values = spectrum(eigenvalues, index_set, depth=depth, tau=tau, loss=loss)
    spare = 0 if latent_dim is None else latent_dim - len(index_set)
    check(spare >= 0, "latent_dim", latent_dim, f"at least the {len(index_set)} positions")
    active, multiplicity = values != 0, np.ones(values.shape, int)
    if spare and not (known(depth) and depth != 1):
        raising = rank_raising(eigenvalues, index_set, tau=tau, loss=loss)
        active = jnp.concatenate([active, (raising != 0) & (jnp.asarray(depth) == 1)])
        values = jnp.concatenate([values, raising])
        multiplicity = np.append(multiplicity, np.full(raising.shape, spare))
    return _extremes(values, active, multiplicity)


@jax.jit
def _extremes(values: Array, active: Array, multiplicity: Array) -> Extremes:
    """`Extremes` of the values that are active."""
    largest = jnp.max(values, where=active, initial=-jnp.inf)
    smallest = jnp.min(values, where=active, initial=jnp.inf)
    absolute = jnp.min(jnp.abs(values), where=active, initial=jnp.inf)
    some = jnp.any(active)
    largest, smallest, absolute = (jnp.where(some, each, 0) for each in (largest, smallest, absolute))
    negative = jnp.sum(jnp.where(active & (values < 0), multiplicity, 0))
    return Extremes(
        largest, smallest, absolute, _quotient(largest, smallest), _quotient(largest, absolute), negative
    )


def _quotient(numerator: Array, denominator: Array) -> Array:
    """The quotient; infinite over 0, 0 over an infinity: never NaN."""
    plain = (denominator != 0) & jnp.isfinite(denominator)
    other = jnp.where(denominator == 0, jnp.inf, 0)
    return jnp.where(plain, numerator / jnp.where(plain, denominator, 1), other)


# --- what follows for training --------------------------------------------------------------------


def asymptotic_rate(
    eigenvalues: Spectrum,
    rank: int,
    *,
    depth: Scalar,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Scalar:
    """The rate at which the gap ends up falling along the flow of balanced layers (§6).

    Natural logarithm per flow time: the gap goes like e^{−rate·t}. Twice the smallest non-zero
    eigenvalue of the Hessian at the minimizer of that rank, the bottleneck k. It is 0 where the rank
    allows modes that are not learnt, λ_i ≤ τ, and they fade more slowly than any exponential: at every
    depth above 1, and at depth 1 for λ_i = τ. At depth 1 and λ_i < τ they fade at 4 (1 − √(λ_i/τ)).

    Raises `InvalidOption` for values out of range, or a rank not from 1 to n.
    """
    return 2 * _at_minimizer(eigenvalues, rank, depth, tau, loss)[0]


def largest_stable_step(
    eigenvalues: Spectrum,
    rank: int,
    *,
    depth: Scalar,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Scalar:
    """2 / λ_max at the minimizer: near it, descent converges for smaller steps only (§6).

    Infinite where the minimizer is W = 0 and the depth above 1: nothing curves there. Raises
    `InvalidOption` as `asymptotic_rate` does.
    """
    largest = _at_minimizer(eigenvalues, rank, depth, tau, loss)[1]
    return _quotient(jnp.full_like(largest, 2), largest)


def asymptotic_factor(
    eigenvalues: Spectrum,
    rank: int,
    *,
    depth: Scalar,
    step_size: Scalar,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Scalar:
    """The factor by which a step of descent ends up changing the gap: max (1 − η μ)² over eigenvalues μ.

    Over the non-zero ones at the minimizer; 1 where the rate of the flow is 0; above 1 from
    `largest_stable_step` on. Raises `InvalidOption` as `asymptotic_rate` does, or for a step size
    that is not positive.
    """
    check_positive(step_size=step_size)
    curvatures = jnp.stack(_at_minimizer(eigenvalues, rank, depth, tau, loss))
    return jnp.max(jnp.where(curvatures > 0, (1 - step_size * curvatures) ** 2, 1))


def _at_minimizer(
    eigenvalues: Spectrum, rank: int, depth: Scalar, tau: Scalar, loss: LossName
) -> tuple[Array, Array]:
    """The smallest and the largest eigenvalue at the minimizer, among those that decide how gaps fall."""
    check_depth(depth)
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    values = jnp.asarray(eigenvalues)
    check(1 <= rank <= len(values), "rank", rank, f"an integer from 1 to n = {len(values)}")
    return _curvatures(values, rank, depth, tau, loss)


@functools.partial(jax.jit, static_argnames=("rank", "loss"))
def _curvatures(values: Array, rank: int, depth: Scalar, tau: Scalar, loss: LossName) -> tuple[Array, Array]:
    """`_at_minimizer` after its checks.

    Which modes are learnt depends on values that may be traced, so all pairs of a table are computed and
    masked. Zeros along which the minimum stays a minimum are left out; those of modes that are not
    learnt, where the loss rises at a higher order, are not.
    """
    tau, depth = jnp.asarray(tau, values.dtype), jnp.asarray(depth, values.dtype)
    above = values > tau
    learnt = above[:rank]
    outside = (jnp.arange(len(values)) >= rank) | ~above
    inside = jnp.where(learnt, values[:rank], tau + 1)  # masked below; a number to compute with
    first, second = np.triu_indices(rank)
    within = _within(inside[first], inside[second], depth, tau, loss)
    across = _across(values[:, None], inside[None, :], depth, tau, loss)
    # Beside modes that could be learnt and are not, every mode outside J is at or below τ.
    spare = ~jnp.all(learnt)
    raising = jnp.where(depth == 1, jnp.abs(_raising(values, tau, loss)), 0)
    parts = (
        (within, learnt[first] & learnt[second]),
        (across, outside[:, None] & learnt[None, :] & (across > 0)),
        (raising, outside & spare),
    )
    smallest = [jnp.min(each, where=mask, initial=jnp.inf) for each, mask in parts]
    largest = [jnp.max(each, where=mask, initial=0) for each, mask in parts]
    return jnp.min(jnp.stack(smallest)), jnp.max(jnp.stack(largest))


# --- pairs of modes -------------------------------------------------------------------------------


def _checked(eigenvalues: Spectrum, index_set: IndexSet, tau: Scalar, loss: str) -> tuple[Spectrum, Array]:
    """Eigenvalues and positions as arrays; after the checks of `spectrum`."""
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    check_index_set(eigenvalues, index_set, tau=tau, loss=loss)
    return jnp.asarray(eigenvalues), jnp.asarray(index_set, int)


def _split(values: Spectrum, positions: Array) -> tuple[Float[Array, "inside"], Float[Array, "outside"]]:
    """The eigenvalues on J, in its order, and the others, descending."""
    taken = jnp.zeros(len(values), bool).at[positions].set(True)
    others = jnp.nonzero(~taken, size=len(values) - len(positions))[0]
    return values[positions], values[others]


def _others(eigenvalues: Spectrum, index_set: IndexSet) -> np.ndarray:
    """The eigenvalues outside J, on the host."""
    return np.delete(np.asarray(eigenvalues), np.asarray(index_set, int))


def _check_smooth(outside: Array, tau: Scalar, loss: str) -> None:
    """Refuse τ = 0 for the Bures-Wasserstein loss where the rank could be raised along some λ > 0."""
    smooth = loss == "frobenius" or tau > 0 or not np.any(outside > 0)
    takes = "a number above 0 where the rank is below its largest: at 0 the loss has a kink there"
    check(bool(smooth), "tau", tau, takes)


def _within(first: Array, second: Array, depth: Array, tau: Array, loss: str) -> Array:
    """The eigenvalues of pairs λ_a, λ_l that both are learnt, element by element."""
    if loss == "frobenius":
        return _kernel(first, second, depth) * 4 * (first + second)
    variances = _variance(first, tau), _variance(second, tau)
    return _kernel(*variances, depth) * 2 * (variances[0] + variances[1]) / (first + second)


def _across(outside: Array, inside: Array, depth: Array, tau: Array, loss: str) -> Array:
    """The eigenvalues of pairs of a mode that is not learnt and one that is; broadcasts."""
    if loss == "frobenius":
        return inside ** ((depth - 1) / depth) * 4 * (inside - outside)
    kernel = _variance(inside, tau) ** ((depth - 1) / depth)
    return kernel * 2 * (inside - outside) / (inside + jnp.sqrt(outside) * jnp.sqrt(tau))


def _raising(outside: Array, tau: Array, loss: str) -> Array:
    """2 (1 − √(λ/τ)) without cancellation, −4 λ for Frobenius; at τ = 0 it is −∞, and 2 for λ = 0."""
    if loss == "frobenius":
        return -4 * outside
    scale = tau + jnp.sqrt(outside) * jnp.sqrt(tau)
    curvature = 2 * (tau - outside) / jnp.where(scale > 0, scale, 1)
    return jnp.where(scale > 0, curvature, jnp.where(outside > 0, -jnp.inf, 2))


def _variance(eigenvalue: Array, tau: Array) -> Array:
    """s² = λ − τ; where a traced λ on J is not above τ, the limit from above, and so no NaN."""
    return jnp.maximum(eigenvalue - tau, jnp.finfo(eigenvalue.dtype).tiny)


def _kernel(first: Array, second: Array, depth: Array) -> Array:
    """κ = (x − y) / (x^{1/N} − y^{1/N}) of variances x, y > 0, element by element; N x^{(N−1)/N} at x = y.

    With u = log √(x/y) it is (√x √y)^{(N−1)/N} sinh(u) / sinh(u/N), in which nothing cancels: the
    fraction is even in u and smooth, N at 0, so that rounding in u remains rounding.
    """
    small, large = jnp.minimum(first, second), jnp.maximum(first, second)
    near = large < 2 * small
    difference = jnp.where(near, large - small, 0) / small
    u = jnp.where(near, jnp.log1p(difference), jnp.log(large) - jnp.log(small)) / 2
    # No further than sinh reaches, which is further than two normal numbers are apart.
    u = jnp.minimum(u, 0.99 * float(np.log(jnp.finfo(u.dtype).max)))
    apart = u > 0
    v = jnp.where(apart, u, 1)
    fraction = jnp.where(apart, jnp.sinh(v) / jnp.sinh(v / depth), depth)
    return (jnp.sqrt(first) * jnp.sqrt(second)) ** ((depth - 1) / depth) * fraction
