"""The polar factor Q of A = Q H by three routes, and inverse roots that are parts of it (docs/theory.md §9).

`decomposed` takes eigenvectors or singular vectors of A. `by_products` takes matrix products alone.
`follow` goes along a path of matrices, from what is known of the last one (a `Track`), by matrix products.
Each fast route says where it is accurate, and elsewhere a decomposition takes its place.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from bwdln.linalg import (
    rank_threshold,
    safe_divide,
    safe_sqrt,
    select_members,
    significant,
    squared_norm,
    where_accurate,
)
from bwdln.types import Array, Scalar

#: A fast route is accurate where what is left of its error is at most so many units of rounding.
ROUNDINGS = 256
#: Along a path, where errors of many steps add up, ‖I − QᵀQ‖ is at most so many for each of the columns, that
#: is, for an entry: as accurate as decompositions are.
ROUNDINGS_PER_COLUMN = 8


def largest_condition(dtype: jnp.dtype) -> float:
    """The condition number of A up to which products will do: eps^(-1/4), 8,000 in float64, 54 in float32.

    The polar factor of A rounded is off by eps times the condition number, by every route.
    """
    return float(jnp.finfo(dtype).eps) ** -0.25


# --- corrections of an inverse root ---------------------------------------------------------------

#: Corrections of the inverse root beyond the one that is always made.
CORRECTIONS = 4
#: How far it may be off before them, as ‖I − QᵀQ‖.
FAR = 0.1


def _corrected_root(
    turned: Array, singular: Array, kept: Array, first: Array, worth: Array
) -> tuple[Array, Array]:
    """The inverse root Y of AᵀA in a basis V by Newton steps from a first one, and whether it is accurate.

    For a batch; `turned` is A V. The steps for E = I − (A V Y)ᵀ(A V Y) divide E_ij by s_i + s_j (§9). V and s
    may be off: with r = 2 ‖diag(s) Y − I‖ a step leaves ‖E‖ (r + ‖E‖) of ‖E‖ at most, to first order. Y is
    accurate where that is rounding behind the last step. What is not `kept` of the basis is zero in Y.
    Members that are not `worth` it get no more than the last step.
    """
    eps, size = float(jnp.finfo(turned.dtype).eps), turned.shape[-1]
    both = kept[..., :, None] & kept[..., None, :]
    sums = singular[..., :, None] + singular[..., None, :]
    divided = jnp.where(both, 1 / jnp.where(both, sums, 1), 0)
    identity = _identities(size, turned) * kept[..., None, :]

    def residual(inverse: Array) -> tuple[Array, Array, Array]:
        isometry = turned @ inverse
        gram = isometry.mT @ isometry
        error = identity - (gram + gram.mT) / 2  # Y stays symmetric to the last bit
        off = _norm(error)
        stale = 2 * _norm(singular[..., :, None] * inverse - identity)
        near = worth & (off <= FAR) & (stale <= 0.5)
        return error, near, near & (off * (stale + off) <= ROUNDINGS_PER_COLUMN * size * eps)

    def again(carry: tuple[Array, ...]) -> Array:
        made, _, _, near, accurate = carry
        return (made < CORRECTIONS) & jnp.any(near & ~accurate)

    def correct(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        made, inverse, error, near, accurate = carry
        better = inverse + error * divided
        # A member that is done stays as it is, however many others need more.
        kept_as_is = (inverse, error, near, accurate)
        return (made + 1, *select_members(accurate | ~near, kept_as_is, (better, *residual(better))))

    start = (jnp.zeros((), jnp.int32), first, *residual(first))
    _, inverse, error, _, accurate = lax.while_loop(again, correct, start)
    return inverse + error * divided, accurate


# --- the polar factor -----------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def polar_factor(matrix: Float[Array, "p q"], by_products: bool = False) -> Float[Array, "p q"]:
    """The factor Q = U Vᵀ of A = Q H, for the compact decomposition A = U diag(s) Vᵀ.

    Only singular values above the rank threshold count, so at low rank this is the factor of least
    norm. Its derivative is the closed form of docs/theory.md §9, defined wherever the rank is
    locally constant, repeated singular values included. `by_products`: without a decomposition,
    where that is accurate.
    """
    return _polar_factor(matrix, by_products)


def _polar_factor(
    matrix: Float[Array, "*batch p q"], by_products: bool = False
) -> Float[Array, "*batch p q"]:
    """`polar_factor` of a batch."""
    if by_products:
        return multiplied(matrix)[0]
    if matrix.shape[-2] < matrix.shape[-1]:
        return decomposed(matrix.mT).factor.mT
    return decomposed(matrix).factor


class Decomposed(NamedTuple):
    """The polar factor of A, and V and s of AᵀA = V diag(s²) Vᵀ."""

    factor: Float[Array, "*batch p q"]
    vectors: Float[Array, "*batch q q"]
    # 0 where they count as zero.
    singular: Float[Array, "*batch q"]


def _from_gram(matrix: Float[Array, "*batch p q"]) -> tuple[Decomposed, Array]:
    """The polar factor for p ≥ q through the q × q Gram matrix, and whether it is accurate.

    The Gram matrix squares the condition number; steps of Newton on the polar equations (§9) give the
    digits back.
    """
    gram = matrix.mT @ matrix
    eigenvalues, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    singular = jnp.sqrt(jnp.maximum(eigenvalues, jnp.finfo(matrix.dtype).tiny))
    isometry, accurate = _refined(matrix @ vectors, singular)
    return Decomposed(isometry @ vectors.mT, vectors, singular), accurate


def _by_one_step(turned: Array, singular: Array) -> tuple[tuple[Array, Array], Array]:
    """The polar factor of A V = `turned`, about A V / s, by a step that squares the error E = I − XᵀX away.

    It is accurate when max |E| ≤ √eps before the step.
    """
    sigma = singular[..., None, :]
    nearly = turned / sigma
    error = _identities(turned.shape[-1], turned) - nearly.mT @ nearly
    refined = nearly + nearly @ (error * (sigma.mT / (sigma.mT + sigma)))
    accurate = jnp.max(jnp.abs(error), axis=(-2, -1)) <= jnp.sqrt(jnp.finfo(turned.dtype).eps)
    return (refined, jnp.ones_like(accurate)), accurate


def _by_steps(turned: Array, singular: Array) -> tuple[Array, Array]:
    """The same by as many steps as it takes, and whether it is accurate then."""
    everything, worth = jnp.ones(singular.shape, bool), jnp.ones(singular.shape[:-1], bool)
    inverse, accurate = _corrected_root(turned, singular, everything, _diagonal(1 / singular), worth)
    return turned @ inverse, accurate


_refined = where_accurate(_by_one_step, _by_steps)


def _from_svd(matrix: Float[Array, "*batch p q"]) -> Decomposed:
    """The polar factor from the singular value decomposition: slower, and always accurate."""
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    kept = significant(singular)
    return Decomposed((left * kept[..., None, :]) @ right, right.mT, jnp.where(kept, singular, 0))


#: The polar factor of a batch of A, p ≥ q, by a decomposition of the Gram matrix, or of A itself.
decomposed = where_accurate(_from_gram, _from_svd)


@polar_factor.defjvp
def _polar_factor_jvp(
    by_products: bool, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
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
    return polar_factor(matrix, by_products), skew + leaving_left + leaving_right


@jax.custom_jvp
def nuclear_norm(matrix: Float[Array, "p q"]) -> Scalar:
    """The sum of the singular values; its gradient is the polar factor (least norm at low rank)."""
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))


@nuclear_norm.defjvp
def _nuclear_norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    return nuclear_norm(matrix), jnp.sum(polar_factor(matrix) * tangent)


# --- by matrix products alone ---------------------------------------------------------------------


#: The largest scale of a step: beyond it singular values near 1 become so small that rounding tells [9].
LARGEST_SCALE = 1.69770248526


def by_products(matrix: Float[Array, "*batch p q"]) -> tuple[Array, Array]:
    """The polar factor for p ≥ q by scaled Newton-Schulz steps, and whether it is accurate.

    X ← X (3 I − α² XᵀX) α / 2 moves every singular value towards 1 and leaves the singular vectors. With α
    from a lower bound ℓ of them it is the cubic that brings the interval [ℓ, 1] closest to 1, but no larger
    than `LARGEST_SCALE` (§9); the bound then follows from the last one, so that the steps are the same for
    all members.
    """
    eps = float(jnp.finfo(matrix.dtype).eps)
    absolute = jnp.abs(matrix)
    # ‖A‖² ≤ ‖A‖₁ ‖A‖_∞ ≤ √(p q) ‖A‖²: the bound ℓ takes that in.
    sums = (jnp.sqrt(jnp.max(jnp.sum(absolute, axis=axis), axis=-1))[..., None, None] for axis in (-1, -2))
    current = safe_divide(matrix, math.prod(sums))
    identity = _identities(matrix.shape[-1], matrix)
    lower = 1 / (largest_condition(matrix.dtype) * math.prod(matrix.shape[-2:]) ** 0.25)
    while 1 - lower > eps:
        scale = min(math.sqrt(3 / (1 + lower + lower**2)), LARGEST_SCALE)
        lower = scale * lower * (3 - (scale * lower) ** 2) / 2
        current = current @ ((1.5 * scale) * identity - (0.5 * scale**3) * (current.mT @ current))
    error = identity - current.mT @ current
    refined = current + current @ (error / 2)
    return refined, jnp.max(jnp.abs(error), axis=(-2, -1)) <= ROUNDINGS * eps


def _counted(matrix: Float[Array, "*batch p q"]) -> tuple[tuple[Array, Array], Array]:
    factor, accurate = by_products(matrix)
    return (factor, jnp.zeros_like(accurate)), accurate


def _decomposed(matrix: Float[Array, "*batch p q"]) -> tuple[Array, Array]:
    return decomposed(matrix).factor, jnp.ones(matrix.shape[:-2], bool)


_multiplied = where_accurate(_counted, _decomposed)


def multiplied(matrix: Float[Array, "p q"]) -> tuple[Float[Array, "p q"], Array]:
    """The polar factor `by_products`, and whether it took a decomposition all the same."""
    if matrix.shape[-2] < matrix.shape[-1]:
        factor, decomposes = multiplied(matrix.mT)
        return factor.mT, decomposes
    result: tuple[Array, Array] = _multiplied(matrix)
    return result


# --- along a path ---------------------------------------------------------------------------------


class Track(NamedTuple):
    """What is known from the last matrices A of a path, all with p ≥ q: the inverse root of AᵀA.

    `vectors` V and `singular` s are of an earlier AᵀA = V diag(s²) Vᵀ, s = 0 where it counts as zero. In the
    basis V, `inverse` is the inverse root of the last AᵀA, and `before` that of the one before it.
    """

    vectors: Float[Array, "*batch q q"]
    singular: Float[Array, "*batch q"]
    inverse: Float[Array, "*batch q q"]
    before: Float[Array, "*batch q q"]


def track(matrix: Float[Array, "p q"], diagonal: Float[Array, "q"] | None = None) -> Track:
    """What `follow` needs to go on from a matrix; see there."""
    return _tracked(decomposed(_stacked(matrix, _roots(matrix, diagonal))))


def follow(
    matrix: Float[Array, "p q"], known: Track, diagonal: Float[Array, "q"] | None = None
) -> tuple[Float[Array, "p q"], Track, Array]:
    """The first p rows of the polar factor of A, what is known then, and whether it took a decomposition.

    A is the matrix, p ≥ q, or with a diagonal d the matrix with diag(√d) below it. `known` is what this
    function or `track` returned for a matrix nearby.

    The inverse root Y of AᵀA, extrapolated from the last two, is corrected by Newton steps for
    E = I − (A Y)ᵀ(A Y) in the basis V, where they divide E_ij by s_i + s_j (§9). V and s may be old:
    with r = 2 ‖diag(s) Y − I‖ a step leaves ‖E‖ (r + ‖E‖) of ‖E‖ at most, to first order. Where that
    is above `ROUNDINGS_PER_COLUMN` q units of rounding behind the last step, or A left the range it had,
    or the condition number is above `largest_condition`, A is decomposed, and V and s are new.
    """
    return _follow(matrix, _roots(matrix, diagonal), *known)


def _roots(matrix: Array, diagonal: Array | None) -> Array:
    """√d; nothing where there is no diagonal."""
    return jnp.zeros(0, matrix.dtype) if diagonal is None else safe_sqrt(diagonal)


def _stacked(matrix: Float[Array, "*batch p q"], roots: Float[Array, "*batch _"]) -> Array:
    """The matrix with the diagonal matrix of the roots below it, if there are any."""
    below = roots[..., None] * _identities(roots.shape[-1], matrix)
    return jnp.concatenate([matrix, below], axis=-2) if roots.shape[-1] else matrix


def _tracked(found: Decomposed) -> Track:
    kept = found.singular > 0
    inverse = _diagonal(safe_divide(kept.astype(found.singular.dtype), found.singular))
    return Track(found.vectors, found.singular, inverse, inverse)


def _corrected(matrix: Array, roots: Array, *track: Array) -> tuple[tuple[Array, Track, Array], Array]:
    """`follow` where it is accurate, for a batch."""
    known = Track(*track)
    turned = matrix @ known.vectors
    if roots.shape[-1]:
        turned = jnp.concatenate([turned, roots[..., :, None] * known.vectors], axis=-2)
    kept = known.singular > 0
    largest = jnp.max(known.singular, axis=-1)
    lowest = jnp.min(jnp.where(kept, known.singular, largest[..., None]), axis=-1)
    # What A has in the directions that counted as zero: nothing that would not, and that tells.
    leaving = jnp.max(jnp.abs(jnp.where(kept[..., None, :], 0, turned)), axis=(-2, -1))
    rounding = ROUNDINGS * float(jnp.finfo(matrix.dtype).eps)
    tells = jnp.minimum(rounding * lowest, rank_threshold(matrix.dtype) * largest)
    in_range = (largest <= largest_condition(matrix.dtype) * lowest) & (leaving <= tells)
    first = 2 * known.inverse - known.before
    inverse, accurate = _corrected_root(turned, known.singular, kept, first, in_range)
    factor = turned[..., : matrix.shape[-2], :] @ (inverse @ known.vectors.mT)
    after = Track(known.vectors, known.singular, inverse, known.inverse)
    return (factor, after, jnp.zeros_like(accurate)), accurate


def _anew(matrix: Array, roots: Array, *_known: Array) -> tuple[Array, Track, Array]:
    """`follow` by a decomposition, for a batch."""
    found = decomposed(_stacked(matrix, roots))
    return found.factor[..., : matrix.shape[-2], :], _tracked(found), jnp.ones(matrix.shape[:-2], bool)


_follow = where_accurate(_corrected, _anew)


def _norm(matrix: Float[Array, "*batch _ _"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(squared_norm(matrix))


def _diagonal(entries: Float[Array, "*batch size"]) -> Float[Array, "*batch size size"]:
    """The diagonal matrices of the entries."""
    return entries[..., None] * _identities(entries.shape[-1], entries[..., None])


def _identities(size: int, like: Float[Array, "*batch _ _"]) -> Float[Array, "*batch size size"]:
    """The identity for every member of the batch of matrices `like`."""
    return jnp.broadcast_to(jnp.eye(size, dtype=like.dtype), (*like.shape[:-2], size, size))


# --- diagonal plus low rank -----------------------------------------------------------------------

#: Quadrature nodes of `inverse_root_action`: enough for all digits of float64 at the range below.
NODES = 64
#: The largest ratio of the ends of the spectrum that the quadrature takes.
LARGEST_RANGE = 1e13
#: A factor is thin from this dimension on, and where the dimension is this multiple of the columns: below
#: that one decomposition is faster than the quadrature (benchmarks/losses.py).
THIN_FROM = 100
THIN_RATIO = 8


def bordered(factor: Float[Array, "*batch n k"], diagonal: Float[Array, "*batch n"]) -> Array:
    """[B, diag(√d)] of shape (n, k + n): the A with A Aᵀ = B Bᵀ + diag(d)."""
    return _stacked(factor.mT, safe_sqrt(diagonal)).mT


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def inverse_root_action(
    factor: Float[Array, "n k"], diagonal: Float[Array, "n"], by_products: bool = False
) -> Float[Array, "n k"]:
    """M^{-1/2} B for M = B Bᵀ + diag(d): the first k columns of the polar factor of `bordered`.

    d ≥ 0, and where it is 0 the row of B must be 0, too (for a singular target both are), or all of
    d is 0. Where k is small against n it costs O(n k²), by quadrature of the integral over the resolvents of
    M (docs/theory.md §9); where d is too small for that, by a decomposition, and elsewhere it is the
    polar factor, `by_products` as there.
    """
    if is_thin(*factor.shape):
        return _inverse_root_action(factor, diagonal)
    return _leading_polar_factor(factor, diagonal, by_products)


def is_thin(rows: int, columns: int) -> bool:
    """Whether a factor has so few columns that what is left of the work is its products with k × k matrices.

    `inverse_root_action` takes the quadrature then, and to follow a path saves nothing.
    """
    return rows >= max(THIN_FROM, THIN_RATIO * columns)


def _leading_polar_factor(factor: Array, diagonal: Array, by_products: bool = False) -> Array:
    return _polar_factor(bordered(factor, diagonal), by_products)[..., : factor.shape[-1]]


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
    by_products: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The derivative of the polar factor of `bordered`."""
    factor, diagonal = primals

    def columns(factor: Array, diagonal: Array) -> Array:
        return polar_factor(bordered(factor, diagonal), by_products)[:, : factor.shape[1]]

    return inverse_root_action(factor, diagonal, by_products), jax.jvp(columns, primals, tangents)[1]
