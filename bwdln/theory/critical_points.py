"""All critical points of the deep loss: how many, which, their values and indices, and the points.

They are known by their index set J, the eigenvectors of the target that the generator has learnt
(docs/theory.md §3). With p eigenvalues above τ (above 0 for Frobenius) and rank k, the sets are those
of at most min(k, p) of these p modes; for Bures-Wasserstein at τ = 0 of exactly so many, because the
loss has a kink at a lower rank.

Repeated eigenvalues: the points of J are still critical, with the value and the index given here,
but so they are with any other basis of the eigenspace. They are then not isolated (beyond the
rotations of the latent space): sets that differ by equal eigenvalues lie on one connected family,
are counted and enumerated apart, and each of them may be a minimum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bwdln.arrays import finite, real_array
from bwdln.errors import check
from bwdln.initializations.base import from_factors
from bwdln.linalg import safe_sqrt
from bwdln.targets import Target
from bwdln.theory import subsets
from bwdln.theory.checks import IndexSet, LossName, check_index_set, check_loss, check_spectrum, known
from bwdln.types import Array, EndToEnd, Scalar, Spectrum, Weights, Widths

#: What a critical point is to the loss of the layers, at the balanced layers of `layers`.
#: A maximum is one among its neighbors, not strictly so in the layers from depth 2 on.
Kind: TypeAlias = Literal["minimum", "strict saddle", "higher-order saddle", "maximum"]
WHOLE = (int, np.integer)  # integers


class CriticalPoint(NamedTuple):
    """A critical point by its index set, in ascending positions.

    Attributes:
        index_set: J, positions in the descending eigenvalues, from 0.
        value: the loss there.
        index: the number of negative eigenvalues of the Hessian in the layers.
        kind: a saddle is strict if its index is above 0; of higher order if the loss goes down from
            it only at the order 2N in the layers, by raising the rank.
    """

    index_set: tuple[int, ...]
    value: float
    index: int  # type: ignore[assignment]  # over the method of tuples, which nobody needs here
    kind: Kind


class Nearest(NamedTuple):
    """The critical point nearest to a generator: J ascending, and min_Q ‖W − Ω_J S Qᵀ‖_F."""

    index_set: tuple[int, ...]
    distance: float
    certified: bool  # that no other is nearer; else it is the best of those looked at


class _Landscape(NamedTuple):
    """What decides which index sets there are and what they are, on the host, in float64."""

    eigenvalues: np.ndarray
    costs: np.ndarray  # of each mode, where it is not learnt
    level: float  # above which a mode can be learnt: τ, 0 for Frobenius
    learnable: int  # p: how many modes lie above the level, the first ones
    sizes: tuple[int, ...]  # of the index sets, largest first
    widths: Widths | None


# --- which there are ------------------------------------------------------------------------------


def critical_points(
    eigenvalues: Spectrum,
    rank: int,
    *,
    tau: float = 0.0,
    loss: LossName = "bures_wasserstein",
    widths: Widths | None = None,
) -> Iterator[CriticalPoint]:
    """All critical points at a rank, one after the other: nothing is computed before it is asked for.

    The minimizer comes first; larger index sets come before smaller ones, those of equal size in
    lexicographic order. There are `count` of them.

    Args:
        eigenvalues: of the target, shape (n,), descending.
        rank: k, the bottleneck, from 1 to n.
        tau: τ ≥ 0; 0 for Frobenius.
        loss: its name.
        widths: of the network, with the bottleneck `rank`. They matter at depth 1, where raising the
            rank counts in the index; without them the depth is taken to be above 1.

    Raises `InvalidOption` for eigenvalues, a rank, a τ, a loss or widths it does not take.
    """
    landscape = _landscape(eigenvalues, rank, tau, loss, widths)
    return (_described(landscape, each) for each in subsets.listed(landscape.learnable, landscape.sizes))


def count(eigenvalues: Spectrum, rank: int, *, tau: float = 0.0, loss: LossName = "bures_wasserstein") -> int:
    """How many index sets there are: C(p, min(k, p)), or the sum over all sizes up to it; exact.

    Raises `InvalidOption` like `critical_points`.
    """
    landscape = _landscape(eigenvalues, rank, tau, loss)
    return subsets.count(landscape.learnable, landscape.sizes)


def sample(
    seed: int,
    eigenvalues: Spectrum,
    rank: int,
    number: int,
    *,
    tau: float = 0.0,
    loss: LossName = "bures_wasserstein",
    widths: Widths | None = None,
) -> list[CriticalPoint]:
    """The minimizer and `number` − 1 other critical points, each set of these equally likely.

    All are different and come in the order of `critical_points`; where there are no more than
    `number`, all of them. They are drawn by their place in that order, an integer of any length:
    C(500, 250) of them are no obstacle. Equal seeds give equal samples.

    Raises `InvalidOption` like `critical_points`, and for a number below 1.
    """
    check(isinstance(number, WHOLE) and number >= 1, "number", number, "an integer from 1")
    landscape = _landscape(eigenvalues, rank, tau, loss, widths)
    total = subsets.count(landscape.learnable, landscape.sizes)
    places = (0, *(1 + each for each in subsets.drawn(seed, total - 1, number - 1)))
    sets = (subsets.at(each, landscape.learnable, landscape.sizes) for each in places)
    return [_described(landscape, each) for each in sets]


def minimizing_set(
    eigenvalues: Spectrum, rank: int, *, tau: float = 0.0, loss: LossName = "bures_wasserstein"
) -> tuple[int, ...]:
    """The index set of the global minimizer: the largest `rank` eigenvalues of those above τ.

    With repeated eigenvalues one of several. Raises `InvalidOption` like `critical_points`.
    """
    return tuple(range(_landscape(eigenvalues, rank, tau, loss).sizes[0]))


def minimum(
    eigenvalues: Spectrum, rank: int, *, tau: float = 0.0, loss: LossName = "bures_wasserstein"
) -> float:
    """The smallest value of the loss at a rank. Raises `InvalidOption` like `critical_points`."""
    landscape = _landscape(eigenvalues, rank, tau, loss)
    return float(np.sum(landscape.costs[landscape.sizes[0] :]))


def _landscape(
    eigenvalues: Spectrum, rank: int, tau: float, loss: LossName, widths: Widths | None = None
) -> _Landscape:
    """What the arguments say, checked."""
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    values = np.asarray(eigenvalues, dtype=np.float64)
    sound = isinstance(rank, WHOLE) and 1 <= rank <= len(values)
    check(sound, "rank", rank, f"an integer from 1 to the dimension {len(values)}")
    if widths is not None:
        _check_widths(len(values), widths)
        takes = f"{min(widths)}, the bottleneck of the widths {list(widths)}"
        check(rank == min(widths), "rank", rank, takes)
    level = float(tau)
    learnable = int(np.sum(values > level))
    most = min(int(rank), learnable)
    exactly = loss == "bures_wasserstein" and level == 0
    sizes = (most,) if exactly else tuple(range(most, -1, -1))
    costs = values**2 if loss == "frobenius" else (np.sqrt(values) - np.sqrt(level)) ** 2
    return _Landscape(values, costs, level, learnable, sizes, widths)


def _described(landscape: _Landscape, index_set: tuple[int, ...]) -> CriticalPoint:
    inside = np.zeros(len(landscape.eigenvalues), dtype=bool)
    inside[list(index_set)] = True
    raising = _raising(landscape.widths, len(index_set))
    negative = int(_negative(landscape.eigenvalues, inside, landscape.level, raising))
    value = float(np.sum(landscape.costs[~inside]))
    return CriticalPoint(index_set, value, negative, _kind(landscape, index_set, negative))


def _kind(landscape: _Landscape, index_set: tuple[int, ...], negative: int) -> Kind:
    largest, values = landscape.sizes[0], landscape.eigenvalues
    # Compared by eigenvalue: with repeated ones several index sets are minima.
    if np.array_equal(values[list(index_set)], values[:largest]):
        return "minimum"
    if not index_set and values[-1] > landscape.level:
        return "maximum"
    return "strict saddle" if negative > 0 else "higher-order saddle"


# --- what they are --------------------------------------------------------------------------------


def value(
    eigenvalues: Spectrum, index_set: IndexSet, *, tau: Scalar = 0.0, loss: LossName = "bures_wasserstein"
) -> Scalar:
    """The loss at the critical point of an index set (docs/theory.md §3).

    Σ over the modes outside J of (√λ − √τ)², of λ² for Frobenius. Everything may be traced, the
    index set as an integer array; `jax.vmap` takes lanes of targets, of τ and of index sets.

    Raises `InvalidOption` for positions out of range or repeated, and a mode that is not above τ.
    """
    eigenvalues, inside = _checked(eigenvalues, index_set, tau, loss)
    roots, floor = safe_sqrt(eigenvalues), safe_sqrt(jnp.asarray(tau))
    costs = eigenvalues**2 if loss == "frobenius" else (roots - floor) ** 2
    return jnp.sum(jnp.where(inside, 0, costs))


def index(
    eigenvalues: Spectrum,
    index_set: IndexSet,
    *,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
    widths: Widths | None = None,
) -> Scalar:
    """The number of negative eigenvalues of the Hessian at balanced layers (docs/theory.md §4).

    The pairs of a mode a outside J and a smaller one l in J, λ_a > λ_l. At depth 1 with a latent
    dimension m above |J|, as `widths` = (m, n) may say, also m − |J| directions for each a with
    λ_a > τ, those that raise the rank; at τ = 0 the loss has a kink along them and goes down, so they
    count too. An integer; everything but `widths` may be traced, like in `value`.

    Raises `InvalidOption` like `value`, and for widths that do not fit n and J.
    """
    eigenvalues, inside = _checked(eigenvalues, index_set, tau, loss)
    if widths is not None:
        _check_widths(len(eigenvalues), widths)
        check_index_set(eigenvalues, index_set, tau=tau, loss=loss, rank=min(widths))
    return _negative(eigenvalues, inside, tau, _raising(widths, len(index_set)))


def singular_values(
    eigenvalues: Spectrum, index_set: IndexSet, *, tau: Scalar = 0.0, loss: LossName = "bures_wasserstein"
) -> Float[Array, " size"]:
    """The singular values of the generator, √(λ_l − τ) for l in J, in the order given; (|J|,).

    Everything may be traced. Raises `InvalidOption` like `value`.
    """
    eigenvalues, _ = _checked(eigenvalues, index_set, tau, loss)
    return safe_sqrt(eigenvalues[jnp.asarray(index_set, dtype=int)] - tau)


def _checked(
    eigenvalues: Spectrum, index_set: IndexSet, tau: Scalar, loss: LossName
) -> tuple[Spectrum, Bool[Array, " n"]]:
    """The eigenvalues as an array, and which of them are in J."""
    check_loss(loss, tau)
    check_spectrum(eigenvalues)
    check_index_set(eigenvalues, index_set, tau=tau, loss=loss)
    array = jnp.asarray(eigenvalues)
    return array, jnp.zeros(array.shape, bool).at[jnp.asarray(index_set, dtype=int)].set(True)


def _negative(eigenvalues: Array, inside: Array, level: Scalar, raising: int) -> Array:
    """The index, of arrays of NumPy or JAX; `raising` directions for each mode that can be raised."""
    larger = eigenvalues[:, None] > eigenvalues[None, :]
    pairs = (larger & ~inside[:, None] & inside[None, :]).sum()
    return pairs + raising * ((eigenvalues > level) & ~inside).sum()


def _raising(widths: Widths | None, size: int) -> int:
    """The directions that raise the rank by one mode at second order: there are some at depth 1."""
    return widths[0] - size if widths is not None and len(widths) == 2 else 0


# --- the points themselves ------------------------------------------------------------------------


def end_to_end(
    target: Target,
    index_set: IndexSet,
    latent_dim: int,
    *,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
    rows: Float[Array, "size m"] | None = None,
) -> EndToEnd:
    """The critical generator Ω_J S Qᵀ in data coordinates, shape (n, m).

    `latent_dim` is m; `rows` are Qᵀ, orthonormal, shape (|J|, m), by default the first |J| unit vectors.
    The l-th position in J goes with the l-th row. Everything but m may be traced.

    Raises `InvalidOption` like `value`, for more positions than m, and for rows of another shape or
    that are not orthonormal.
    """
    check_index_set(target.eigenvalues, index_set, tau=tau, loss=loss, rank=latent_dim)
    singular = singular_values(target.eigenvalues, index_set, tau=tau, loss=loss)
    shape = (len(index_set), latent_dim)
    if rows is None:
        rows = jnp.eye(*shape, dtype=singular.dtype)
    check(np.shape(rows) == shape, "rows", f"shape {np.shape(rows)}", f"shape {shape}, (|J|, latent_dim)")
    if known(rows):
        given = np.asarray(rows)
        error = np.abs(given @ given.T - np.eye(len(given))).max(initial=0)
        check(bool(error <= 1e-4), "rows", f"rows whose products are off by {error:.1g}", "orthonormal rows")
    return _eigenvectors(target, index_set) * singular[None, :] @ jnp.asarray(rows)


def layers(
    target: Target,
    index_set: IndexSet,
    widths: Widths,
    *,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Weights:
    """The critical point as balanced layers (W_1, …, W_N) of the given widths (docs/theory.md §5).

    Their product is `end_to_end` with its own rows. Raises `InvalidOption` like `value`, for widths
    that do not end with n, and for more positions than the bottleneck.
    """
    _check_widths(target.dimension, widths)
    check_index_set(target.eigenvalues, index_set, tau=tau, loss=loss, rank=min(widths))
    singular = singular_values(target.eigenvalues, index_set, tau=tau, loss=loss)
    rows = jnp.eye(len(index_set), widths[0], dtype=singular.dtype)
    return from_factors(_eigenvectors(target, index_set), singular, rows, widths)


def descent_direction(
    target: Target,
    index_set: IndexSet,
    widths: Widths,
    *,
    tau: float = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Weights:
    """A direction in the layers in which the loss goes down from `layers`; unit norm over all layers.

    Where λ_a > λ_l for a mode a outside J and one l in J: of the eigenvectors of the Hessian that turn
    l to a, in the last layer alone, that of the smallest eigenvalue (docs/theory.md §4). The loss
    changes by half of this eigenvalue times t², to leading order in the step t.

    Else the rank is too low: one more column of every layer grows at once, which gives the largest
    mode a that is left the singular value σ = (t/√N)^N. The loss changes by exactly
    (√(σ² + τ) − √λ_a)² − (√τ − √λ_a)² (Frobenius: σ⁴ − 2 λ_a σ²), which is of order t^{2N}, or t^N at
    τ = 0, where the loss has a kink.

    Chosen on the host. Raises `InvalidOption` like `layers`, and at a minimum.
    """
    origin = layers(target, index_set, widths, tau=tau, loss=loss)
    values = np.asarray(target.eigenvalues, dtype=np.float64)
    inside = [int(each) for each in index_set]
    outside = [each for each in np.flatnonzero(values > tau).tolist() if each not in inside]
    fits_more = bool(outside) and len(inside) < min(widths)
    turned = _steepest_turn(values, inside, outside, len(widths) - 1, tau, loss)
    takes = "a critical point from which the loss goes down"
    check(turned is not None or fits_more, "index_set", f"{sorted(inside)}, a minimum", takes)
    changes = [jnp.zeros_like(layer) for layer in origin]
    mode, column = (outside[0], len(inside)) if turned is None else turned
    changes[-1] = changes[-1].at[:, column].set(_eigenvectors(target, (mode,))[:, 0])
    if turned is None:
        changes[:-1] = [each.at[column, column].set(1) for each in changes[:-1]]
        changes = [each / len(changes) ** 0.5 for each in changes]
    return tuple(changes)


def _steepest_turn(
    values: np.ndarray, inside: list[int], outside: list[int], depth: int, tau: float, loss: LossName
) -> tuple[int, int] | None:
    """The mode outside and the column inside whose pair has the most negative curvature, if any has."""
    if not inside or not outside:
        return None
    new, old = values[outside][:, None], values[inside][None, :]
    scale = 4 if loss == "frobenius" else 2 / (old + np.sqrt(new * tau))
    curvatures = (old - tau) ** ((depth - 1) / depth) * scale * (old - new)
    best, column = np.unravel_index(np.argmin(curvatures), curvatures.shape)
    return (outside[int(best)], int(column)) if curvatures[best, column] < 0 else None


def _eigenvectors(target: Target, index_set: IndexSet) -> Float[Array, "n size"]:
    """Ω_J."""
    basis = target.eigenvectors
    whole = jnp.eye(target.dimension, dtype=target.eigenvalues.dtype) if basis is None else jnp.asarray(basis)
    return whole[:, jnp.asarray(index_set, dtype=int)]


def _check_widths(dimension: int, widths: Widths) -> None:
    sound = len(widths) >= 2 and min(widths) >= 1 and widths[-1] == dimension
    check(sound, "widths", list(widths), f"two or more integers from 1, the last the dimension {dimension}")


# --- the nearest one ------------------------------------------------------------------------------


def nearest(
    generator: EndToEnd,
    target: Target,
    rank: int,
    *,
    tau: float = 0.0,
    loss: LossName = "bures_wasserstein",
    most: int = 10_000,
) -> Nearest:
    """The critical point nearest to a generator W, shape (n, m), over index sets and rotations.

    With A = ΩᵀW the squared distance to those of J is the orthogonal Procrustes minimum
    ‖W‖² + Σ_J s_l² − 2 ‖S_J A_J‖_*, and at least ‖W‖² + Σ_J (s_l² − 2 s_l ‖A_l‖). The index sets are
    looked at in increasing order of this bound, until it exceeds the smallest distance found: near a
    critical point after one or a few. At most `most` decompositions of (|J|, m) matrices, on the host
    in float64. With repeated eigenvalues only the eigenvectors of `target` are looked at: the distance
    to the whole family may be smaller.

    Raises `InvalidOption` like `critical_points`, for a rank above min(n, m), for a generator that is
    not finite or has another n, and for `most` below 1.
    """
    landscape = _landscape(target.eigenvalues, rank, tau, loss)
    check(isinstance(most, WHOLE) and most >= 1, "most", most, "an integer from 1")
    modes = _in_eigenbasis(generator, target)
    check(rank <= min(modes.shape), "rank", rank, f"an integer from 1 to min(n, m) = {min(modes.shape)}")
    singular = np.sqrt(landscape.eigenvalues[: landscape.learnable] - landscape.level)
    gains = singular * (singular - 2 * np.linalg.norm(modes[: landscape.learnable], axis=1))
    order = np.argsort(gains, kind="stable")
    best, size = Nearest((), np.inf, True), np.sum(modes**2)
    for looked, (gain, places) in enumerate(subsets.by_sum(gains[order].tolist(), landscape.sizes)):
        if size + gain >= best.distance**2:
            break
        if looked == most:
            return best._replace(certified=False)
        index_set = np.sort(order[list(places)])
        distance = _procrustes(modes, index_set, singular[index_set])
        if distance < best.distance:
            best = Nearest(tuple(index_set.tolist()), distance, True)
    return best


def _in_eigenbasis(generator: EndToEnd, target: Target) -> np.ndarray:
    """ΩᵀW in float64, checked."""
    given = finite("generator", real_array("generator", generator), np.inf)
    fits = given.ndim == 2 and given.shape[0] == target.dimension
    check(fits, "generator", f"shape {given.shape}", f"shape ({target.dimension}, m)")
    basis = target.eigenvectors
    return given if basis is None else np.asarray(basis, dtype=np.float64).T @ given


def _procrustes(modes: np.ndarray, index_set: np.ndarray, singular: np.ndarray) -> float:
    """min_Q ‖A − S Qᵀ‖_F, S in the rows of J: by the polar factor, where nothing cancels."""
    left, _, right = np.linalg.svd(singular[:, None] * modes[index_set], full_matrices=False)
    rest = modes.copy()
    rest[index_set] -= singular[:, None] * (left @ right)
    return float(np.linalg.norm(rest))
