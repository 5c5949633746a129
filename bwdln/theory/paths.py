"""The loss along straight paths between two critical points, in closed form.

In function space the path is (1 − t) W_J + t W_J'; in parameter space every balanced layer of depth
N moves on its straight line, and depth 1 is function space. The two index sets have equal size.
Modes of both keep their latent dimension and their value; the others are matched in the order of
their eigenvalues, largest with largest, and each pair a → b shares one latent dimension.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bwdln.errors import check
from bwdln.initializations.base import known
from bwdln.linalg import safe_sqrt
from bwdln.theory.checks import LossName, check_depth, check_index_set, check_loss, check_spectrum
from bwdln.types import Array, Scalar, Spectrum


def along(
    eigenvalues: Spectrum,
    first: tuple[int, ...],
    second: tuple[int, ...],
    places: Float[Array, " places"],
    *,
    depth: Scalar = 1.0,
    tau: Scalar = 0.0,
    loss: LossName = "bures_wasserstein",
) -> Float[Array, " places"]:
    """The loss at places t of the path from one critical point (t = 0) to another (t = 1).

    A pair a → b has one column, with the entries x = u^{N−1} (1 − t) s_a^{1/N} along a and
    y = u^{N−1} t s_b^{1/N} along b, where u = (1 − t) s_a^{1/N} + t s_b^{1/N}. The loss is a sum over
    these 2 × 2 blocks and the modes that neither point has learnt. It is accurate to the rounding of
    the sum of the eigenvalues (of their squares for Frobenius).

    Args:
        eigenvalues: of the target, shape (n,), descending; with repeated ones the path is that
            between the points with the target's own eigenvectors.
        first: the index set J of the start.
        second: the index set J' of the end, as large as the first.
        places: t from 0 to 1, shape (places,).
        depth: N ≥ 1, any real number; 1 is function space.
        tau: τ ≥ 0; 0 for Frobenius.
        loss: "bures_wasserstein" or "frobenius".

    Returns the loss, shape (places,). Eigenvalues, places, depth and τ may be traced; no
    decomposition is computed, so lanes by `jax.vmap` are safe anywhere.

    Raises `InvalidOption` for what is known and not taken.
    """
    check_loss(loss, tau)
    check_depth(depth)
    check_spectrum(eigenvalues)
    for index_set in (first, second):
        check_index_set(eigenvalues, index_set, tau=tau, loss=loss)
    takes = f"{len(first)}, as many as the first"
    check(len(second) == len(first), "second", f"{len(second)} positions", takes)
    check(np.ndim(places) == 1, "places", f"shape {np.shape(places)}", "one dimension, (places,)")
    if known(places):
        inside = bool(np.all((np.asarray(places) >= 0) & (np.asarray(places) <= 1)))
        check(inside, "places", "numbers outside", "numbers from 0 to 1")

    eigenvalues, places = jnp.asarray(eigenvalues), jnp.asarray(places)[:, None]
    start, end = eigenvalues[_only(first, second)], eigenvalues[_only(second, first)]
    x, y = _entries(safe_sqrt(start - tau)[None, :], safe_sqrt(end - tau)[None, :], places, depth)
    rest = eigenvalues[_only(range(len(eigenvalues)), (*first, *second))]
    if loss == "frobenius":
        blocks = _frobenius_block(x, y, start[None, :], end[None, :])
        return jnp.sum(blocks, axis=1) + jnp.sum(rest**2)
    blocks = _bures_block(x, y, start[None, :], end[None, :], tau)
    return jnp.sum(blocks, axis=1) + jnp.sum((safe_sqrt(rest) - safe_sqrt(jnp.asarray(tau))) ** 2)


def _only(these: tuple[int, ...] | range, others: tuple[int, ...]) -> Array:
    """The positions that only the first set has, ascending."""
    return np.array(sorted({int(each) for each in these} - {int(each) for each in others}), dtype=int)


def _entries(start: Array, end: Array, places: Array, depth: Scalar) -> tuple[Array, Array]:
    """The entries of each pair's column along the old and along the new mode, (places, pairs)."""
    old, new = (1 - places) * start ** (1 / depth), places * end ** (1 / depth)
    others = (old + new) ** (depth - 1)
    return others * old, others * new


def _bures_block(x: Array, y: Array, first: Array, second: Array, tau: Scalar) -> Array:
    """The loss of a column (x, y) on two modes: tr C + tr Λ − 2 tr M^{1/2}, C = (x, y)(x, y)ᵀ + τ I.

    M = Λ^{1/2} C Λ^{1/2} is 2 × 2: tr M^{1/2} = √(tr M + 2 √det M).
    """
    squares = x**2 + y**2
    determinant = first * second * tau * (tau + squares)
    trace = first * (x**2 + tau) + second * (y**2 + tau)
    overlap = jnp.sqrt(trace + 2 * safe_sqrt(determinant))
    return squares + 2 * tau + first + second - 2 * overlap


def _frobenius_block(x: Array, y: Array, first: Array, second: Array) -> Array:
    """‖(x, y)(x, y)ᵀ − Λ‖_F² on two modes."""
    return (x**2 - first) ** 2 + (y**2 - second) ** 2 + 2 * (x * y) ** 2
