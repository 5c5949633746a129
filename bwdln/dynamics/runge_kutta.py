"""Flows dW/dt = v(W) by Runge-Kutta methods, every lane with its own time and its own step.

One shape of step serves all methods: the velocity at the weights is carried along, so an attempt
evaluates the other stages and then the velocity at the weights it leads to ("first same as last").
Between the two ends of a step the weights are known by the cubic through both ends and velocities,
with a correction of fourth degree where the method has one, so no step is shortened to hit a time.

Sources: Hairer, Nørsett, Wanner, *Solving Ordinary Differential Equations I* (the pairs, the first
step, the control of the step, dense output) and, for stiff flows, `stabilized`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bwdln.dynamics import stabilized
from bwdln.dynamics.base import Dynamics, Step
from bwdln.dynamics.integrate import select
from bwdln.dynamics.stabilized import Attempt, Spectrum, Tolerances, Velocity, norm
from bwdln.dynamics.tableaus import FIXED, METHODS, TABLEAUS, Tableau
from bwdln.errors import check, nearest
from bwdln.linalg import safe_divide
from bwdln.networks import Packed
from bwdln.types import Array, Scalar

#: What tolerances are where null is given.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-6, 1e-9


# --- a flow as a dynamics -------------------------------------------------------------------------


class Memory(NamedTuple):
    """What a flow carries beside the weights; what a method never needs is None."""

    # The velocity at the weights.
    velocity: Packed
    # The last step taken, for the weights in between: where it began, and how long it was.
    before: Packed
    velocity_before: Packed
    correction: Packed | None
    duration: Array
    # The size of the next attempt; the error of the last step taken, and whether an attempt was
    # rejected since.
    size: Array
    error: Array
    after_rejection: Array
    # Flow time covered, attempts made, and velocities evaluated that no step has counted yet.
    time: Array
    attempts: Array
    uncounted: Array
    # The largest eigenvalue, for the stabilized method; whether that one is in use, and what speaks
    # for the other (`VOTES`).
    spectrum: Spectrum | None
    stabilized: Array | None
    votes: Array | None


def flow(
    velocity: Velocity,
    gradient_norm: Callable[[Packed], Scalar],
    *,
    end_time: Scalar,
    method: str = "auto",
    relative_tolerance: Scalar | None = None,
    absolute_tolerance: Scalar | None = None,
    step_size: Scalar | None = None,
    max_steps: int = 100_000,
    gap_tolerance: Scalar | None = None,
    end_to_end: bool = False,
) -> Dynamics:
    """The flow dW/dt = `velocity(W)` up to flow time `end_time`, by a method of `METHODS`.

    `euler`, `heun`, `rk4` take steps of fixed `step_size`; the others choose their steps such that
    the estimated error of each is at most `absolute_tolerance` + `relative_tolerance` · ‖W‖, in the
    Frobenius norm over all weights, which no change of basis alters (null: 1e-9 and 1e-6). A
    relative tolerance of a few roundings of the precision cannot be met, and ends as `stalled`.

    A lane is `stalled` after `max_steps` attempts short of the end, or where steps have become too
    short to change the time. Its last step may go past the end: `look_back` knows the weights there.
    `end_to_end` is handed on to the `Dynamics`.

    Raises `InvalidOption` for a number out of range, a fixed step with a method that finds its own,
    or the reverse; ranges are looked at where numbers are not traced.
    """
    _check(end_time, method, relative_tolerance, absolute_tolerance, step_size, max_steps, gap_tolerance)
    evaluate = jax.jit(velocity)  # traced once, however many stages call it
    tolerances = Tolerances(
        RELATIVE_TOLERANCE if relative_tolerance is None else relative_tolerance,
        ABSOLUTE_TOLERANCE if absolute_tolerance is None else absolute_tolerance,
    )

    def init(weights: Packed) -> Memory:
        return _start(evaluate, method, tolerances, step_size, end_time, weights)

    def step(weights: Packed, memory: Memory, count: Array, going: Array | bool = True) -> Step:
        attempt = _attempt(evaluate, method, tolerances, weights, memory, jnp.asarray(going))
        return _judged(method, tolerances, end_time, max_steps, weights, memory, attempt)

    return Dynamics(
        init=init,
        step=step,
        gradient_norm=gradient_norm,
        end=end_time,
        clock="time",
        gap_tolerance=gap_tolerance,
        look_back=_look_back,
        end_to_end=end_to_end,
    )


def _start(
    velocity: Velocity,
    method: str,
    tolerances: Tolerances,
    step_size: Scalar | None,
    end_time: Scalar,
    weights: Packed,
) -> Memory:
    """The memory before the first step."""
    first, dtype = velocity(weights), norm(weights).dtype
    if step_size is not None:
        size, spectrum, evaluations = jnp.asarray(step_size, dtype), None, 1
    else:
        exponent = _exponent(method)
        size, spectrum = _first_size(velocity, tolerances, exponent, end_time, weights, first)
        evaluations = 2
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    corrected = method == "auto" or (method in TABLEAUS and TABLEAUS[method].dense is not None)
    return Memory(
        velocity=first,
        before=weights,
        velocity_before=first,
        correction=jax.tree.map(jnp.zeros_like, weights) if corrected else None,
        duration=zero,
        size=size,
        error=zero,
        after_rejection=jnp.zeros((), bool),
        time=zero,
        attempts=none,
        uncounted=none + evaluations,
        spectrum=spectrum if method in ("auto", "rkc") else None,
        stabilized=jnp.zeros((), bool) if method == "auto" else None,
        votes=none if method == "auto" else None,
    )


def _attempt(
    velocity: Velocity,
    method: str,
    tolerances: Tolerances,
    weights: Packed,
    memory: Memory,
    going: Array,
) -> Attempt:
    """One attempt at a step by the method; a lane that is not going need not be worked on."""

    def explicit(start: Attempt) -> Attempt:
        tableau = TABLEAUS["rk54" if method == "auto" else method]
        return _explicit(velocity, tableau, tolerances, start)

    def chebyshev(start: Attempt) -> Attempt:
        made = stabilized.attempt(velocity, tolerances, start, going)
        return made._replace(correction=jax.tree.map(jnp.zeros_like, start.correction))

    start = Attempt(
        weights,
        memory.velocity,
        memory.size,
        jnp.zeros_like(memory.error),
        jnp.zeros_like(memory.attempts),
        memory.correction,
        memory.spectrum,
    )
    if method == "rkc":
        return chebyshev(start)
    if method != "auto":
        return explicit(start)
    assert memory.stabilized is not None
    made = _where(going & ~memory.stabilized, explicit, start)
    return _where(going & memory.stabilized, chebyshev, made)


def _where(needed: Array, advanced: Callable[[Attempt], Attempt], start: Attempt) -> Attempt:
    """`advanced(start)` where needed, else `start`; no batch computes it unless some lane needs it.

    So it is a loop of one turn or none. `advanced` must use the weights it is given: what does not
    change in the loop, XLA would compute before it, needed or not; and two decompositions of batches
    side by side can wait for each other's threads for ever on a CPU.
    """

    def body(carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
        return jnp.zeros_like(carry[0]), advanced(carry[1])

    return lax.while_loop(lambda carry: carry[0], body, (needed, start))[1]


def _explicit(velocity: Velocity, tableau: Tableau, tolerances: Tolerances, start: Attempt) -> Attempt:
    """One attempt by an explicit method; with the largest eigenvalue, if the start knows one."""
    weights, first, size = start.weights, start.velocity, start.size
    slopes, point = [first], weights
    for row in tableau.stages:
        point = _plus(weights, size, row, slopes)
        slopes.append(velocity(point))
    after = _plus(weights, size, tableau.weights, slopes)
    slopes.append(velocity(after))
    error, correction, spectrum = jnp.zeros_like(size), None, None
    if tableau.error is not None:
        error = tolerances.relative_to(_combined(size, tableau.error, slopes), weights, after)
    if tableau.dense is not None:
        correction = _combined(size, tableau.dense, slopes)
    if start.spectrum is not None:
        # The last two stages are at the same time, apart by what the method's stability damps least.
        direction = jax.tree.map(jnp.subtract, slopes[-1], slopes[-2])
        apart = norm(jax.tree.map(jnp.subtract, after, point))
        spectrum = Spectrum(safe_divide(norm(direction), apart), direction)
    evaluations = jnp.asarray(len(slopes) - 1, jnp.int32)
    return Attempt(after, slopes[-1], size, error, evaluations, correction, spectrum)


def _combined(size: Array, coefficients: Sequence[float], slopes: Sequence[Packed]) -> Packed:
    """h Σ c_i k_i."""
    used = [(c, slope) for c, slope in zip(coefficients, slopes, strict=True) if c]

    def leaf(*parts: Array) -> Array:
        return size * sum(c * part for (c, _), part in zip(used, parts, strict=True))

    return jax.tree.map(leaf, *(slope for _, slope in used))


def _plus(weights: Packed, size: Array, coefficients: Sequence[float], slopes: Sequence[Packed]) -> Packed:
    """W + h Σ c_i k_i."""
    return jax.tree.map(jnp.add, weights, _combined(size, coefficients, slopes))


# --- steps: how long, and whether they count ------------------------------------------------------

#: Factors on the size of the next step: the least, the most, after an attempt to no finite weights.
SHRINK, GROW_AT_MOST, SHRINK_IF_NOT_FINITE = 0.2, 10, 0.1
#: The next step is this fraction of the one that would just meet the tolerance.
SAFETY = 0.9
#: How much the error before the last counts (the integral part of the control has the rest).
BETA = 0.04
#: Errors below this count as this, where they are compared with the next.
LEAST_ERROR = 1e-4


def _exponent(method: str) -> float:
    """One over the power of the step size that the estimated error goes with."""
    if method == "rkc":
        return 1 / stabilized.ERROR_ORDER
    return 1 / TABLEAUS["rk54" if method == "auto" else method].order


def _first_size(
    velocity: Velocity,
    tolerances: Tolerances,
    exponent: float,
    end_time: Scalar,
    weights: Packed,
    first: Packed,
) -> tuple[Array, Spectrum]:
    """A size for the first step by Hairer's rule, at one evaluation, and a guess at the spectrum.

    A small Euler step changes the weights by 1 % at most; the change of velocity over it estimates
    the second derivative, and with that the step whose error is a hundredth of the tolerance.
    """
    size, speed = (tolerances.relative_to(each, weights, weights) for each in (weights, first))
    least = 1e-6 * end_time
    small = (size < 1e-5) | (speed < 1e-5)
    trial = jnp.where(small, least, 0.01 * size / jnp.where(small, 1, speed))
    trial = jnp.minimum(trial, end_time)
    moved = _plus(weights, trial, (1.0,), (first,))
    change = jax.tree.map(jnp.subtract, velocity(moved), first)
    curvature = tolerances.relative_to(change, weights, weights) / trial
    largest = jnp.maximum(speed, curvature)
    flat = ~(largest > 1e-15 / end_time)
    guess = jnp.where(
        flat, jnp.maximum(least, trial * 1e-3), (0.01 / jnp.where(flat, 1, largest)) ** exponent
    )
    spectrum = Spectrum(safe_divide(norm(change), trial * norm(first)), change)
    return jnp.minimum(jnp.minimum(100 * trial, guess), end_time), spectrum


def _judged(
    method: str,
    tolerances: Tolerances,
    end_time: Scalar,
    max_steps: int,
    weights: Packed,
    memory: Memory,
    attempt: Attempt,
) -> Step:
    """Accept an attempt or not, and set up the next."""
    if method in FIXED:
        accepted, size = jnp.ones((), bool), memory.size
    else:
        accepted = attempt.error <= 1
        factor = _factor(method, memory, attempt)
        size = jnp.minimum(attempt.size * factor, end_time)
    eps = float(jnp.finfo(size.dtype).eps)
    # Not "too short", so that a size that is no number counts as too short.
    moves = attempt.size > 4 * eps * jnp.maximum(memory.time, eps * end_time)
    time = memory.time + jnp.where(accepted, attempt.size, 0)
    attempts = memory.attempts + 1
    # Half a step: steps of fixed size may add up to a little less than the end.
    spent = (attempts >= max_steps) & (time + attempt.size / 2 < end_time)
    taken = memory._replace(
        velocity=attempt.velocity,
        before=weights,
        velocity_before=memory.velocity,
        correction=attempt.correction,
        duration=attempt.size,
        error=attempt.error,
    )
    following = select(accepted, taken, memory)._replace(
        size=size,
        after_rejection=~accepted,
        time=time,
        attempts=attempts,
        uncounted=jnp.zeros_like(memory.uncounted),
        spectrum=attempt.spectrum,
    )
    if method == "auto":
        following = _changed(tolerances, weights, memory, attempt, accepted, following)
    return Step(
        weights=select(accepted, attempt.weights, weights),
        memory=following,
        duration=jnp.where(accepted, attempt.size, 0),
        evaluations=attempt.evaluations + memory.uncounted,
        accepted=accepted,
        stalled=spent | ~moves,
    )


def _factor(method: str, memory: Memory, attempt: Attempt) -> Array:
    """What to multiply the step size by (Hairer's control; no growth right after a rejection)."""
    exponent = jnp.full_like(attempt.error, _exponent(method))
    if memory.stabilized is not None:
        third = jnp.full_like(exponent, 1 / stabilized.ERROR_ORDER)
        exponent = jnp.where(memory.stabilized, third, exponent)
    error = jnp.maximum(attempt.error, 1e-30)
    integral = SAFETY * error ** (0.75 * BETA - exponent)
    largest = jnp.where(memory.after_rejection, 1, GROW_AT_MOST)
    growth = integral * jnp.maximum(memory.error, LEAST_ERROR) ** BETA
    growth = jnp.minimum(jnp.maximum(growth, SHRINK), largest)
    factor = jnp.where(attempt.error <= 1, growth, jnp.maximum(integral, SHRINK))
    lost = jnp.full_like(factor, SHRINK_IF_NOT_FINITE)
    return jnp.where(jnp.isfinite(attempt.error), factor, lost)


# --- which method, where it is chosen automatically -----------------------------------------------

#: The explicit pair is stable up to step · eigenvalue = 3.3; from `STIFF` on that may be its limit,
#: and below `MILD` it is cheaper than the stabilized method.
STIFF, MILD = 2.5, 2.0
#: Predicted cost per flow time of the stabilized method over that of the explicit one, to change to it.
BARGAIN = 0.8
#: The method changes after so many steps in a row for which the other looks cheaper; and after
#: `PATIENCE` times as many at the limit of stability, where what the explicit pair does not damp
#: hides how long a step the stabilized method could take.
VOTES, PATIENCE = 3, 4


def _changed(
    tolerances: Tolerances,
    weights: Packed,
    memory: Memory,
    attempt: Attempt,
    accepted: Array,
    following: Memory,
) -> Memory:
    """Change the method where the other one has looked cheaper for several steps."""
    assert memory.stabilized is not None and memory.votes is not None and attempt.spectrum is not None
    radius, size = attempt.spectrum.radius, attempt.size
    error = stabilized.error(tolerances, weights, attempt.weights, memory.velocity, attempt.velocity, size)
    growth = SAFETY * jnp.maximum(error, 1e-30) ** (-1 / stabilized.ERROR_ORDER)
    reach = size * jnp.minimum(jnp.maximum(growth, SHRINK), GROW_AT_MOST)
    cost = (stabilized.stage_count(reach, radius) + 1) / reach
    explicit_cost = len(TABLEAUS["rk54"].weights) / size
    for_other = jnp.where(memory.stabilized, following.size * radius < MILD, size * radius > STIFF)
    vote = jnp.where(memory.stabilized | (cost < BARGAIN * explicit_cost), PATIENCE, 1)
    votes = jnp.where(accepted, jnp.where(for_other, memory.votes + vote, 0), memory.votes)
    change = votes >= VOTES * PATIENCE
    return following._replace(
        size=jnp.where(change & ~memory.stabilized, jnp.maximum(reach, size), following.size),
        error=jnp.where(change, 0, following.error),
        stabilized=memory.stabilized ^ change,
        votes=jnp.where(change, 0, votes),
    )


# --- dense output ---------------------------------------------------------------------------------


def _look_back(weights: Packed, memory: Memory, ago: Scalar) -> Packed:
    """The weights some time ago, within the last step; exact at both of its ends.

    With θ from 0 to 1 along a step of length h from (W, v) to (W₊, v₊), by Hermite:
    (1−θ)² (1+2θ) W + θ² (3−2θ) W₊ + θ (1−θ) h ((1−θ) v − θ v₊), plus θ² (1−θ)² times the correction.
    """
    h = memory.duration
    left = safe_divide(jnp.asarray(ago, h.dtype), h)  # 1 − θ
    theta = 1 - left
    begin, end = left**2 * (1 + 2 * theta), theta**2 * (1 + 2 * left)

    def cubic(w0: Array, w1: Array, v0: Array, v1: Array) -> Array:
        return begin * w0 + end * w1 + theta * left * h * (left * v0 - theta * v1)

    between = jax.tree.map(cubic, memory.before, weights, memory.velocity_before, memory.velocity)
    if memory.correction is None:
        return between
    return jax.tree.map(lambda w, c: w + (theta * left) ** 2 * c, between, memory.correction)


# --- options --------------------------------------------------------------------------------------


def _check(
    end_time: Any,
    method: str,
    relative_tolerance: Any,
    absolute_tolerance: Any,
    step_size: Any,
    max_steps: int,
    gap_tolerance: Any,
) -> None:
    """Refuse what a method cannot take, and numbers out of range where they are known."""
    positive = "a finite number above 0"
    check(method in METHODS, "method", method, nearest(str(method), METHODS))
    check(not _known(end_time) or 0 < end_time < float("inf"), "end_time", end_time, positive)
    check(1 <= max_steps < 2**31, "max_steps", max_steps, "an integer from 1 to 2^31 - 1")
    fine = not _known(gap_tolerance) or gap_tolerance >= 0
    check(fine, "gap_tolerance", gap_tolerance, "null or a number from 0")
    tolerances = {"relative_tolerance": relative_tolerance, "absolute_tolerance": absolute_tolerance}
    if method in FIXED:
        got = "null" if step_size is None else step_size
        fine = step_size is not None and (not _known(step_size) or 0 < step_size < float("inf"))
        check(fine, "step_size", got, f"{positive} with method = {method}")
        for option, value in tolerances.items():
            check(value is None, option, value, f"null with method = {method}, whose steps are fixed")
        if _known(step_size) and _known(end_time):
            enough = end_time <= step_size * max_steps * (1 + 1e-9)
            takes = f"an integer from end_time / step_size = {end_time / step_size:.6g}"
            check(enough, "max_steps", max_steps, takes)
        return
    check(step_size is None, "step_size", step_size, f"null with method = {method}, which finds its steps")
    fine = not _known(relative_tolerance) or 0 <= relative_tolerance < 1
    check(fine, "relative_tolerance", relative_tolerance, "null or a number from 0 to below 1")
    fine = not _known(absolute_tolerance) or 0 < absolute_tolerance < float("inf")
    check(fine, "absolute_tolerance", absolute_tolerance, f"null or {positive}")


def _known(value: Any) -> bool:
    return isinstance(value, int | float)  # plain, not traced
