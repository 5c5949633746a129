"""The numerical guards and matrix functions everything else is built from.

Importing it sets JAX's default for matrix products to full precision, unless the user chose one:
TPUs and recent GPUs otherwise round float32 products to about three digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Float

from bwdln.types import Array, Scalar

if jax.config.jax_default_matmul_precision is None:  # type: ignore[attr-defined]
    jax.config.update("jax_default_matmul_precision", "highest")

Tree = TypeVar("Tree")

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


def squared_norm(matrix: Float[Array, "*batch p q"]) -> Float[Array, "*batch"]:
    """‖A‖_F².

    The columns are summed first and kept apart, side by side in the registers of a CPU: as one sum, XLA adds
    number after number there, which takes several times as long.
    """
    return jnp.sum(lax.optimization_barrier(jnp.sum(matrix**2, axis=-2)), axis=-1)


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
    fast: Callable[..., tuple[Tree, Array]], exact: Callable[..., Tree]
) -> Callable[..., Tree]:
    """The function of batches that `fast` computes where it is accurate, and `exact` elsewhere.

    Both take arrays with any leading batch dimensions and return the same tree of arrays with these; `fast`
    also says which members it got right. Exact values are computed only if some member needs one and
    used only for those that do, so a lane's result does not depend on its neighbors. On a CPU no others are
    computed, and one after the other (see `program`).
    """

    @custom_vmap
    def evaluate(*arguments: Array) -> Tree:
        values, accurate = fast(*arguments)
        replaced = functools.partial(_replaced, exact, arguments, values, accurate)
        result: Tree = lax.cond(jnp.all(accurate), lambda: values, replaced)
        return result

    @evaluate.def_vmap
    def evaluate_batch(size: int, batched: list[bool], *arguments: Array) -> tuple[Tree, Tree]:
        # A batch of batches is a batch: the decision stays one for all lanes under nested `vmap`.
        lanes = (
            each if is_batched else jnp.broadcast_to(each, (size, *each.shape))
            for each, is_batched in zip(arguments, batched, strict=True)
        )
        values = evaluate(*lanes)
        return values, jax.tree.map(lambda _: True, values)

    return evaluate


def select_members(members: Array, taken: Tree, otherwise: Tree) -> Tree:
    """`taken` for those members of a batch, `otherwise` for the others, leaf by leaf."""

    def chosen(value: Array, other: Array) -> Array:
        return jnp.where(members.reshape(members.shape + (1,) * (value.ndim - members.ndim)), value, other)

    result: Tree = jax.tree.map(chosen, taken, otherwise)
    return result


def _replaced(
    exact: Callable[..., Tree], arguments: tuple[Array, ...], values: Tree, accurate: Array
) -> Tree:
    """The values, with exact ones for the members that are not accurate."""
    if accurate.ndim == 0:
        return exact(*arguments)
    if jax.default_backend() != "cpu":
        return select_members(accurate, values, exact(*arguments))

    def member(fine: Array, value: Tree, own: tuple[Array, ...]) -> Tree:
        result: Tree = lax.cond(fine, lambda: value, lambda: exact(*own))
        return result

    lanes = jax.tree.map(
        lambda leaf: leaf.reshape(accurate.size, *leaf.shape[accurate.ndim :]), (accurate, values, arguments)
    )
    found = lax.map(lambda lane: member(*lane), lanes)
    result: Tree = jax.tree.map(lambda leaf: leaf.reshape(*accurate.shape, *leaf.shape[1:]), found)
    return result
