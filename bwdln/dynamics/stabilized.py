"""The Runge-Kutta-Chebyshev method of order 2, for stiff flows.

Its s stages are stable up to step · eigenvalue ≈ 0.65 s² along the negative real axis, where an
ordinary explicit method of s stages reaches s or less: the flow of a deep network, whose Jacobian is
minus a Hessian, costs about the square root of the evaluations.

Source: Sommeijer, Shampine, Verwer, *RKC: An explicit solver for parabolic PDEs*, J. Comput. Appl.
Math. 88 (1998).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from bwdln.linalg import safe_divide
from bwdln.networks import Packed, squared_size
from bwdln.types import Array, Scalar

Velocity: TypeAlias = Callable[[Packed], Packed]

#: Damping ε: the stability polynomials stay below 1 − ε/3 inside their interval.
DAMPING = 2 / 13
#: s = 1 + ⌊√(1 + `STAGES` · step · eigenvalue)⌋ stages are stable, and not more than `MOST_STAGES`.
STAGES, MOST_STAGES = 1.54, 200
#: The estimated error goes with this power of the step size.
ERROR_ORDER = 3
#: The power method ends when the estimate changes by less than this fraction, or after `MOST_POWERS`.
POWER_TOLERANCE, MOST_POWERS = 0.02, 50
#: The estimate, which is from below, times this is taken for the largest eigenvalue.
POWER_SAFETY = 1.2


class Tolerances(NamedTuple):
    """What error a step may have: absolute + relative · ‖W‖ in the Frobenius norm."""

    relative: Scalar
    absolute: Scalar

    def relative_to(self, difference: Packed, before: Packed, after: Packed) -> Array:
        """The size of a difference over the tolerance; NaN where anything is not finite."""
        scale = self.absolute + self.relative * jnp.maximum(norm(before), norm(after))
        ratio = norm(difference) / scale
        return jnp.where(jnp.isfinite(scale), ratio, jnp.full_like(ratio, jnp.nan))


class Spectrum(NamedTuple):
    """The largest eigenvalue of the Jacobian in size, as estimated, and a direction near its vector."""

    radius: Array
    direction: Packed


class Attempt(NamedTuple):
    """An attempt at a step: where it leads, its size, its error over the tolerance, its cost.

    Before it is made, where it begins, and the size to try.
    """

    weights: Packed
    velocity: Packed
    size: Array
    error: Array
    evaluations: Array
    # What goes with the method: the correction of dense output, the largest eigenvalue.
    correction: Packed | None
    spectrum: Spectrum | None


def norm(tree: Packed) -> Array:
    """The Frobenius norm over all weights."""
    return jnp.sqrt(squared_size(tree))


def stage_count(size: Array, radius: Array) -> Array:
    """The number of stages, 2 or more, that a step of this size takes; a real number."""
    return 1 + jnp.floor(jnp.sqrt(1 + STAGES * POWER_SAFETY * size * radius))


def error(
    tolerances: Tolerances, before: Packed, after: Packed, first: Packed, last: Packed, size: Array
) -> Array:
    """The method's error over the tolerance: 0.8 (W − W₊) + 0.4 h (v + v₊), of order h³."""

    def leaf(w0: Array, w1: Array, v0: Array, v1: Array) -> Array:
        return 0.8 * (w0 - w1) + 0.4 * size * (v0 + v1)

    return tolerances.relative_to(jax.tree.map(leaf, before, after, first, last), before, after)


def attempt(velocity: Velocity, tolerances: Tolerances, start: Attempt, going: Array) -> Attempt:
    """One attempt at a step of the size in `start`, from its weights and its velocity there.

    A lane that is not `going` takes two stages, whatever its step, so that it holds up no other.
    """
    assert start.spectrum is not None
    weights, first, size = start.weights, start.velocity, start.size
    spectrum, powers = _refined(velocity, weights, first, start.spectrum, going)
    reach = ((MOST_STAGES - 1) ** 2 - 1) / (STAGES * POWER_SAFETY)
    size = jnp.where(size * spectrum.radius > reach, reach / spectrum.radius, size)
    wanted = stage_count(size, spectrum.radius)
    stages = jnp.where(going & (wanted <= MOST_STAGES), wanted, 2).astype(jnp.int32)
    after = _advanced(velocity, weights, first, size, stages)
    last = velocity(after)
    made = error(tolerances, weights, after, first, last, size)
    return Attempt(after, last, size, made, stages + powers, None, spectrum)


def _advanced(velocity: Velocity, weights: Packed, first: Packed, size: Array, stages: Array) -> Packed:
    """The weights after `stages` stages; s − 1 evaluations.

    Stage j is P_j(hJ) W on a linear flow, P_j(z) = a_j + b_j T_j(w₀ + w₁ z), with a_j = 1 − b_j T_j(w₀)
    and b_j = T_j″/T_j′² at w₀; so the recurrence of the Chebyshev polynomials carries the stages.
    """
    count = stages.astype(size.dtype)
    beyond = DAMPING / count**2  # w₀ − 1
    w0, squared = 1 + beyond, beyond * (2 + beyond)  # and w₀² − 1
    root = jnp.sqrt(squared)
    angle = count * jnp.log1p(beyond + root)
    # w₁ = T_s′/T_s″ at w₀, from T_s(cosh x) = cosh(s x).
    w1 = jnp.sinh(angle) * squared / (jnp.cosh(angle) * count * root - w0 * jnp.sinh(angle))
    b0 = 1 / (4 * w0**2)
    one, zero = jnp.ones_like(w0), jnp.zeros_like(w0)
    second = jax.tree.map(lambda w, v: w + size * w1 * b0 * v, weights, first)

    def unfinished(carry: tuple) -> Array:
        return carry[0] <= stages

    def body(carry: tuple) -> tuple:
        j, (earlier, latest), (b_back, b), older, newer = carry
        t, dt, ddt = newer
        following = (
            2 * w0 * t - older[0],
            2 * w0 * dt - older[1] + 2 * t,
            2 * w0 * ddt - older[2] + 4 * dt,
        )
        b_next = following[2] / following[1] ** 2
        mu, nu = 2 * w0 * b_next / b, -b_next / b_back
        push, a = 2 * w1 * b_next / b, 1 - b * t
        slope = velocity(latest)

        def leaf(w: Array, y0: Array, y1: Array, v0: Array, v1: Array) -> Array:
            return (1 - mu - nu) * w + nu * y0 + mu * y1 + size * push * (v1 - a * v0)

        stage = jax.tree.map(leaf, weights, earlier, latest, first, slope)
        return j + 1, (latest, stage), (b, b_next), newer, following

    begin = (
        jnp.full_like(stages, 2),
        (weights, second),
        (b0, b0),
        (one, zero, zero),
        (w0, one, zero),
    )
    return lax.while_loop(unfinished, body, begin)[1][1]


def _refined(
    velocity: Velocity, weights: Packed, first: Packed, spectrum: Spectrum, going: Array
) -> tuple[Spectrum, Array]:
    """The spectrum at these weights by the power method on differences of velocity, and its cost.

    It starts from the direction of the step before, so one evaluation is enough most of the time.
    """
    size = norm(weights)
    apart = jnp.sqrt(jnp.finfo(size.dtype).eps).astype(size.dtype) * jnp.where(size > 0, size, 1)

    def unfinished(carry: tuple) -> Array:
        made, changing, _ = carry
        return (changing | (made == 0)) & (made < MOST_POWERS) & going

    def body(carry: tuple) -> tuple:
        made, _, (radius, direction) = carry
        length = norm(direction)
        usable = length > 0
        scale = apart / jnp.where(usable, length, jnp.where(size > 0, size, 1))

        def leaf(w: Array, d: Array) -> Array:
            return w + scale * jnp.where(usable, d, w)

        moved = velocity(jax.tree.map(leaf, weights, direction))
        difference = jax.tree.map(jnp.subtract, moved, first)
        estimate = safe_divide(norm(difference), apart)
        changing = jnp.abs(estimate - radius) > POWER_TOLERANCE * estimate
        return made + 1, changing, Spectrum(estimate, difference)

    begin = (jnp.zeros((), jnp.int32), jnp.ones((), bool), spectrum)
    made, _, refined = lax.while_loop(unfinished, body, begin)
    return refined, made
