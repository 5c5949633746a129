"""Starts: the weights a run begins with, in data coordinates, pure in their key.

A start is called as `start(key, widths, target, *, options)` and returns the layers. It is mapped
over keys while widths and target stay known, so options are checked where their numbers are known
and skipped where they are traced.

Most starts draw every layer on its own. With `balanced: true` the same distribution is drawn once,
for the end-to-end matrix of shape (n, m), and the draw is spread evenly over the layers: then all
imbalances vanish (docs/theory.md §5). A draw of higher rank than the bottleneck k is replaced by
its best approximation of rank k first.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from bwdln.arrays import blamed_on, finite, read_array
from bwdln.errors import InvalidOption, check
from bwdln.linalg import numerical_rank, polar_factor, significant
from bwdln.networks import SCAN_FROM, bottleneck
from bwdln.registry import Registry
from bwdln.targets import Target
from bwdln.types import Array, EndToEnd, PRNGKey, Scalar, Spectrum, Weights, Widths

STARTS = Registry("initialization")

#: Draws a matrix of the given numbers of rows and columns: fan-out and fan-in of a layer.
Draw: TypeAlias = Callable[[PRNGKey, int, int], Float[Array, "rows columns"]]

#: How often `close_to_target` halves its scale: enough to reach rounding from any scale it takes.
HALVINGS = 64

#: Largest entry of a user's weights: the square of a product of a few is far from overflow.
LARGEST_ENTRY = 1e75


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
    if narrowest < min(shape) and _known(end_to_end):
        with jax.ensure_compile_time_eval():
            rank = int(numerical_rank(jnp.linalg.svd(end_to_end, compute_uv=False)))
        takes = f"rank at most {narrowest}, the bottleneck of the widths {list(widths)}"
        check(rank <= narrowest, "end_to_end", f"a matrix of rank {rank}", takes)
    return _nearest_balanced(jnp.asarray(end_to_end), widths)


def _nearest_balanced(end_to_end: EndToEnd, widths: Widths) -> Weights:
    """Balanced layers of the best approximation whose rank the bottleneck allows."""
    if len(widths) == 2:
        return (end_to_end,)
    left, values, right = jnp.linalg.svd(end_to_end, full_matrices=False)
    values = jnp.where(significant(values), values, 0)
    rank = bottleneck(widths)
    return _from_factors(left[:, :rank], values[:rank], right[:rank], widths)


def _from_factors(
    left: Float[Array, "n k"], values: Float[Array, " k"], right: Float[Array, "k m"], widths: Widths
) -> Weights:
    """Balanced layers of left · diag(values) · right; orthonormal columns and rows, values ≥ 0."""
    depth = len(widths) - 1
    if depth == 1:
        return ((left * values[None, :]) @ right,)
    roots = values ** (1 / depth)
    first = _padded(roots[:, None] * right, widths[1], widths[0])
    last = _padded(left * roots[None, :], widths[-1], widths[-2])
    hidden = [_padded(jnp.diag(roots), *shape) for shape in _shapes(widths)[1:-1]]
    return (first, *hidden, last)


def _padded(matrix: Array, rows: int, columns: int) -> Array:
    """The matrix in the upper left corner of zeros."""
    return jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _start(draw: Draw, key: PRNGKey, widths: Widths, on_product: bool) -> Weights:
    """Every layer drawn with a key of its own, or the end-to-end matrix drawn and balanced."""
    if on_product:
        return _nearest_balanced(draw(key, widths[-1], widths[0]), widths)
    keys, shapes = jax.random.split(key, len(widths) - 1), _shapes(widths)
    drawn: dict[tuple[int, int], Iterator[Array]] = {}
    for shape in dict.fromkeys(shapes):
        own = keys[np.array([each == shape for each in shapes])]
        drawn[shape] = _drawn_layers(draw, own, *shape)
    return tuple(next(drawn[shape]) for shape in shapes)


def _drawn_layers(draw: Draw, keys: Array, rows: int, columns: int) -> Iterator[Array]:
    """A layer for each key; many of them in a compiled loop, or compile time would grow with depth."""

    def one(key: PRNGKey) -> Array:
        return draw(key, rows, columns)

    return iter(lax.map(one, keys)) if len(keys) >= SCAN_FROM else map(one, keys)


def _shapes(widths: Widths) -> list[tuple[int, int]]:
    """The shapes (d_j, d_{j-1}) of the layers, first layer first."""
    return [(rows, columns) for columns, rows in pairwise(widths)]


def _known(value: Any) -> bool:
    """Whether a number or array has its value already: not inside a transformation of JAX."""
    return not isinstance(value, jax.core.Tracer)


def _positive(**options: Scalar) -> None:
    """Refuse options that are not positive, finite numbers."""
    for name, value in options.items():
        if _known(value):
            check(0 < value < np.inf, name, value, "a finite number above 0")


# --- independent entries --------------------------------------------------------------------------


def _normal(std: Callable[[int, int], Scalar]) -> Draw:
    """Normal entries of mean 0; the standard deviation is a function of fan-out and fan-in."""
    return lambda key, rows, columns: std(rows, columns) * jax.random.normal(key, (rows, columns))


def _uniform(bound: Callable[[int, int], Scalar]) -> Draw:
    """Entries uniform in ±bound; the bound is a function of fan-out and fan-in."""

    def draw(key: PRNGKey, rows: int, columns: int) -> Array:
        return bound(rows, columns) * jax.random.uniform(key, (rows, columns), minval=-1)

    return draw


@STARTS.register("normal")
def normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.1, balanced: bool = False
) -> Weights:
    """Independent normal entries of mean 0 and standard deviation `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    return _start(_normal(lambda rows, columns: scale), key, widths, balanced)


@STARTS.register("uniform")
def uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.1, balanced: bool = False
) -> Weights:
    """Independent entries, uniform between −`scale` and `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    return _start(_uniform(lambda rows, columns: scale), key, widths, balanced)


@STARTS.register("xavier_normal")
def xavier_normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Normal entries of variance `scale`² · 2 / (fan-in + fan-out) (Glorot, Bengio 2010).

    The fans of the end-to-end matrix are m and n. Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    draw = _normal(lambda rows, columns: scale * (2 / (rows + columns)) ** 0.5)
    return _start(draw, key, widths, balanced)


@STARTS.register("xavier_uniform")
def xavier_uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Uniform entries of mean 0 and variance `scale`² · 2 / (fan-in + fan-out).

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    draw = _uniform(lambda rows, columns: scale * (6 / (rows + columns)) ** 0.5)
    return _start(draw, key, widths, balanced)


@STARTS.register("kaiming_normal")
def kaiming_normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Normal entries of variance `scale`² / fan-in (He, Zhang, Ren, Sun 2015).

    A `scale` of 1 keeps the variance of the signal through linear layers; √2 is the one for
    rectified units. Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    return _start(_normal(lambda rows, columns: scale / columns**0.5), key, widths, balanced)


@STARTS.register("kaiming_uniform")
def kaiming_uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Uniform entries of mean 0 and variance `scale`² / fan-in; see `kaiming_normal`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    draw = _uniform(lambda rows, columns: scale * (3 / columns) ** 0.5)
    return _start(draw, key, widths, balanced)


@STARTS.register("small")
def small(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1e-2, balanced: bool = False
) -> Weights:
    """A start near the saddle W = 0, from which modes are learned one after the other (§8).

    Layer by layer the entries are normal with standard deviation `scale` / √fan-in, so that the
    singular values of the generator are of the order `scale`^N. Balanced, the generator itself has
    entries of standard deviation `scale` / √m and singular values of the order `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    return _start(_normal(lambda rows, columns: scale / columns**0.5), key, widths, balanced)


# --- structured layers ----------------------------------------------------------------------------


@STARTS.register("orthogonal")
def orthogonal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """`scale` times uniformly distributed matrices with orthonormal rows or columns.

    Where a layer is not square, the shorter of its rows and columns are orthonormal. Balanced, this
    holds for the generator, of which the bottleneck keeps k equal singular values.

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    return _start(partial(_scaled_orthogonal, scale), key, widths, balanced)


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
    _positive(scale=scale)
    return _start(lambda _, rows, columns: scale * jnp.eye(rows, columns), key, widths, balanced)


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
    _positive(scale=scale)
    narrowest = bottleneck(widths)
    takes = f"an integer from 1 to {narrowest}, the bottleneck of the widths {list(widths)}"
    check(1 <= rank <= narrowest, "rank", rank, takes)

    def draw(key: PRNGKey, rows: int, columns: int) -> Array:
        left, right = jax.random.split(key)
        tall = jax.random.normal(left, (rows, rank))
        return scale / (rank * columns) ** 0.5 * tall @ jax.random.normal(right, (rank, columns))

    return _start(draw, key, widths, balanced)


# --- starts that know the target ------------------------------------------------------------------


@STARTS.register("aligned")
def aligned(
    key: PRNGKey,
    widths: Widths,
    target: Target,
    *,
    scale: float = 0.1,
    spectrum: Literal["flat", "target"] = "flat",
) -> Weights:
    """W = Ω_k diag(s) Qᵀ, balanced: the modes of the target evolve each on its own (§5, E3).

    Ω_k are the eigenvectors of the k largest eigenvalues, k the bottleneck, and Q has random
    orthonormal columns. All s_i are `scale` (`flat`), or s_i = `scale` · √λ_i (`target`).

    Raises `InvalidOption` unless `scale` > 0.
    """
    _positive(scale=scale)
    modes = bottleneck(widths)
    unit = jnp.ones(modes) if spectrum == "flat" else jnp.sqrt(target.eigenvalues[:modes])
    left = target.from_eigenbasis(jnp.eye(widths[-1], modes))
    right = jax.random.orthogonal(key, modes, m=widths[0])
    return _from_factors(left, scale * unit, right, widths)


@STARTS.register("close_to_target")
def close_to_target(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.95, tau: float = 0.0
) -> Weights:
    """A balanced start with a margin: √L_τ(W) < √λ_n − √τ, strictly, for every key (§6, §7).

    W = Σ^{1/2}, of shape (n, m) with zeros beyond n, for Σ = Σ₀ − τ I + Γ D Γᵀ with Γ random
    orthogonal and D evenly spaced from `scale` · λ_n to `scale` · λ_n · (2 − 1/n), as the authors
    draw it. The scale is halved, for each key on its own, until the margin holds. It always
    comes to hold, since √L_τ ≤ ‖Γ D Γᵀ‖_F / (2 √λ_n) ≤ scale · √(n λ_n).

    Raises `InvalidOption` where no margin exists: for a bottleneck below n or an eigenvalue
    λ_n ≤ τ; where it is too narrow to be told from rounding; and unless 0 < `scale` < 3.
    """
    eigenvalues = target.eigenvalues
    _check_margin_possible(widths, eigenvalues, scale, tau)
    room = jnp.sqrt(eigenvalues[-1]) - tau**0.5 - _rounding_of_margin(eigenvalues, len(widths) - 1)
    basis = jax.random.orthogonal(key, len(eigenvalues))

    def halved(state: _Attempt) -> _Attempt:
        scale = state.scale / 2
        left, values = _perturbed_root(eigenvalues, basis, scale, tau)
        return _Attempt(scale, left, values, _distance(left, values, eigenvalues, tau) < room)

    def without_margin(state: tuple[Array, _Attempt]) -> Array:
        return ~state[1].has_margin & (state[0] < HALVINGS)

    before = _Attempt(2 * jnp.asarray(scale, basis.dtype), basis, eigenvalues, jnp.asarray(False))
    _, found = lax.while_loop(without_margin, lambda s: (s[0] + 1, halved(s[1])), (0, before))
    left = target.from_eigenbasis(found.left)
    return _from_factors(left, found.values, _padded(left.T, len(left), widths[0]), widths)


class _Attempt(NamedTuple):
    """One scale of `close_to_target`: the root left · diag(values) · leftᵀ in the eigenbasis."""

    scale: Scalar
    left: Float[Array, "n n"]
    values: Float[Array, " n"]
    has_margin: Array


def _perturbed_root(
    eigenvalues: Spectrum, basis: Float[Array, "n n"], scale: Scalar, tau: Scalar
) -> tuple[Array, Array]:
    """Eigenvectors (n, n) and root eigenvalues (n,) of Λ − τ I + Γ D Γᵀ.

    They are left singular vectors and values of [(Λ − τ)^{1/2}, Γ D^{1/2}]: squared, they would lose
    the small ones to rounding. The factor L of the L Q decomposition makes it (n, n).
    """
    count = len(eigenvalues)
    steps = 2 - jnp.arange(1, count + 1, dtype=eigenvalues.dtype) / count
    noise = basis * jnp.sqrt(scale * eigenvalues[-1] * steps)[None, :]
    stacked = jnp.concatenate([jnp.diag(jnp.sqrt(eigenvalues - tau)), noise], axis=1)
    triangular = jnp.linalg.qr(stacked.T, mode="r").T
    left, values, _ = jnp.linalg.svd(triangular)
    return left, values


def _distance(
    left: Float[Array, "n n"], values: Float[Array, " n"], eigenvalues: Spectrum, tau: Scalar
) -> Scalar:
    """√L_τ = min ‖Σ_τ^{1/2} − R Q‖_F over orthogonal Q, without cancellation (§2, I3).

    The minimizer is the polar factor of R Σ_τ^{1/2}. The identity, near it, guards against polar
    factors that lost the smallest modes to rounding; every Q gives an upper bound.
    """
    root = (left * jnp.sqrt(values**2 + tau)[None, :]) @ left.T
    target_root = jnp.sqrt(eigenvalues)
    rotated = target_root[:, None] * polar_factor(target_root[:, None] * root)
    apart, commuting = root - rotated, root - jnp.diag(target_root)
    return jnp.minimum(jnp.linalg.norm(apart), jnp.linalg.norm(commuting))


def _rounding_of_margin(eigenvalues: Spectrum, depth: int) -> Scalar:
    """What rounding may do to √L_τ, here and in the layers: of the order eps · √λ_1."""
    size = 8 * (len(eigenvalues) + depth) * jnp.finfo(eigenvalues.dtype).eps
    return size * eigenvalues[0] ** 0.5


def _check_margin_possible(widths: Widths, eigenvalues: Spectrum, scale: Scalar, tau: Scalar) -> None:
    """Refuse what cannot have a margin, with the numbers."""
    dimension, narrowest = len(eigenvalues), bottleneck(widths)
    got = f"close_to_target with a bottleneck of {narrowest}"
    takes = f"a network as wide as the data dimension {dimension}: a margin exists only at full rank"
    check(narrowest == dimension, "name", got, takes)
    if _known(scale):
        takes = "a number above 0 and below 3 (from 3 on no start has a margin)"
        check(0 < scale < 3, "scale", scale, takes)
    if not (_known(eigenvalues) and _known(tau)):
        return
    spectrum = np.asarray(eigenvalues)
    smallest = float(spectrum[-1])
    check(0 <= tau < np.inf, "tau", tau, "a finite number from 0")
    got = f"close_to_target with a singular target, whose smallest eigenvalue is {smallest:.6g}"
    check(smallest > 0, "name", got, "a target of full rank: no margin exists otherwise")
    takes = f"a number below {smallest:.6g}, the target's smallest eigenvalue: no margin exists otherwise"
    check(tau < smallest, "tau", tau, takes)
    room, rounding = smallest**0.5 - tau**0.5, _rounding_of_margin(spectrum, len(widths) - 1)
    got = f"close_to_target where √λ_n − √τ = {room:.3g}"
    takes = f"more than {2 * rounding:.3g} of it, or rounding would hide the margin"
    check(room > 2 * rounding, "name", got, takes)


# --- a user's own arrays --------------------------------------------------------------------------


@STARTS.register("file")
def file(key: PRNGKey, widths: Widths, target: Target, *, path: str) -> Weights:
    """The user's own weights, in data coordinates: the same for every key.

    An `.npz` holds the layers, named W_1, …, W_N or in order under other names; they are taken as
    they are. A single matrix (`.npy`, `.csv`, or alone in an `.npz`) is the end-to-end matrix
    (n, m), which is balanced over the layers.

    Raises `InvalidOption` for what `arrays.read_array` refuses (nothing is ever unpickled), and
    for arrays that are not finite, have not the shapes the widths ask for, or have a rank larger
    than the bottleneck.
    """
    names, depth = _array_names(path), len(widths) - 1
    if len(names) == 1 and names != ["W_1"]:
        matrix = _matrix(path, names[0], (widths[-1], widths[0]), widths)
        try:
            return balanced(matrix, widths)
        except InvalidOption as error:
            raise InvalidOption("path", f"{path}: {error.got}", error.takes) from error
    names = _layer_names(path, names, depth)
    layers = zip(names, _shapes(widths), strict=True)
    return tuple(jnp.asarray(_matrix(path, name, shape, widths), float) for name, shape in layers)


def _array_names(path: str) -> list[str | None]:
    """The names of the arrays in an `.npz`; [None] for what `read_array` reads or refuses whole."""
    try:
        with zipfile.ZipFile(os.path.expanduser(path)) as archive:
            found = [each for each in archive.namelist() if each.endswith(".npy")]
    except (OSError, ValueError, zipfile.BadZipFile):
        return [None]
    return [each.removesuffix(".npy") for each in found] or [None]


def _layer_names(path: str, found: list[str | None], depth: int) -> list[str | None]:
    """The names of the layers in a file, first layer first."""
    expected = [f"W_{index}" for index in range(1, depth + 1)]
    if set(found) == set(expected):
        return [*expected]
    listed = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
    takes = f"W_1 to W_{depth}, or {depth} layers in order, or one end-to-end matrix"
    in_order = len(found) == depth and not set(found) & set(expected)
    check(in_order, "path", f"{path}: {len(found)} arrays ({listed})", takes)
    return found


def _matrix(path: str, name: str | None, shape: tuple[int, int], widths: Widths) -> np.ndarray:
    """An array of a file as a finite matrix of the given shape."""
    loaded = read_array(path, name)
    with blamed_on(path if name is None else f"{path}, {name}"):
        takes = f"shape {shape}, by the widths {list(widths)}"
        check(loaded.shape == shape, "path", f"shape {loaded.shape}", takes)
        return finite("path", loaded, LARGEST_ENTRY)
