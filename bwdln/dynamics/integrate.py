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
        step=jnp.zeros((), jnp.int32),
        time=jnp.zeros((), size.dtype),
        outcome=jnp.asarray(Outcome.RUNNING, jnp.int32),
        limit=DIVERGENCE_FACTOR * (size + scale),
    )


def step(dynamics: Dynamics, state: State) -> State:
    """One step of one lane; a lane that has ended stays as it is.

    A step to weights that are not finite or beyond the limit is not taken: it ends the lane as
    `diverged`, with the last good weights.
    """
    weights, memory, duration = dynamics.step(state.weights, state.memory, state.step)
    running = state.outcome == Outcome.RUNNING
    sound = squared_size(weights) <= state.limit  # false for NaN, too
    taken = State(
        weights=weights,
        memory=memory,
        step=state.step + 1,
        time=state.time + jnp.asarray(duration, state.time.dtype),
        outcome=state.outcome,
        limit=state.limit,
    )
    kept = select(running & sound, taken, state)
    ended = jnp.asarray(Outcome.DIVERGED, jnp.int32)
    return kept._replace(outcome=jnp.where(running & ~sound, ended, state.outcome))


def settle(dynamics: Dynamics, state: State, relative_gap: Scalar) -> State:
    """The stop rule, at a record: `converged` by the tolerance, `reached_end` by the step count."""
    outcome = jnp.where(state.step >= dynamics.steps, Outcome.REACHED_END, Outcome.RUNNING)
    if dynamics.gap_tolerance is not None:
        within = relative_gap <= dynamics.gap_tolerance
        outcome = jnp.where(within, Outcome.CONVERGED, outcome)
    running = state.outcome == Outcome.RUNNING
    return state._replace(outcome=jnp.where(running, outcome.astype(jnp.int32), state.outcome))


def advance(batched_step: Callable[[State], State], state: State, until: Array) -> State:
    """Step a batch until each running lane has taken `until` steps in all."""

    def unfinished(state: State) -> Array:
        return jnp.any((state.outcome == Outcome.RUNNING) & (state.step < until))

    return lax.while_loop(unfinished, batched_step, state)


def lanes_placed(batch: Tree) -> Tree:
    """A batch with all lanes along the first axis, with those of stacks of layers made second."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1) if leaf.ndim == 4 else leaf, batch)


def lane_axes(batch: Tree) -> Tree:
    """Where each leaf of a batch has its lanes: second in stacks of layers, else first."""
    return jax.tree.map(lambda leaf: 1 if leaf.ndim == 4 else 0, batch)


def select(condition: Array, taken: Tree, otherwise: Tree) -> Tree:
    """`taken` where the condition holds, leaf by leaf."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), taken, otherwise)
