"""The only loop: advance every lane of a batch, each as if it ran alone.

A batch of lanes is a `State` whose leaves have one more axis. Stacks of layers keep their layer
axis first and the lanes second, so that a scan over layers reads contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from bwdln.dynamics.base import Dynamics, Outcome, State
from bwdln.networks import Packed, squared_size
from bwdln.types import Array, Scalar

#: A lane has diverged when the squared size of its weights exceeds this multiple of its scale: the
#: size it started from plus that of a balanced minimizer.
DIVERGENCE_FACTOR = 1e8

Tree = TypeVar("Tree")


def start(dynamics: Dynamics, weights: Packed, scale: Scalar) -> State:
    """The state of one lane before its first step; `scale` is the squared size of a minimizer."""
    size = squared_size(weights)
    return State(
        weights=weights,
        memory=dynamics.init(weights),
        time=jnp.zeros((), size.dtype),
        step=_integer(0),
        rejected=_integer(0),
        evaluations=_integer(0),
        fallbacks=_integer(0),
        within_since=-jnp.ones((), size.dtype),
        outcome=_integer(Outcome.RUNNING),
        limit=DIVERGENCE_FACTOR * (size + scale),
    )


def position(dynamics: Dynamics, state: State) -> Array:
    """How far a lane is on the clock of its dynamics: steps taken, or flow time."""
    return state.step if dynamics.clock == "step" else state.time


def active(dynamics: Dynamics, state: State, until: Scalar) -> Array:
    """Whether a lane has not ended and is not yet at `until` on its clock."""
    return (state.outcome == Outcome.RUNNING) & (position(dynamics, state) < until)


def step(dynamics: Dynamics, state: State, until: Scalar) -> State:
    """One attempt at a step of one lane; a lane that is not active stays as it is.

    A step to weights that are not finite or beyond the limit is not taken: it ends the lane as
    `diverged`, with the last good weights.
    """
    going = active(dynamics, state, until)
    attempt = dynamics.step(state.weights, state.memory, state.step, going)
    sound = squared_size(attempt.weights) <= state.limit  # false for NaN, too
    accepted = jnp.asarray(attempt.accepted)
    taken = state._replace(
        weights=attempt.weights,
        memory=attempt.memory,
        time=state.time + jnp.asarray(attempt.duration, state.time.dtype),
        step=state.step + accepted,
        rejected=state.rejected + ~accepted,
        outcome=jnp.where(attempt.stalled, _integer(Outcome.STALLED), state.outcome),
    )
    kept = select(going & sound, taken, state)
    diverged = going & ~sound
    return kept._replace(
        evaluations=state.evaluations + jnp.where(going, _integer(attempt.evaluations), 0),
        fallbacks=state.fallbacks + jnp.where(going, _integer(attempt.fallbacks), 0),
        outcome=jnp.where(diverged, _integer(Outcome.DIVERGED), kept.outcome),
    )


def at(dynamics: Dynamics, state: State, until: Scalar) -> State:
    """The state as it was at `until`, where a lane on the clock of flow time went past it."""
    if dynamics.clock == "step":
        return state
    past = (state.outcome == Outcome.RUNNING) & (state.time > until)
    ago = jnp.where(past, state.time - until, 0)
    earlier = dynamics.look_back(state.weights, state.memory, ago)
    moment = jnp.where(past, until, state.time).astype(state.time.dtype)
    return state._replace(weights=select(past, earlier, state.weights), time=moment)


def settle(dynamics: Dynamics, state: State, seen: State, gap: Scalar, relative_gap: Scalar) -> State:
    """The stop rule, at a record `seen` on the way: `converged` by the tolerances, `reached_end`.

    A lane that ends stays at what was seen.
    """
    outcome = jnp.where(position(dynamics, seen) >= dynamics.end, Outcome.REACHED_END, Outcome.RUNNING)
    pairs = ((gap, dynamics.absolute_gap_tolerance), (relative_gap, dynamics.gap_tolerance))
    within = jnp.asarray(False)
    for value, tolerance in pairs:
        within |= jnp.asarray(False) if tolerance is None else value <= tolerance
    since = jnp.where(state.within_since >= 0, state.within_since, seen.time)
    since = jnp.where(within, since, -jnp.ones_like(since))
    outcome = jnp.where(within & (seen.time - since >= dynamics.patience), Outcome.CONVERGED, outcome)
    ends = (state.outcome == Outcome.RUNNING) & (outcome != Outcome.RUNNING)
    ended = seen._replace(outcome=outcome.astype(jnp.int32))
    return select(ends, ended, state)._replace(within_since=since)


def advance(
    step: Callable[[State], State],
    active: Callable[[State], Array],
    state: State,
    attempts: Array,
) -> State:
    """Step a batch until no lane is active, or so many attempts are made."""

    def unfinished(carry: tuple[Array, State]) -> Array:
        made, state = carry
        return (made < attempts) & jnp.any(active(state))

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        made, state = carry
        return made + 1, step(state)

    return lax.while_loop(unfinished, body, (_integer(0), state))[1]


def lanes_placed(batch: Tree) -> Tree:
    """A batch with all lanes along the first axis, with those of stacks of layers made second."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1) if leaf.ndim == 4 else leaf, batch)


def lanes_first(batch: Tree) -> Tree:
    """A batch as it is placed, with all lanes along the first axis again."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0) if leaf.ndim == 4 else leaf, batch)


def lane_axes(batch: Tree) -> Tree:
    """Where each leaf of a batch has its lanes: second in stacks of layers, else first."""
    return jax.tree.map(lambda leaf: 1 if leaf.ndim == 4 else 0, batch)


def select(condition: Array, taken: Tree, otherwise: Tree) -> Tree:
    """`taken` where the condition holds, leaf by leaf."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), taken, otherwise)


def _integer(value: Array | int) -> Array:
    return jnp.asarray(value, jnp.int32)
