"""Curvature of the deep loss at any weights, without building a Hessian: products and Lanczos.

At critical points `theory.hessians` knows the whole spectrum. Elsewhere a product of the Hessian with a
vector costs about as much as two gradients, and a few dozen of them give both ends of the spectrum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from bwdln import losses, networks
from bwdln.errors import check
from bwdln.linalg import safe_divide
from bwdln.networks import Packed
from bwdln.targets import Target
from bwdln.types import Array, PRNGKey, Scalar

#: v ↦ ∇²L(W) v, in the layout of the weights.
Operator: TypeAlias = Callable[[Packed], Packed]

#: Steps of Lanczos unless told otherwise.
ITERATIONS = 32
#: A new direction shorter than this many units of rounding of the operator ends an invariant subspace.
ROUNDINGS = 100


def hessian_operator(loss: losses.Loss, weights: Packed, target: Target) -> Operator:
    """v ↦ ∇²L(W_N ⋯ W_1) v in all layers: linear, symmetric, traceable.

    The layer gradients are linearized once, with the decompositions they need; a product after that is
    made of matrix products. Where the loss has a kink (§2) it is the derivative with the rank held.
    """
    return jax.linearize(lambda near: _gradients(loss, near, weights, target), weights)[1]


def _gradients(loss: losses.Loss, near: Packed, weights: Packed, target: Target) -> Packed:
    """The layer gradients at weights `near` the given ones: right there, and to first order.

    With the bottleneck inside, W = B A and A = ℓ Q as in docs/theory.md §9. The decomposition has no
    derivative where A loses rank, but Q may stay: with A = ℓ Q + A⊥, Q fixed and A⊥ of first order,
    ∇L(W) = ∇L(B ℓ) Q + C A⊥ to first order, where C = S B for ∇L(W) = S W. As A⊥ is orthogonal to Q,
    C is the derivative of ∇L at (B ℓ, 0) in the direction (0, B): k new latent dimensions.
    """
    if not weights.below or not weights.above:
        return losses.layer_gradients(loss, near, target)

    def gradient(generator: Array) -> Array:
        return loss.gradient(generator, target)

    fixed, _ = networks.forward(weights.above)
    lower, _ = networks.forward(weights.below)
    above, prefixes_above = networks.forward(near.above)
    below, prefixes_below = networks.forward(near.below)
    assert fixed is not None
    assert lower is not None
    assert above is not None
    assert below is not None
    orthonormal = jnp.linalg.qr(lower.T)[0].T
    zeros = jnp.zeros_like(fixed)
    point = jnp.hstack([fixed @ (lower @ orthonormal.T), zeros])
    turned = jax.jvp(gradient, (point,), (jnp.hstack([zeros, fixed]),))[1][:, fixed.shape[1] :]
    triangular = below @ orthonormal.T
    inner = gradient(above @ triangular)
    beyond = (above.T @ turned) @ (below - triangular @ orthonormal)
    return Packed(
        networks.backward(near.below, prefixes_below, (above.T @ inner) @ orthonormal + beyond),
        networks.backward(near.above, prefixes_above, inner @ triangular.T),
    )


class Ritz(NamedTuple):
    """Estimates of both ends of a symmetric operator's spectrum, as scalars.

    `largest` never exceeds the true largest eigenvalue and `smallest` is never below the true smallest,
    up to rounding. Within `largest_error` of `largest` there is an eigenvalue, and within `smallest_error`
    of `smallest`: norms of residuals, with an allowance for rounding. (That it is the outermost one is
    very likely, not certain.)
    """

    largest: Scalar
    smallest: Scalar
    largest_error: Scalar
    smallest_error: Scalar


def lanczos(
    operator: Operator, like: Packed, *, iterations: int = ITERATIONS, key: PRNGKey | None = None
) -> Ritz:
    """Both ends of the spectrum of a symmetric operator on arrays like `like`, by Lanczos.

    With full reorthogonalization, from a random vector of `key` (default: the key 0, so the same each time).
    It takes `iterations` products, though not more than there are parameters, and two for the errors; memory
    is that of as many copies of the weights. Where the vectors reach an invariant subspace it goes on with
    a random vector orthogonal to them. Not finite where the operator is not.

    Raises `InvalidOption` for less than one iteration.
    """
    check(iterations >= 1, "iterations", iterations, "an integer from 1")
    flat, unravel = ravel_pytree(like)
    size, dtype = flat.size, flat.dtype
    count = min(iterations, size)
    noise = jax.random.normal(jax.random.key(0) if key is None else key, (size,), dtype)
    eps = float(jnp.finfo(dtype).eps)

    def apply(vector: Array) -> Array:
        return ravel_pytree(operator(unravel(vector)))[0]

    def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple[Array, Array, Array], Array]:
        basis, vector, scale = carry
        product, basis = apply(vector), basis.at[index].set(vector)
        diagonal = vector @ product
        remainder = _without(basis, _without(basis, product))
        length = jnp.linalg.norm(remainder)
        scale = jnp.maximum(scale, jnp.linalg.norm(product))
        ended = length <= ROUNDINGS * eps * scale
        direction = _unit(jnp.where(ended, jnp.roll(noise, index + 1), remainder))
        for _ in range(2):
            direction = _unit(_without(basis, direction))
        return (basis, direction, scale), jnp.stack([diagonal, jnp.where(ended, 0, length)])

    start = (jnp.zeros((count, size), dtype), _unit(noise), jnp.zeros((), dtype))
    (basis, _, scale), entries = lax.scan(step, start, jnp.arange(count))
    diagonals, lengths = entries[:, 0], entries[:-1, 1]
    tridiagonal = jnp.diag(diagonals) + jnp.diag(lengths, 1) + jnp.diag(lengths, -1)
    _, vectors = jnp.linalg.eigh(tridiagonal)
    rounding = ROUNDINGS * eps * scale

    def end(coefficients: Array) -> tuple[Array, Array]:
        vector = _unit(coefficients @ basis)
        product = apply(vector)
        value = vector @ product
        return value, jnp.linalg.norm(product - value * vector) + rounding

    values, errors = lax.map(end, jnp.stack([vectors[:, -1], vectors[:, 0]]))
    return Ritz(values[0], values[1], errors[0], errors[1])


def curvature(loss: losses.Loss, weights: Packed, target: Target, *, iterations: int = ITERATIONS) -> Ritz:
    """Both ends of the spectrum of the Hessian in all layers, at any weights: `lanczos` of the operator.

    `largest` is the sharpness: near a minimum, descent is stable for steps below 2 over it (§6).
    """
    return lanczos(hessian_operator(loss, weights, target), weights, iterations=iterations)


def _without(basis: Array, vector: Array) -> Array:
    """The vector without its part in the span of the rows, which are orthonormal or 0."""
    return vector - (basis @ vector) @ basis


def _unit(vector: Array) -> Array:
    """The vector at length 1; 0 remains 0."""
    return safe_divide(vector, jnp.linalg.norm(vector))
