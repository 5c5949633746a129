"""Losses between the generated Gaussian N(0, W Wᵀ) and the target N(0, Σ₀), in function space.

A loss is a `Loss`: a tuple of pure functions of the generator W (n, m) and a `Target`. It depends
on W only through W Wᵀ. Inside, everything happens in the eigenbasis of the target, where the root
of Σ₀ is the vector r = √λ (docs/theory.md §1); a target without eigenvectors already is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bwdln import networks, polar
from bwdln.errors import check
from bwdln.linalg import safe_divide, safe_sqrt, squared_distance, squared_norm
from bwdln.polar import bordered, inverse_root_action, nuclear_norm, polar_factor
from bwdln.registry import Registry
from bwdln.targets import Target
from bwdln.types import Array, Covariance, EndToEnd, Scalar, Spectrum, Weights

#: Name -> function (*, options) -> Loss.
LOSSES = Registry("loss")


class Path(NamedTuple):
    """The gradients at generators along a path, each from what is known of the last one.

    `start(W, target) -> known`: what to go on with, whatever it is.
    `gradient(W, target, known) -> (∇L(W), known, anew)`: the gradient as `Loss.gradient` has it, what is
    known then, and whether it was computed anew, because W was too far from the last one.
    `of`: that `Loss.gradient`. In a loss with another one, derived from this loss, the path is not used.
    """

    start: Callable[[EndToEnd, Target], Any]
    gradient: Callable[[EndToEnd, Target, Any], tuple[EndToEnd, Any, Array]]
    of: Callable[[EndToEnd, Target], EndToEnd]


class Loss(NamedTuple):
    """A loss of W Wᵀ against a target, all functions pure, in data coordinates, traceable.

    `value(W, target)`: the loss. Differentiable by `jax.grad` and `jax.hessian`.
    `gradient(W, target)`: ∇L(W), shape (n, m).
    `value_and_gradient(W, target)`: both.
    `gap(W, target, rank)`: value minus the minimum over generators of that rank (a static integer,
    at most min(n, m)), as a sum of non-negative terms: never negative, no cancellation. W has at
    most that rank; singular values beyond it count as the rounding of zeros.
    `minimum(target, rank)`: the smallest value at that rank.
    `minimizer(target, rank)`: the covariance W Wᵀ that attains it, shape (n, n); it has the
    eigenvectors of the target.
    `perturbation`: the multiple of the identity that the loss adds to W Wᵀ, τ in our notation.
    `path`: the gradient where W moves little from one to the next, as in descent; None: as anywhere.
    """

    value: Callable[[EndToEnd, Target], Scalar]
    gradient: Callable[[EndToEnd, Target], EndToEnd]
    value_and_gradient: Callable[[EndToEnd, Target], tuple[Scalar, EndToEnd]]
    gap: Callable[[EndToEnd, Target, int], Scalar]
    minimum: Callable[[Target, int], Scalar]
    minimizer: Callable[[Target, int], Covariance]
    perturbation: Scalar = 0.0
    path: Path | None = None


def deep_value(loss: Loss, weights: Weights, target: Target) -> Scalar:
    """The loss of the network's product, L(W_N ⋯ W_1): differentiable in the layers (§2)."""
    return loss.value(networks.end_to_end(weights), target)


def layer_gradients(loss: Loss, weights: networks.Packed, target: Target) -> networks.Packed:
    """∂L(W_N ⋯ W_1)/∂W_j for all layers, by prefix and suffix products, one pass each way (§2)."""
    return networks.pull_back(weights, lambda generator: loss.gradient(generator, target))


class LayerGradients(NamedTuple):
    """The gradients of a loss in all layers: those at given weights, or along a path of weights."""

    loss: Loss
    target: Target

    @property
    def path(self) -> Path | None:
        """The path of the loss, if it is one of its gradient."""
        path = self.loss.path
        return path if path is not None and path.of is self.loss.gradient else None

    def __call__(self, weights: networks.Packed) -> networks.Packed:
        """`layer_gradients` at the weights."""
        return layer_gradients(self.loss, weights, self.target)

    def start(self, weights: networks.Packed) -> Any:
        """What `follow` needs to go on from weights; nothing for a loss without a `path`."""
        if (path := self.path) is None:
            return ()
        return networks.pull_back_with(weights, lambda each: (each, path.start(each, self.target)))[1]

    def follow(self, weights: networks.Packed, known: Any) -> tuple[networks.Packed, Any, Array]:
        """The gradients at weights close to the last ones, what is known then, and whether it is all new."""
        if (path := self.path) is None:
            return self(weights), known, jnp.asarray(False)

        def gradient(generator: EndToEnd) -> tuple[EndToEnd, tuple[Any, Array]]:
            found, after, anew = path.gradient(generator, self.target, known)
            return found, (after, anew)

        gradients, (after, anew) = networks.pull_back_with(weights, gradient)
        return gradients, after, anew


# --- Bures-Wasserstein ----------------------------------------------------------------------------


Kernel: TypeAlias = Literal["auto", "exact", "tracked", "products"]


def automatic_kernel() -> Kernel:
    """How gradients are computed unless told: see `bures_wasserstein`."""
    return "tracked" if jax.default_backend() == "cpu" else "products"


@LOSSES.register("bures_wasserstein")
def bures_wasserstein(tau: float = 0.0, *, kernel: Kernel = "auto") -> Loss:
    """Squared Bures-Wasserstein distance between W Wᵀ + τ I and Σ₀ (docs/theory.md §2).

    `tau` ≥ 0 is the perturbation τ; it may be traced, and 0 is allowed there too. When it is
    the plain number 0 the work shrinks to the k × k problem. At τ = 0 the loss has a kink where
    Σ₀^{1/2} W loses rank; `gradient` is the element of least norm there.

    `kernel` is how gradients are computed, to the same digits (docs/performance.md): `exact`, by a
    decomposition; `tracked`, along a path by matrix products from the last one (`polar.follow`);
    `products`, by matrix products alone (`polar.by_products`). A decomposition takes the place of the
    last two where they are not accurate. `auto` is `tracked` on a CPU, where the decomposition of a
    single matrix is at hand, but `exact` for thin generators (`polar.is_thin`), and `products` on
    accelerators, where decompositions of a batch are slow. For τ > 0 all take the same way for thin ones.

    Raises `InvalidOption` for a plain number that is negative, infinite or not a number.
    """
    plain = isinstance(tau, int | float | np.number)
    check(not plain or (tau >= 0 and np.isfinite(tau)), "tau", tau, "a finite number from 0")

    automatic = kernel == "auto"
    kernel = automatic_kernel() if automatic else kernel
    check(kernel in ("exact", "tracked", "products"), "kernel", kernel, "auto, exact, tracked or products")
    by_products = kernel == "products"
    unperturbed = plain and tau == 0
    # Of thin generators, whose gradients are faster anywhere than along a path.
    thin_stand_alone = not unperturbed or (automatic and kernel == "tracked")

    def shift(like: Array) -> Array | None:
        return None if unperturbed else jnp.asarray(tau, like.dtype)

    def stands_alone(generator: EndToEnd) -> bool:
        return thin_stand_alone and polar.is_thin(*generator.shape)

    def value(generator: EndToEnd, target: Target) -> Scalar:
        return _bures_value(target.to_eigenbasis(generator), target.eigenvalues, shift(generator))

    def gradient(generator: EndToEnd, target: Target) -> EndToEnd:
        modes = target.to_eigenbasis(generator)
        found = _bures_gradient(modes, target.eigenvalues, shift(generator), by_products)
        return target.from_eigenbasis(found)

    def start(generator: EndToEnd, target: Target) -> Any:
        if by_products or stands_alone(generator):
            return ()
        modes = target.to_eigenbasis(generator)
        return polar.track(*_followed(modes, target.eigenvalues, shift(generator))[1:])

    def along(generator: EndToEnd, target: Target, known: Any) -> tuple[EndToEnd, Any, Array]:
        if stands_alone(generator):
            return gradient(generator, target), known, jnp.asarray(False)
        modes = target.to_eigenbasis(generator)
        found, known, anew = _bures_along(modes, target.eigenvalues, shift(generator), known, by_products)
        return target.from_eigenbasis(found), known, anew

    def gap(generator: EndToEnd, target: Target, rank: int) -> Scalar:
        modes = target.to_eigenbasis(generator)
        return _bures_gap(modes, target.eigenvalues, shift(generator), rank)

    def minimum(target: Target, rank: int) -> Scalar:
        return _bures_minimum(target.eigenvalues, shift(target.eigenvalues), rank)

    def minimizer(target: Target, rank: int) -> Covariance:
        learnt = _leading(target.eigenvalues, rank)
        return _from_spectrum(target, jnp.maximum(learnt - tau, 0))

    def both(generator: EndToEnd, target: Target) -> tuple[Scalar, EndToEnd]:
        modes = target.to_eigenbasis(generator)
        full = plain and tau > 0  # then no generator is of too low rank
        value, slope = _bures_both(modes, target.eigenvalues, shift(generator), by_products, full)
        return value, target.from_eigenbasis(slope)

    path = None if kernel == "exact" else Path(start, along, gradient)
    return Loss(value, gradient, both, gap, minimum, minimizer, tau, path)


def _bures_gradient(
    modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None, by_products: bool = False
) -> EndToEnd:
    """∇L = 2 (W − T W), with the optimal transport map T and T W = R M^{-1/2} R W, M = R Σ_τ R (§2)."""
    root = safe_sqrt(eigenvalues)[:, None]
    overlap = root * modes
    if tau is None:  # the polar factor of R W: a k × k problem
        factor = polar_factor(overlap, by_products)
    else:
        factor = inverse_root_action(overlap, tau * eigenvalues, by_products)
    return 2 * (modes - root * factor)


def _bures_both(
    modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None, by_products: bool, full: bool
) -> tuple[Scalar, EndToEnd]:
    """The loss and ∇L by one polar factor Q, as ‖[W, √τ I] − R Q‖² + ‖R − Q Qᵀ R‖² and 2 (W − R Q₁) (§9).

    The second square is what a generator of low rank cannot reach: 0 for τ > 0, and left out where it is
    `full`. Nothing cancels, but what counts as zero in Q adds nothing to the first square.
    """
    root, whole = safe_sqrt(eigenvalues)[:, None], modes
    if tau is not None:
        whole = jnp.hstack([modes, safe_sqrt(tau) * jnp.eye(len(modes), dtype=modes.dtype)])
    factor = polar_factor(root * whole, by_products)
    residual = whole - root * factor
    value = squared_norm(residual)
    if not full:
        value += squared_norm(jnp.diag(root[:, 0]) - factor @ (root * factor).T)
    return value, 2 * residual[:, : modes.shape[1]]


def _bures_along(
    modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None, known: Any, by_products: bool
) -> tuple[EndToEnd, Any, Array]:
    """`_bures_gradient` from what is known of the last W, or by products, which need nothing; see `Path`."""
    transposed, matrix, diagonal = _followed(modes, eigenvalues, tau)
    if by_products:
        whole = matrix if diagonal is None else bordered(matrix.T, diagonal).T
        factor, anew = polar.multiplied(whole)
        factor = factor[: len(matrix)]
    else:
        factor, known, anew = polar.follow(matrix, known, diagonal)
    return 2 * (modes - safe_sqrt(eigenvalues)[:, None] * (factor.T if transposed else factor)), known, anew


def _followed(modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None) -> tuple[bool, Array, Array | None]:
    """What `polar.follow` takes for W: whether R W is transposed, it, and the diagonal below it.

    It is transposed where it has no more rows than columns: there the directions that a singular target
    does not have are the same all along the path.
    """
    overlap = safe_sqrt(eigenvalues)[:, None] * modes
    transposed = tau is not None or modes.shape[0] <= modes.shape[1]
    return transposed, overlap.T if transposed else overlap, None if tau is None else tau * eigenvalues


@jax.custom_jvp
def _bures_value(modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None) -> Scalar:
    """The loss in the eigenbasis as minimum + gap, which does not cancel near the optimum."""
    rank = min(modes.shape)
    return _bures_minimum(eigenvalues, tau, rank) + _bures_gap(modes, eigenvalues, tau, rank)


@_bures_value.defjvp
def _bures_value_jvp(
    primals: tuple[Array, Array, Array | None], tangents: tuple[Array, Array, Array | None]
) -> tuple[Array, Array]:
    """The derivative is that of the usual form, whose nuclear norm has the rule of §9."""
    return _bures_value(*primals), jax.jvp(_usual_form, primals, tangents)[1]


def _usual_form(modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None) -> Scalar:
    """tr Σ_τ + tr Σ₀ − 2 tr (R Σ_τ R)^{1/2}: right, but it loses all digits near the optimum."""
    overlap, traces = safe_sqrt(eigenvalues)[:, None] * modes, jnp.sum(modes**2) + jnp.sum(eigenvalues)
    if tau is None:
        return traces - 2 * nuclear_norm(overlap)
    return traces + len(modes) * tau - 2 * nuclear_norm(bordered(overlap, tau * eigenvalues))


def _bures_minimum(eigenvalues: Spectrum, tau: Array | None, rank: int) -> Scalar:
    """Σ (√λ_i − √τ)² over the modes that are not learnt (§3)."""
    level = jnp.zeros((), eigenvalues.dtype) if tau is None else tau
    learnt = _leading(eigenvalues, rank) > level
    left_over = (safe_sqrt(eigenvalues) - safe_sqrt(level)) ** 2
    return jnp.sum(jnp.where(learnt, 0, left_over))


def _bures_gap(modes: EndToEnd, eigenvalues: Spectrum, tau: Array | None, rank: int) -> Scalar:
    """The gap as the sum of non-negative terms of §9.

    `left` (U) and `nearest` (Z) have orthonormal columns; `scale` (μ) are the roots of the eigenvalues
    of W Wᵀ + τ I. At τ = 0 all but the first `rank` of them vanish, and so many columns suffice.
    """
    left, singular = _left_singular(modes, rank, complete=tau is not None)
    root, count = safe_sqrt(eigenvalues), left.shape[1]
    scale = singular if tau is None else jnp.sqrt(singular**2 + tau)
    outer, _, inner = jnp.linalg.svd(root[:, None] * left * scale[None, :count], full_matrices=False)
    nearest = outer @ inner
    distances = jnp.sum(root[:, None] * scale[None, :count] * (left - nearest) ** 2)
    root_drops = safe_divide(_drops(eigenvalues), _sums(root))
    scale_drops = safe_divide(_drops(singular) * _sums(singular), _sums(scale))
    deficits = (_ordering_deficit(each, root_drops, scale_drops) for each in (left, nearest))
    return _mode_gaps(singular, scale, root, tau, rank) + distances + sum(deficits)


def _mode_gaps(singular: Array, scale: Array, root: Array, tau: Array | None, rank: int) -> Scalar:
    """Σ g_i over the first `rank` modes: (μ − r)² where λ > τ, else what s > 0 costs there."""
    known = (scale - root) ** 2
    if tau is not None:
        floor = safe_sqrt(tau)
        unlearnt = safe_divide(singular**2 * (scale + floor - 2 * root), scale + floor)
        known = jnp.where(root > floor, known, unlearnt)
    return jnp.sum(known[:rank])


# --- Frobenius ------------------------------------------------------------------------------------


@LOSSES.register("frobenius")
def frobenius() -> Loss:
    """The comparison of the paper, ‖W Wᵀ − Σ₀‖_F² (docs/theory.md §2). It takes no τ."""

    def value(generator: EndToEnd, target: Target) -> Scalar:
        return squared_distance(target.to_eigenbasis(generator), target.eigenvalues)

    def gradient(generator: EndToEnd, target: Target) -> EndToEnd:
        modes = target.to_eigenbasis(generator)
        tall = modes.shape[0] >= modes.shape[1]
        cubic = modes @ (modes.T @ modes) if tall else (modes @ modes.T) @ modes
        return target.from_eigenbasis(4 * (cubic - target.eigenvalues[:, None] * modes))

    def gap(generator: EndToEnd, target: Target, rank: int) -> Scalar:
        left, singular = _left_singular(target.to_eigenbasis(generator), rank)
        variances, eigenvalues = singular**2, target.eigenvalues
        learnt = jnp.sum((variances - eigenvalues)[:rank] ** 2)
        variance_drops = _drops(singular) * _sums(singular)
        return learnt + 2 * _ordering_deficit(left, _drops(eigenvalues), variance_drops)

    def minimum(target: Target, rank: int) -> Scalar:
        return jnp.sum(target.eigenvalues[rank:] ** 2)

    def minimizer(target: Target, rank: int) -> Covariance:
        return _from_spectrum(target, _leading(target.eigenvalues, rank))

    return Loss(value, gradient, _both(value, gradient), gap, minimum, minimizer)


# --- shared ---------------------------------------------------------------------------------------


def _both(
    value: Callable[[EndToEnd, Target], Scalar], gradient: Callable[[EndToEnd, Target], EndToEnd]
) -> Callable[[EndToEnd, Target], tuple[Scalar, EndToEnd]]:
    return lambda generator, target: (value(generator, target), gradient(generator, target))


def _leading(eigenvalues: Spectrum, rank: int) -> Spectrum:
    """The first `rank` eigenvalues, zeros after them."""
    return jnp.where(jnp.arange(len(eigenvalues)) < rank, eigenvalues, 0)


def _from_spectrum(target: Target, spectrum: Spectrum) -> Covariance:
    """Ω diag(spectrum) Ωᵀ."""
    if target.eigenvectors is None:
        return jnp.diag(spectrum)
    half = target.from_eigenbasis(jnp.diag(safe_sqrt(spectrum)))
    return half @ half.T


def _left_singular(modes: EndToEnd, rank: int, *, complete: bool = False) -> tuple[Array, Array]:
    """The first `rank` left singular vectors, or a complete basis, and n singular values.

    Shapes (n, rank) or (n, n), and (n,); the values beyond the first `rank` are zero. Raises
    `InvalidOption` for a rank that a generator of this shape cannot have.
    """
    size, most = modes.shape[0], min(modes.shape)
    check(1 <= rank <= most, "rank", rank, f"an integer from 1 to min(n, m) = {most}")
    left, singular, _ = jnp.linalg.svd(modes, full_matrices=complete and most < size)
    return left if complete else left[:, :rank], jnp.pad(singular[:rank], (0, size - rank))


def _ordering_deficit(
    basis: Float[Array, "n c"], first_drops: Float[Array, "n-1"], second_drops: Float[Array, "n-1"]
) -> Scalar:
    """h(X) of §9: Σ x_i y_i − Σ x_i y_j X_ij² for descending x, y ≥ 0 and X orthogonal.

    Summed by parts over the drops x_p − x_{p+1} and y_q − y_{q+1}, each pair times the mass of X²
    on the wrong sides of the corner (p, q): non-negative terms only. The caller computes the drops,
    because they decide the accuracy where neighbors nearly coincide. Where y vanishes beyond the
    first c columns of X, these are enough.
    """
    size, count = basis.shape
    squares = basis**2
    # The mass of row i beyond the columns given: the squared distance of e_i from their span.
    outside = jnp.eye(size, count, dtype=basis.dtype) - basis @ basis[:count].T
    beyond = jnp.pad(jnp.sum(outside**2, axis=0), (0, size - count))[:, None]
    right = _sum_after(squares, axis=1) + (beyond if count < size else 0)
    upper_right = jnp.cumsum(right, axis=0)
    lower_left = jnp.cumsum(_sum_after(squares, axis=0), axis=1)
    rows, columns = jnp.arange(size)[:, None], jnp.arange(count)[None, :]
    misplaced = jnp.where(rows <= columns, upper_right, lower_left)
    corners = min(count, size - 1)
    return first_drops @ misplaced[:-1, :corners] @ second_drops[:corners]


def _sum_after(values: Array, axis: int) -> Array:
    """At each index the sum of the entries behind it along `axis`, summed from the far end."""
    reverse = jnp.flip(jnp.cumsum(jnp.flip(values, axis), axis=axis), axis)
    return jnp.roll(reverse, -1, axis).at[(slice(None),) * axis + (-1,)].set(0)


def _drops(values: Float[Array, "n"]) -> Float[Array, "n-1"]:
    return values[:-1] - values[1:]


def _sums(values: Float[Array, "n"]) -> Float[Array, "n-1"]:
    return values[:-1] + values[1:]
