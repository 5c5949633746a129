"""What critical points look like over many targets: statistics, and the loss on paths between them.

Closed forms of `critical_points`, `hessians` and `paths` (docs/theory.md §3, §4) for every pair of a target
and an index set, in blocks of lanes whose size keeps memory modest. Arrays are NumPy float64, on the host;
NaN stands for a pair that is not a critical point, and for a number that does not exist there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from bwdln.errors import check
from bwdln.theory import critical_points, hessians, paths
from bwdln.theory.checks import LossName, check_depth, check_loss, check_spectrum
from bwdln.types import Array, Scalar, Spectrum

#: As many index sets are listed one by one, at most.
MOST = 20_000
#: About so many numbers are in one array of a block of lanes.
BLOCK = 2**20

#: Called with how many lanes are done, and of how many; what it raises ends the work.
OnBlock = Callable[[int, int], None]


class Points(NamedTuple):
    """The index sets that are looked at.

    Attributes:
        sets: the minimizer of the first target first.
        total: how many there are in all.
        spread: whether `sets` are a sample by `exchanged`, of one size.
    """

    sets: tuple[tuple[int, ...], ...]
    total: int
    spread: bool


class Survey(NamedTuple):
    """The closed forms at every point of every target: arrays of shape (targets, points).

    `value` is the loss, `index` the number of negative eigenvalues of the Hessian; the others are those
    of `hessians.Extremes`, over the eigenvalues that are not 0, and NaN where there is none.
    """

    value: Float[Array, "targets points"]
    index: Float[Array, "targets points"]
    largest: Float[Array, "targets points"]
    smallest: Float[Array, "targets points"]
    smallest_absolute: Float[Array, "targets points"]
    relative_condition: Float[Array, "targets points"]
    absolute_condition: Float[Array, "targets points"]


class Spread(NamedTuple):
    """Mean and standard deviation over the targets that have a number, and how many these are.

    The deviation is that of a sample, divided by count − 1, and NaN of fewer than two. An array each.
    """

    mean: Float[Array, "*shape"]
    deviation: Float[Array, "*shape"]
    count: Float[Array, "*shape"]


class Overview(NamedTuple):
    """What a survey comes to over the targets, for each point.

    `over` has a `Spread`, of arrays of shape (points,), for each field of `Survey`.
    """

    loss: LossName
    tau: float
    sets: tuple[tuple[int, ...], ...]
    over: dict[str, Spread]


class Paths(NamedTuple):
    """The loss along the straight paths from critical points to the minimizer.

    `height` of a place t is (L(t) − L⋆) / (L(0) − L⋆), with L⋆ the minimum and L(0) the loss of the
    generator 0. `function_space` and `parameter_space` are its spread over the targets, arrays of shape
    (starts, places); `rises` says for each space, target and start whether the path climbs above it.
    `targets`: how many have all of these points.
    """

    loss: LossName
    starts: tuple[tuple[int, ...], ...]
    places: Float[Array, "places"]
    function_space: Spread
    parameter_space: Spread
    rises: Bool[Array, "2 targets starts"]
    targets: int


# --- which points ---------------------------------------------------------------------------------


def learnable(eigenvalues: Float[Array, "targets n"], tau: float) -> np.ndarray:
    """How many modes of each target can be learnt: those above τ, the first ones; shape (targets,)."""
    return np.sum(np.asarray(eigenvalues) > tau, axis=1)


def repeated(eigenvalues: Float[Array, "targets n"], tau: float) -> Bool[Array, "targets"]:
    """Whether two eigenvalues that can be learnt are equal, for each target."""
    values = np.asarray(eigenvalues)
    return np.any((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > tau), axis=1)


def points(
    eigenvalues: Float[Array, "targets n"],
    rank: int,
    *,
    tau: float,
    loss: LossName,
    most: int | None,
    seed: int,
) -> Points:
    """The index sets of any of the targets: all of them, or a sample of `most`.

    All come in the order of `critical_points.critical_points`. A sample has sets that are critical for
    every target, of the largest size there is for that: the minimizer, and sets that exchange some of its
    modes for others (`exchanged`); uniform ones where more than half of all are asked for.

    Raises `InvalidOption` for a rank out of range, for τ not below the largest eigenvalue of every
    target, and where `most` is None for more sets than `MOST`.
    """
    check_loss(loss, tau)
    values = np.asarray(eigenvalues)
    modes = learnable(values, tau)
    lowest = float(values[:, 0].min())
    check(modes.min() >= 1, "tau", tau, f"a number below the largest eigenvalue of every target ({lowest:g})")
    kinds = [values[np.argmax(modes == each)] for each in sorted(set(modes.tolist()), reverse=True)]
    counts = [critical_points.count(each, rank, tau=tau, loss=loss) for each in kinds]
    few = sum(counts) <= MOST
    takes = f"an integer up to {MOST}, for a sample: there are {about(counts[0])} critical points"
    check(few or most is not None, "points", "null", takes)
    if few:
        every = (critical_points.critical_points(each, rank, tau=tau, loss=loss) for each in kinds)
        sets = tuple(dict.fromkeys(each.index_set for group in every for each in group))
        if most is None or len(sets) <= most:
            return Points(sets, len(sets), spread=False)
    assert most is not None
    total = len(sets) if few else counts[0]
    size, available = min(rank, int(modes.min())), int(modes.min())
    return Points(tuple(exchanged(seed, available, size, most)), total, spread=True)


def exchanged(seed: int, available: int, size: int, number: int) -> list[tuple[int, ...]]:
    """`number` different sets of `size` of the positions 0, …, available − 1; all if there are no more.

    The first is 0, …, size − 1; every other exchanges a number of these positions for as many of the
    others, each number from 1 to the most possible equally likely and so are the sets with it. Saddle
    indices thus are spread over their whole range, where uniform sets would crowd in its middle. Where
    more than half of all sets are asked for they are uniform.
    """
    first = tuple(range(size))
    total = math.comb(available, size)
    if 2 * number > total:
        ones = np.ones(available)
        some = critical_points.sample(seed, ones, size, number)
        return [each.index_set for each in some]
    generator = np.random.default_rng(seed)
    found = {first: None}
    while len(found) < number:
        swaps = int(generator.integers(1, min(size, available - size), endpoint=True))
        out = set(generator.choice(size, swaps, replace=False).tolist())
        new = size + generator.choice(available - size, swaps, replace=False)
        found[tuple(sorted({*first} - out | {*new.tolist()}))] = None
    return list(found)


def label(index_set: Sequence[int]) -> str:
    """An index set in a few characters, positions from 1: 124, or 1–9,11 where they go beyond 9."""
    if not index_set:
        return "none"
    if max(index_set) < 9:
        return "".join(str(each + 1) for each in index_set)
    runs: list[list[int]] = []
    for each in sorted(index_set):
        if runs and runs[-1][-1] == each:
            runs[-1].append(each + 1)
        else:
            runs.append([each + 1])
    return ",".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def about(number: int) -> str:
    """A whole number of any size in a few characters."""
    return f"{number:,}" if number < 10**7 else f"about 1e{math.floor(math.log10(number))}"


# --- closed forms at every point of every target --------------------------------------------------


def survey(
    eigenvalues: Float[Array, "targets n"],
    sets: Sequence[tuple[int, ...]],
    rank: int,
    *,
    depth: float,
    tau: float,
    loss: LossName,
    on_block: OnBlock | None = None,
) -> Survey:
    """The loss and the extreme curvatures of every target at every index set.

    A pair is a critical point where all modes of the set are above τ and, for Bures-Wasserstein at τ = 0,
    none more could be learnt at that rank (§3). At depth 1 the directions that raise the rank count, for
    a latent dimension that is the rank. Raises `InvalidOption` for values out of range.
    """
    check_loss(loss, tau)
    check_depth(depth)
    values = np.asarray(eigenvalues, dtype=np.float64)
    for each in values:
        check_spectrum(each)
    critical = _critical(values, sets, rank, tau, loss)
    found = np.full((len(Survey._fields), *critical.shape), np.nan)
    done, total = 0, int(critical.sum())
    sizes = np.array([len(each) for each in sets])
    for size in dict.fromkeys(sizes.tolist()):
        columns = np.flatnonzero(sizes == size)
        positions = np.array([sets[each] for each in columns.tolist()], dtype=int).reshape(len(columns), size)
        lanes, places = np.nonzero(critical[:, columns])
        latent_dim = rank if depth == 1 else None
        for block, count in _blocks(len(lanes), _entries(values.shape[1], size)):
            given = values[lanes[block]], positions[places[block]]
            seen = _closed_forms(*given, float(depth), float(tau), loss=loss, latent_dim=latent_dim)
            kept = np.stack([np.asarray(each)[:count] for each in seen])
            found[:, lanes[block][:count], columns[places[block]][:count]] = kept
            done += count
            if on_block is not None:
                on_block(done, total)
    result = Survey(*found)
    some = np.nan_to_num(result.smallest_absolute) > 0
    return Survey(result.value, result.index, *(np.where(some, each, np.nan) for each in result[2:]))


def _critical(
    values: np.ndarray, sets: Sequence[tuple[int, ...]], rank: int, tau: float, loss: str
) -> Bool[Array, "targets points"]:
    """Whether each index set is one of each target."""
    modes = learnable(values, tau)[:, None]
    last = np.array([max(each, default=-1) for each in sets])[None, :]
    sizes = np.array([len(each) for each in sets])[None, :]
    largest = np.minimum(rank, modes)
    kinked = loss == "bures_wasserstein" and tau == 0
    fits_rank = sizes == largest if kinked else sizes <= largest
    return (last < modes) & fits_rank


def _entries(dimension: int, size: int) -> int:
    """How many eigenvalues a spectrum has, or the number of modes if that is larger."""
    return max(dimension, size * (size + 1) // 2 + size * (dimension - size))


def _blocks(lanes: int, entries: int) -> Iterator[tuple[np.ndarray, int]]:
    """Positions of the lanes of each block, all of one length, and how many of them are new."""
    length = max(1, min(BLOCK // entries, 2 ** math.ceil(math.log2(max(1, lanes)))))
    for start in range(0, lanes, length):
        block = np.arange(start, start + length)
        yield np.minimum(block, lanes - 1), min(length, lanes - start)


@partial(jax.jit, static_argnames=("loss", "latent_dim"))
def _closed_forms(
    eigenvalues: Float[Array, "lanes n"],
    positions: Array,
    depth: Scalar,
    tau: Scalar,
    *,
    loss: LossName,
    latent_dim: int | None,
) -> tuple[Array, ...]:
    """The fields of `Survey` of lanes of targets and index sets."""

    def one(values: Spectrum, index_set: Array) -> tuple[Array, ...]:
        ends = hessians.extremes(values, index_set, depth=depth, tau=tau, loss=loss, latent_dim=latent_dim)
        value = critical_points.value(values, index_set, tau=tau, loss=loss)
        return value, ends.negative, *ends[:-1]

    return jax.vmap(one)(eigenvalues, positions)


def over_targets(values: Float[Array, "targets *shape"]) -> Spread:
    """Mean and deviation over the first axis, of the finite numbers."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    some, several = np.maximum(count, 1), np.maximum(count - 1, 1)
    mean = np.where(finite, values, 0).sum(axis=0) / some
    variance = np.where(finite, values - mean, 0) ** 2
    deviation = np.sqrt(variance.sum(axis=0) / several)
    return Spread(np.where(count > 0, mean, np.nan), np.where(count > 1, deviation, np.nan), count)


def overview(
    sets: Sequence[tuple[int, ...]], found: Survey, order: Sequence[int], *, tau: float, loss: LossName
) -> Overview:
    """A survey over its targets, with its points in the given order."""
    over = {name: over_targets(each[:, order]) for name, each in found._asdict().items()}
    return Overview(loss, tau, tuple(sets[each] for each in order), over)


# --- paths ----------------------------------------------------------------------------------------

#: A path rises where its height is so much above that of its start.
RISE = 1e-9


def to_minimizer(
    eigenvalues: Float[Array, "targets n"],
    starts: Sequence[tuple[int, ...]],
    places: Float[Array, "places"],
    *,
    depth: float,
    tau: float,
    loss: LossName,
) -> Paths:
    """The loss along the straight paths from index sets of one size to the largest modes of that number.

    In function space and in parameter space, which is the same at depth 1. The targets are those with
    all of these points. Raises `InvalidOption` where there is none, and for values out of range.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    end = tuple(range(len(starts[0])))
    last = max(max(each) for each in (end, *starts))
    usable = values[learnable(values, tau) > last]
    check(len(usable) > 0, "starts", f"position {last}", "positions of modes that some target can learn")
    minimum = _left(usable, end, tau, loss)
    scale = np.maximum(_left(usable, (), tau, loss) - minimum, np.finfo(float).tiny)[:, None]
    most = max(len({*each} - {*end}) for each in starts)
    spaces = []
    for layers in dict.fromkeys((1.0, float(depth))):
        losses_along = (_along(usable, each, end, most, places, layers, tau, loss) for each in starts)
        spaces.append(np.stack([(each - minimum[:, None]) / scale for each in losses_along], axis=1))
    spaces = [spaces[0], spaces[-1]]
    rises = np.stack([each.max(axis=2) > each[:, :, 0] + RISE for each in spaces])
    function_space, parameter_space = map(over_targets, spaces)
    return Paths(loss, tuple(starts), np.asarray(places), function_space, parameter_space, rises, len(usable))


def _left(values: np.ndarray, index_set: tuple[int, ...], tau: float, loss: str) -> np.ndarray:
    """The loss of each target at an index set: what its other modes cost."""
    others = np.delete(values, index_set, axis=1)
    costs = others**2 if loss == "frobenius" else (np.sqrt(others) - np.sqrt(tau)) ** 2
    return costs.sum(axis=1)


def _along(
    values: np.ndarray,
    first: tuple[int, ...],
    second: tuple[int, ...],
    pairs: int,
    places: np.ndarray,
    depth: float,
    tau: float,
    loss: LossName,
) -> Float[Array, "targets places"]:
    """`paths.along` for each target, by one program for all index sets that differ in up to `pairs` modes.

    The modes in which they differ are a target of their own; those that neither set has add a number.
    Missing pairs are modes of eigenvalue τ, which have s = 0 and add nothing.
    """
    old, new = sorted({*first} - {*second}), sorted({*second} - {*first})
    missing = np.full((len(values), pairs - len(old)), tau)
    modes = np.concatenate([values[:, old], missing, values[:, new], missing], axis=1)
    moving = _moving(modes, places, depth, tau, loss=loss, pairs=pairs)
    return np.asarray(moving) + _left(values, (*first, *new), tau, loss)[:, None]


@partial(jax.jit, static_argnames=("loss", "pairs"))
def _moving(
    modes: Array, places: Array, depth: Scalar, tau: Scalar, *, loss: LossName, pairs: int
) -> Float[Array, "targets places"]:
    """The loss of each row of modes, on the path from its first `pairs` modes to the others."""
    first, second = tuple(range(pairs)), tuple(range(pairs, 2 * pairs))

    def one(values: Spectrum) -> Array:
        return paths.along(values, first, second, places, depth=depth, tau=tau, loss=loss)

    return jax.vmap(one)(modes)
