"""The table of starts, balanced layers, and what all starts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from bwdln.errors import InvalidOption, check
from bwdln.linalg import numerical_rank, significant
from bwdln.networks import SCAN_FROM, bottleneck
from bwdln.registry import Choice, Registry
from bwdln.types import Array, EndToEnd, PRNGKey, Scalar, Weights, Widths

#: Name -> function (key, widths, target, *, options) -> Weights.
STARTS = Registry("initialization")

#: Draws a matrix of the given numbers of rows and columns: fan-out and fan-in of a layer.
Draw: TypeAlias = Callable[[PRNGKey, int, int], Float[Array, "rows columns"]]

#: Starts that are balanced whatever their options.
ALWAYS_BALANCED = frozenset({"aligned", "close_to_target"})


# --- what is known of a start before it is drawn --------------------------------------------------


def balanced_by_construction(choice: Choice) -> bool | None:
    """Whether the chosen start is balanced, its imbalances rounding at most (docs/theory.md §5).

    True for a start that always is, and for one whose option `balanced` says so; False for one
    whose option `balanced` is false; None where only the weights can tell: for the user's arrays,
    and for a user's start without such an option. A rotated start is as balanced as the one it
    rotates. At depth one every start is balanced.

    Raises `InvalidOption` for a name that is not registered.
    """
    options = STARTS.options(choice.name)
    option = options.get("balanced")
    if choice.name in ALWAYS_BALANCED:
        return True
    if choice.name == "rotated":
        with renamed("start"):
            return balanced_by_construction(choice.option("start", options["start"].default))
    if option is None:
        return None
    value = choice.option("balanced", option.default)
    return value if isinstance(value, bool) else None


@contextmanager
def renamed(option: str) -> Iterator[None]:
    """Name what another start refuses by the option that chose it: `start.scale`."""
    try:
        yield
    except InvalidOption as error:
        name = option + error.option.removeprefix(STARTS.group)
        raise InvalidOption(name, error.got, error.takes) from error


def shortest(widths: Widths) -> Widths:
    """The widths of the smallest network with the same end-to-end starts: (m, n) or (m, k, n).

    A start of ours that is balanced by construction has the same end-to-end matrix for these as for
    `widths`, to rounding. With a bottleneck k of min(m, n) they are those of a single matrix.
    """
    first, narrowest, last = widths[0], bottleneck(widths), widths[-1]
    return (first, last) if narrowest == min(first, last) else (first, narrowest, last)


# --- balanced layers ------------------------------------------------------------------------------


def balanced(end_to_end: EndToEnd, widths: Widths) -> Weights:
    """The balanced layers W_1, …, W_N whose product is the given matrix (docs/theory.md §5).

    With W = U S Vᵀ of shape (n, m), every layer carries S^{1/N}, padded with zeros to its shape
    (d_j, d_{j-1}); the first is multiplied by Vᵀ on the right, the last by U on the left. Singular
    values below the rank threshold become exactly 0, so that no power of 1/N makes them large.

    Raises `InvalidOption` if the shape is not (d_N, d_0) or, where the matrix is known, if its rank
    is larger than the bottleneck k. A traced matrix of rank above k is replaced by its best
    approximation of rank k.
    """
    shape, narrowest = (widths[-1], widths[0]), bottleneck(widths)
    got, takes = f"shape {np.shape(end_to_end)}", f"shape {shape}, by the widths {list(widths)}"
    check(np.shape(end_to_end) == shape, "end_to_end", got, takes)
    if narrowest < min(shape) and known(end_to_end):
        with jax.ensure_compile_time_eval():
            rank = int(numerical_rank(jnp.linalg.svd(end_to_end, compute_uv=False)))
        takes = f"rank at most {narrowest}, the bottleneck of the widths {list(widths)}"
        check(rank <= narrowest, "end_to_end", f"a matrix of rank {rank}", takes)
    return nearest_balanced(jnp.asarray(end_to_end), widths)


def nearest_balanced(end_to_end: EndToEnd, widths: Widths) -> Weights:
    """Balanced layers of the best approximation whose rank the bottleneck allows."""
    if len(widths) == 2:
        return (end_to_end,)
    left, values, right = jnp.linalg.svd(end_to_end, full_matrices=False)
    values = jnp.where(significant(values), values, 0)
    rank = bottleneck(widths)
    return from_factors(left[:, :rank], values[:rank], right[:rank], widths)


def from_factors(
    left: Float[Array, "n k"], values: Float[Array, " k"], right: Float[Array, "k m"], widths: Widths
) -> Weights:
    """Balanced layers of left · diag(values) · right; orthonormal columns and rows, values ≥ 0."""
    depth = len(widths) - 1
    if depth == 1:
        return ((left * values[None, :]) @ right,)
    roots = values ** (1 / depth)
    first = padded(roots[:, None] * right, widths[1], widths[0])
    last = padded(left * roots[None, :], widths[-1], widths[-2])
    hidden = [padded(jnp.diag(roots), *shape) for shape in layer_shapes(widths)[1:-1]]
    return (first, *hidden, last)


def padded(matrix: Array, rows: int, columns: int) -> Array:
    """The matrix in the upper left corner of zeros."""
    return jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


# --- layers from a draw ---------------------------------------------------------------------------


def layers_from(draw: Draw, key: PRNGKey, widths: Widths, on_product: bool) -> Weights:
    """Every layer drawn with a key of its own, or the end-to-end matrix drawn and balanced."""
    if on_product:
        return nearest_balanced(draw(key, widths[-1], widths[0]), widths)
    return drawn_each(draw, key, layer_shapes(widths))


def drawn_each(draw: Draw, key: PRNGKey, shapes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    """A matrix of each shape, drawn with a key of its own."""
    keys = jax.random.split(key, len(shapes))
    drawn: dict[tuple[int, int], Iterator[Array]] = {}
    for shape in dict.fromkeys(shapes):
        own = keys[np.array([each == shape for each in shapes])]
        drawn[shape] = _drawn_alike(draw, own, *shape)
    return tuple(next(drawn[shape]) for shape in shapes)


def _drawn_alike(draw: Draw, keys: Array, rows: int, columns: int) -> Iterator[Array]:
    """A matrix for each key; many of them in a compiled loop, or compile time would grow with depth."""

    def one(key: PRNGKey) -> Array:
        return draw(key, rows, columns)

    return iter(lax.map(one, keys)) if len(keys) >= SCAN_FROM else map(one, keys)


def layer_shapes(widths: Widths) -> list[tuple[int, int]]:
    """The shapes (d_j, d_{j-1}) of the layers, first layer first."""
    return [(rows, columns) for columns, rows in pairwise(widths)]


def known(value: Any) -> bool:
    """Whether a number or array has its value already: not inside a transformation of JAX."""
    return not isinstance(value, jax.core.Tracer)


def check_positive(**options: Scalar) -> None:
    """Refuse options that are not positive, finite numbers."""
    for name, value in options.items():
        if known(value):
            check(0 < value < np.inf, name, value, "a finite number above 0")
