"""Starts with structured layers: orthogonal, the identity, of low rank."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from bwdln.errors import check
from bwdln.initializations.base import STARTS, check_positive, layers_from
from bwdln.networks import bottleneck
from bwdln.targets import Target
from bwdln.types import Array, PRNGKey, Scalar, Weights, Widths


@STARTS.register("orthogonal")
def orthogonal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """`scale` times uniformly distributed matrices with orthonormal rows or columns.

    Where a layer is not square, the shorter of its rows and columns are orthonormal. Balanced, this
    holds for the generator, of which the bottleneck keeps k equal singular values.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(partial(_scaled_orthogonal, scale), key, widths, balanced)


def _scaled_orthogonal(scale: Scalar, key: PRNGKey, rows: int, columns: int) -> Array:
    return scale * jax.random.orthogonal(key, rows, m=columns)


@STARTS.register("identity")
def identity(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """`scale` on the main diagonal and 0 elsewhere: the same weights for every key.

    Layer by layer the generator has k singular values `scale`^N, and where widths are uneven the
    layers are not balanced. Balanced, the k singular values are `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(lambda _, rows, columns: scale * jnp.eye(rows, columns), key, widths, balanced)


@STARTS.register("low_rank")
def low_rank(
    key: PRNGKey,
    widths: Widths,
    target: Target,
    *,
    rank: int = 1,
    scale: float = 1.0,
    balanced: bool = False,
) -> Weights:
    """Layers (or, balanced, a generator) of the given rank r: products A B of normal matrices.

    A has r columns and B has r rows; the entries of A B have mean 0 and variance `scale`² / fan-in.

    Raises `InvalidOption` unless 1 ≤ `rank` ≤ bottleneck and `scale` > 0.
    """
    check_positive(scale=scale)
    narrowest = bottleneck(widths)
    takes = f"an integer from 1 to {narrowest}, the bottleneck of the widths {list(widths)}"
    check(1 <= rank <= narrowest, "rank", rank, takes)

    def draw(key: PRNGKey, rows: int, columns: int) -> Array:
        left, right = jax.random.split(key)
        tall = jax.random.normal(left, (rows, rank))
        return scale / (rank * columns) ** 0.5 * tall @ jax.random.normal(right, (rank, columns))

    return layers_from(draw, key, widths, balanced)
