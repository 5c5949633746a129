"""The numerical guards and matrix functions everything else is built from.

Importing it sets JAX's default for matrix products to full precision, unless the user chose one:
TPUs and recent GPUs otherwise round float32 products to about three digits.
"""

from __future__ import annotations

from collections.abc import Callable

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


#: Rows of a covariance that are formed at a time, or as many as its factor has columns.
ROWS = 64


def squared_distance(factor: Float[Array, "n k"], diagonal: Float[Array, "n"]) -> Scalar:
    """‖F Fᵀ − diag(x)‖_F², entry by entry, so that nothing cancels where it is small.

    For k < n no n × n matrix is formed, but some of its rows at a time: the memory is O(n max(k, ROWS)).
    """
    size, rows = factor.shape[0], max(factor.shape[1], ROWS)
    if rows >= size:
        return jnp.sum((factor @ factor.T - jnp.diag(diagonal)) ** 2)
    count = -(-size // rows)
    padded = jnp.pad(factor, ((0, count * rows - size), (0, 0))).reshape(count, rows, -1)

    def part(number: Array, some: Array) -> Array:
        places = number * rows + jnp.arange(rows)  # those behind the last one, of rows of zeros, are dropped
        own = (some @ factor.T).at[jnp.arange(rows), places].add(-diagonal[places], mode="drop")
        return jnp.sum(own**2)

    return jnp.sum(lax.map(lambda each: part(*each), (jnp.arange(count), padded)))


# --- a fast route with an exact one behind it -----------------------------------------------------


def where_accurate(
    fast: Callable[..., tuple[Array, Array]], exact: Callable[..., Array]
) -> Callable[..., Array]:
    """The function of batches that `fast` computes where it is accurate, and `exact` elsewhere.

    Both take arrays with any leading batch dimensions; `fast` also says which members it got right.
    Exact values are computed only if some member needs one and used only for those that do, so a
    lane's result does not depend on its neighbors.
    """

    @custom_vmap
    def evaluate(*arguments: Array) -> Array:
        values, accurate = fast(*arguments)

        def replaced() -> Array:
            return jnp.where(accurate[..., None, None], values, exact(*arguments))

        return lax.cond(jnp.all(accurate), lambda: values, replaced)

    @evaluate.def_vmap
    def evaluate_batch(size: int, batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        # A batch of batches is a batch: the decision stays one for all lanes under nested `vmap`.
        lanes = (
            each if is_batched else jnp.broadcast_to(each, (size, *each.shape))
            for each, is_batched in zip(arguments, batched, strict=True)
        )
        return evaluate(*lanes), True

    return evaluate


# --- the polar factor -----------------------------------------------------------------------------


@jax.custom_jvp
def polar_factor(matrix: Float[Array, "p q"]) -> Float[Array, "p q"]:
    """The factor Q = U Vᵀ of A = Q H, for the compact decomposition A = U diag(s) Vᵀ.

    Only singular values above the rank threshold count, so at low rank this is the factor of least
    norm. Its derivative is the closed form of docs/theory.md §9, defined wherever the rank is
    locally constant, repeated singular values included.
    """
    return _polar_factor(matrix)


def _polar_factor(matrix: Float[Array, "*batch p q"]) -> Float[Array, "*batch p q"]:
    """`polar_factor` of a batch: from the Gram matrix where that is accurate, else exactly."""
    if matrix.shape[-2] < matrix.shape[-1]:
        return _polar_factor_tall(matrix.mT).mT
    return _polar_factor_tall(matrix)


def _polar_from_gram(matrix: Float[Array, "*batch p q"]) -> tuple[Array, Array]:
    """The polar factor for p ≥ q through the q × q Gram matrix, and whether it is accurate.

    The Gram matrix squares the condition number; one Newton step on the polar equations (§9)
    squares the error E = XᵀX − I away again. It is accurate when max |E| ≤ √eps before that step.
    """
    gram = matrix.mT @ matrix
    eigenvalues, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    sigma = jnp.sqrt(jnp.maximum(eigenvalues, jnp.finfo(matrix.dtype).tiny))[..., None, :]
    nearly = (matrix @ vectors) / sigma
    error = nearly.mT @ nearly - _identities(gram.shape[-1], gram)
    refined = nearly - nearly @ (error * (sigma.mT / (sigma.mT + sigma)))
    largest = jnp.max(jnp.abs(error), axis=(-2, -1))
    return refined @ vectors.mT, largest <= jnp.sqrt(jnp.finfo(matrix.dtype).eps)


def _polar_from_svd(matrix: Float[Array, "*batch p q"]) -> Array:
    """The polar factor from the singular value decomposition: slower, and always accurate."""
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    return (left * significant(singular)[..., None, :]) @ right


_polar_factor_tall = where_accurate(_polar_from_gram, _polar_from_svd)


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


# --- diagonal plus low rank -----------------------------------------------------------------------

#: Quadrature nodes of `inverse_root_action`: enough for all digits of float64 at the range below.
NODES = 64
#: The largest ratio of the ends of the spectrum that the quadrature takes.
LARGEST_RANGE = 1e13
#: The quadrature is used from this dimension on, and where the dimension is this multiple of the
#: columns: below that one decomposition is faster (benchmarks/losses.py).
QUADRATURE_FROM = 100
QUADRATURE_RATIO = 8


def bordered(factor: Float[Array, "*batch n k"], diagonal: Float[Array, "*batch n"]) -> Array:
    """[B, diag(√d)] of shape (n, k + n): the A with A Aᵀ = B Bᵀ + diag(d)."""
    roots = safe_sqrt(diagonal)[..., None] * _identities(diagonal.shape[-1], factor)
    return jnp.concatenate([factor, roots], axis=-1)


def _identities(size: int, like: Float[Array, "*batch _ _"]) -> Float[Array, "*batch size size"]:
    """The identity for every member of the batch of matrices `like`."""
    return jnp.broadcast_to(jnp.eye(size, dtype=like.dtype), (*like.shape[:-2], size, size))


@jax.custom_jvp
def inverse_root_action(factor: Float[Array, "n k"], diagonal: Float[Array, "n"]) -> Float[Array, "n k"]:
    """M^{-1/2} B for M = B Bᵀ + diag(d): the first k columns of the polar factor of `bordered`.

    d ≥ 0, and where it is 0 the row of B must be 0, too (for a singular target both are), or all of
    d is 0. Where k is small against n it costs O(n k²), by quadrature of the integral over the resolvents of
    M (docs/theory.md §9); elsewhere, or where d is too small for that, the polar factor is computed.
    """
    rows, columns = factor.shape
    if rows < max(QUADRATURE_FROM, QUADRATURE_RATIO * columns):
        return _leading_polar_factor(factor, diagonal)
    return _inverse_root_action(factor, diagonal)


def _leading_polar_factor(factor: Array, diagonal: Array) -> Array:
    return _polar_factor(bordered(factor, diagonal))[..., : factor.shape[-1]]


def _by_quadrature(factor: Array, diagonal: Array) -> tuple[Array, Array]:
    """Σ_j w_j (M + t_j²)⁻¹ B, each term by a k × k system, and whether that is accurate."""
    lowest = jnp.min(jnp.where(diagonal > 0, diagonal, jnp.inf), axis=-1)
    highest = jnp.max(diagonal, axis=-1) + jnp.sum(factor**2, axis=(-2, -1))
    # False where all of d is 0, and for NaN, too.
    accurate = (lowest < jnp.inf) & (highest <= LARGEST_RANGE * lowest)
    points, weights = _elliptic_nodes(jnp.where(accurate, lowest, 1), jnp.where(accurate, highest, 1))
    identity = _identities(factor.shape[-1], factor)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        point, weight = node
        scaled = factor / (diagonal + point[..., None] ** 2)[..., None]
        lower = jnp.linalg.cholesky(identity + factor.mT @ scaled, symmetrize_input=False)
        solved = lax.linalg.triangular_solve(lower, scaled, lower=True, transpose_a=True)
        solved = lax.linalg.triangular_solve(lower, solved, lower=True)
        return total + weight[..., None, None] * solved, None

    return lax.scan(add, jnp.zeros_like(factor), (points, weights))[0], accurate


_inverse_root_action = where_accurate(_by_quadrature, _leading_polar_factor)


def _elliptic_nodes(lowest: Array, highest: Array) -> tuple[Array, Array]:
    """Points t_j and weights w_j, shape (NODES, …), with x^{-1/2} = Σ w_j / (x + t_j²) on the range.

    The trapezoidal rule after t = √a sc(u, k'), with k'² = 1 − a/b for the range [a, b] (§9). The
    elliptic functions come from the arithmetic-geometric mean, without cancellation, for the lower
    half of the nodes; the upper half mirrors it, t ↦ √(ab) / t.
    """
    upper, lower = jnp.ones_like(lowest), jnp.sqrt(lowest / highest)
    means = []
    for _ in range(9):  # quadratic convergence: enough from any ratio up to 1e16
        means.append((upper, lower))
        upper, lower = (upper + lower) / 2, jnp.sqrt(upper * lower)
    phases = (jnp.arange(NODES // 2, dtype=lowest.dtype) + 0.5) * (jnp.pi / (2 * NODES))
    phases = phases.reshape(-1, *[1] * lowest.ndim)
    cotangent = jnp.cos(phases) / jnp.sin(phases) * jnp.ones_like(upper)[None]
    scale, delta, rotated = upper[None] * cotangent, jnp.ones_like(cotangent), cotangent
    for first, second in reversed(means):  # descending Landen steps, for cs(u) and dn(u)
        rotated = rotated * scale
        scale = scale * delta
        delta = (second[None] + rotated) / (first[None] + rotated)
        rotated = scale / first[None]
    tangent = 1 / scale
    points = jnp.sqrt(lowest)[None] * tangent
    weights = jnp.sqrt(lowest)[None] * delta * (1 + tangent**2) / (NODES * upper[None])
    mirror = jnp.sqrt(lowest * highest)[None] / points
    return jnp.concatenate([points, mirror]), jnp.concatenate([weights, weights * mirror / points])


@inverse_root_action.defjvp
def _inverse_root_action_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The derivative of the polar factor of `bordered`."""
    factor, diagonal = primals

    def columns(factor: Array, diagonal: Array) -> Array:
        return polar_factor(bordered(factor, diagonal))[:, : factor.shape[1]]

    return inverse_root_action(factor, diagonal), jax.jvp(columns, primals, tangents)[1]
