"""The flow of balanced layers as one of their product alone, at any real depth (docs/theory.md §5).

In singular bases W = U diag(s) Vᵀ the velocity is −U (K ∘ (Uᵀ ∇L V)) Vᵀ, entry by entry, and depth is a
number in the kernel K. A loss of W Wᵀ has the gradient S W with S symmetric, so that the row space of
W never changes, and the flow runs on the reduced X of W = X Q (`networks.reduction`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from bwdln.dynamics import runge_kutta
from bwdln.dynamics.base import DYNAMICS, Dynamics
from bwdln.errors import check
from bwdln.linalg import rank_threshold, safe_divide, safe_sqrt, where_accurate
from bwdln.networks import Packed
from bwdln.types import Array, Scalar


@DYNAMICS.register("end_to_end_flow")
def end_to_end_flow(
    gradients: Callable[[Packed], Packed],
    depth: Scalar,
    *,
    end_time: float,
    method: Literal["auto", "euler", "heun", "rk4", "rk32", "rk54", "rkc"] = "auto",
    relative_tolerance: float | None = None,
    absolute_tolerance: float | None = None,
    step_size: float | None = None,
    max_steps: int = 100_000,
    gap_tolerance: float | None = None,
) -> Dynamics:
    """The generator of balanced layers under their gradient flow, at a cost independent of depth.

    dW/dt = −Σ_j (W Wᵀ)^{(N−j)/N} ∇L(W) (Wᵀ W)^{(j−1)/N} for the depth N, any number from 1; it may
    be traced. It is the flow of the product of N layers if these are balanced at the start. The
    weights are the single matrix X of W = X Q, of shape (n, k): the row space of W, and with it Q,
    never changes (`networks.reduction`).

    The options are those of `gradient_flow`, with the tolerances relative to ‖W‖.

    Raises `InvalidOption` for a depth below 1, numbers out of range, or options that do not go with
    the method.
    """
    known = isinstance(depth, int | float)
    check(not known or 1 <= depth < float("inf"), "depth", depth, "a number from 1")

    def parts(weights: Packed) -> tuple[Array, Array]:
        (generator,), (gradient,) = weights.above, gradients(weights).above
        return generator, gradient

    return runge_kutta.flow(
        lambda weights: Packed((), (velocity(*parts(weights), depth),)),
        lambda weights: gradient_norm(*parts(weights), depth),
        end_time=end_time,
        method=method,
        relative_tolerance=relative_tolerance,
        absolute_tolerance=absolute_tolerance,
        step_size=step_size,
        max_steps=max_steps,
        gap_tolerance=gap_tolerance,
        end_to_end=True,
    )


# --- the kernel -----------------------------------------------------------------------------------


def kernel(first: Array, second: Array, depth: Scalar) -> Array:
    """K(x, y) = Σ_j x^{2(N−j)/N} y^{2(j−1)/N} = (x² − y²) / (x^{2/N} − y^{2/N}), element by element.

    For any real depth N ≥ 1; `first` and `second` ≥ 0 broadcast. With x ≥ y and u = 2 log(x/y) it is
    x^{2(N−1)/N} (e^{−u} − 1) / (e^{−u/N} − 1), in which nothing cancels: the fraction depends on u
    smoothly, between N at x = y and 1 at y = 0. At x = y = 0 the kernel is 1 for N = 1, else 0.
    """
    depth = jnp.asarray(depth, first.dtype)
    # Roots and logarithms of vectors, before they broadcast to a matrix.
    largest = jnp.maximum(kernel_with_zero(first, depth), kernel_with_zero(second, depth))
    distance = 2 * jnp.abs(_logarithm(first) - _logarithm(second))
    apart, both = distance > 0, (first > 0) & (second > 0)
    u = jnp.where(apart, distance, 1)
    terms = jnp.where(apart, jnp.expm1(-u) / jnp.expm1(-u / depth), depth)
    return largest * jnp.where(both, terms, 1)


def kernel_with_zero(values: Array, depth: Scalar) -> Array:
    """K(x, 0) = x^{2(N−1)/N}: between the range of W and what lies outside."""
    depth = jnp.asarray(depth, values.dtype)
    return values ** (2 * (depth - 1) / depth)


def _logarithm(values: Array) -> Array:
    """log x, and no infinity at 0."""
    return jnp.log(jnp.where(values > 0, values, 1))


# --- the velocity ---------------------------------------------------------------------------------

#: The Gram route is taken where the left singular vectors it gives are orthonormal to this many
#: units of rounding: up to condition numbers of about 60 in either precision.
ROUNDINGS = 1024


def velocity(
    generator: Float[Array, "n k"], gradient: Float[Array, "n k"], depth: Scalar
) -> Float[Array, "n k"]:
    """dX/dt = −Σ_j (X Xᵀ)^{(N−j)/N} ∇L(X) (Xᵀ X)^{(j−1)/N} for the gradient of a loss of X Xᵀ, k ≤ n.

    Through the k × k Gram matrix where that is accurate, else through the singular value
    decomposition. Where singular values coincide their vectors are arbitrary, but not the result.
    Singular values below the rank threshold count as zero: at N > 1 they do not move.
    """
    return _velocity(generator, gradient, jnp.asarray(depth, generator.dtype))


def gradient_norm(generator: Float[Array, "n k"], gradient: Float[Array, "n k"], depth: Scalar) -> Scalar:
    """The norm of the gradient in all balanced layers: √⟨∇L, K ∘ ∇L⟩ = √(−dL/dt), a sum of squares."""
    left, singular, right = jnp.linalg.svd(generator, full_matrices=False)
    singular, columns = _without_rounding(singular), gradient @ right.T
    inner = left.T @ columns
    factors = kernel(singular[:, None], singular[None, :], depth)
    total = jnp.sum(factors * inner**2)
    if generator.shape[0] > generator.shape[1]:
        outside = columns - left @ inner
        total += jnp.sum(kernel_with_zero(singular, depth) * jnp.sum(outside**2, axis=0))
    return safe_sqrt(total)


def _through_gram(generator: Array, gradient: Array, depth: Array) -> tuple[Array, Array]:
    """The velocity of a batch from X = U diag(s) Vᵀ by the eigenvectors V of XᵀX; is it accurate?

    V is orthonormal to rounding, s and U are the lengths and directions of the columns of X V, so
    the factorization is exact to rounding, whatever E = UᵀU − I. The result is that of exact bases
    for a generator (I + Δ) X with ‖Δ‖ of the order of ‖E‖: an error relative to every singular value.
    """
    _, right = jnp.linalg.eigh(generator.mT @ generator, symmetrize_input=False)
    scaled = generator @ right
    singular = jnp.sqrt(jnp.sum(scaled**2, axis=-2))
    left = safe_divide(scaled, singular[..., None, :])
    gram = left.mT @ left
    error = jnp.abs(gram - jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape))
    accurate = jnp.max(error, axis=(-2, -1)) <= ROUNDINGS * float(jnp.finfo(gram.dtype).eps)
    return _in_bases(left, singular, right, gradient, depth), accurate


def _through_svd(generator: Array, gradient: Array, depth: Array) -> Array:
    """The velocity of a batch by the singular value decomposition: slower, and always accurate."""
    left, singular, right = jnp.linalg.svd(generator, full_matrices=False)
    return _in_bases(left, singular, right.mT, gradient, depth)


_velocity = where_accurate(_through_gram, _through_svd)


def _in_bases(left: Array, singular: Array, right: Array, gradient: Array, depth: Array) -> Array:
    """−U (K ∘ (Uᵀ G V)) Vᵀ − (I − U Uᵀ) G V diag(K(s, 0)) Vᵀ, for a batch."""
    depth = depth[..., None, None]
    singular, columns = _without_rounding(singular), gradient @ right
    inner = left.mT @ columns
    factors = kernel(singular[..., :, None], singular[..., None, :], depth)
    if left.shape[-2] == left.shape[-1]:
        return -(left @ (factors * inner)) @ right.mT
    # K(x, y) ≥ K(y, 0), so nothing is lost where the part outside the range is taken with the rest.
    outside = kernel_with_zero(singular[..., None, :], depth)
    return -(left @ ((factors - outside) * inner) + columns * outside) @ right.mT


def _without_rounding(singular: Array) -> Array:
    """The singular values, in any order, with exact zeros below the rank threshold.

    The flow is no smooth function of singular values that vanish: rounding of 1e-17 beside 1 would
    count as (1e-17)^{2/N}, which is 0.46 at depth 100.
    """
    threshold = rank_threshold(singular.dtype) * jnp.max(singular, axis=-1, keepdims=True)
    return jnp.where(singular > threshold, singular, 0)
