"""The numerical guards and matrix functions everything else is built from.

Importing it sets JAX's default for matrix products to full precision, unless the user chose one:
TPUs and recent GPUs otherwise round float32 products to about three digits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Float

from bwdln.types import Array, Scalar

if jax.config.jax_default_matmul_precision is None:  # type: ignore[attr-defined]
    jax.config.update("jax_default_matmul_precision", "highest")

#: Singular values (or eigenvalues) below this fraction of the largest count as zero, everywhere.
RANK_THRESHOLD = 1e-12


def rank_threshold(dtype: jnp.dtype) -> float:
    """The relative threshold of rank decisions: `RANK_THRESHOLD`, or 100 eps where that is more."""
    return max(RANK_THRESHOLD, 100 * float(jnp.finfo(dtype).eps))


def significant(values: Float[Array, "*batch k"]) -> Array:
    """Which of the non-negative `values`, largest first, count as non-zero; same shape, boolean."""
    return values > rank_threshold(values.dtype) * values[..., :1]


def numerical_rank(singular_values: Float[Array, "*batch k"]) -> Array:
    """How many singular values, largest first, count as non-zero."""
    return jnp.sum(significant(singular_values), axis=-1)


def safe_sqrt(x: Array) -> Array:
    """Square root with derivative 0, not infinity, at 0 (and 0 for rounding below 0)."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """Quotient that is 0, not NaN, where the denominator is 0."""
    vanishes = denominator == 0
    return jnp.where(vanishes, 0, numerator / jnp.where(vanishes, 1, denominator))


@jax.custom_jvp
def polar_factor(matrix: Float[Array, "p q"]) -> Float[Array, "p q"]:
    """The factor Q = U Vᵀ of A = Q H, for the compact decomposition A = U diag(s) Vᵀ.

    Only singular values above the rank threshold count, so at low rank this is the factor of least
    norm. Its derivative is the closed form of docs/theory.md §9, defined wherever the rank is
    locally constant, repeated singular values included.
    """
    return _polar_factor(matrix)


@custom_vmap
def _polar_factor(matrix: Float[Array, "*batch p q"]) -> Float[Array, "*batch p q"]:
    """`polar_factor` of a batch: from the Gram matrix where that is accurate, else exactly.

    A singular value decomposition is computed only if some member of the batch needs it, and used
    only for the members that do, so a lane's result does not depend on its neighbors.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return _polar_factor(matrix.mT).mT
    factor, accurate = _polar_from_gram(matrix)

    def replaced() -> Array:
        return jnp.where(accurate[..., None, None], factor, _polar_from_svd(matrix))

    return lax.cond(jnp.all(accurate), lambda: factor, replaced)


@_polar_factor.def_vmap
def _polar_factor_batched(_size: int, batched: list[bool], matrix: Array) -> tuple[Array, bool]:
    """A batch of batches is a batch: keeps one decision for all lanes under nested `vmap`."""
    return _polar_factor(matrix), batched[0]


def _polar_from_gram(matrix: Float[Array, "*batch p q"]) -> tuple[Array, Array]:
    """The polar factor for p ≥ q through the q × q Gram matrix, and whether it is accurate.

    The Gram matrix squares the condition number; one Newton step on the polar equations (§9)
    squares the error E = XᵀX − I away again. It is accurate when max |E| ≤ √eps before that step.
    """
    gram = matrix.mT @ matrix
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    eigenvalues, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    sigma = jnp.sqrt(jnp.maximum(eigenvalues, jnp.finfo(matrix.dtype).tiny))[..., None, :]
    nearly = (matrix @ vectors) / sigma
    error = nearly.mT @ nearly - identity
    refined = nearly - nearly @ (error * (sigma.mT / (sigma.mT + sigma)))
    largest = jnp.max(jnp.abs(error), axis=(-2, -1))
    return refined @ vectors.mT, largest <= jnp.sqrt(jnp.finfo(matrix.dtype).eps)


def _polar_from_svd(matrix: Float[Array, "*batch p q"]) -> Array:
    """The polar factor from the singular value decomposition: slower, and always accurate."""
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    return (left * significant(singular)[..., None, :]) @ right


@polar_factor.defjvp
def _polar_factor_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """§9: the skew part inside the ranges of A, and what leaves them, divided by s.

    No difference of singular values appears, so repeated ones are no obstacle.
    """
    (matrix,), (tangent,) = primals, tangents
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    keep = significant(singular)
    left, right = left * keep[None, :], right.T * keep[None, :]
    inverse = safe_divide(keep.astype(singular.dtype), singular)
    inner = left.T @ tangent @ right
    sums = jnp.where(keep[:, None] & keep[None, :], singular[:, None] + singular[None, :], 1)
    skew = left @ ((inner - inner.T) / sums) @ right.T
    leaving_left = (tangent @ right - left @ inner) @ (inverse[:, None] * right.T)
    leaving_right = (left * inverse[None, :]) @ (left.T @ tangent - inner @ right.T)
    return polar_factor(matrix), skew + leaving_left + leaving_right


@jax.custom_jvp
def nuclear_norm(matrix: Float[Array, "p q"]) -> Scalar:
    """The sum of the singular values; its gradient is the polar factor (least norm at low rank)."""
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))


@nuclear_norm.defjvp
def _nuclear_norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    return nuclear_norm(matrix), jnp.sum(polar_factor(matrix) * tangent)
