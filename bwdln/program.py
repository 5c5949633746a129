"""What is compiled: the program of a static part, over a batch of lanes of traced numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bwdln import diagnostics, networks
from bwdln.dynamics import integrate
from bwdln.dynamics.base import Dynamics, State
from bwdln.losses import Loss, layer_gradients
from bwdln.registry import Choice
from bwdln.targets import Target
from bwdln.theory.curvature import curvature
from bwdln.types import Array, Scalar, Weights, Widths


class Static(NamedTuple):
    """What changes the compiled program."""

    # Of the weights that are moved: the layers, or the reduced generator as one layer.
    widths: Widths
    loss: Choice
    dynamics: Choice
    # What the names of loss and dynamics stand for: their user may register them anew.
    functions: tuple[Callable[..., Loss], Callable[..., Dynamics]]
    # Whether each record holds the generator.
    keep_end_to_end: bool
    # Whether each record holds the ends of the Hessian's spectrum.
    sharpness: bool


class Lane(NamedTuple):
    """The traced numbers of one lane: of its target, its network, its loss and its dynamics."""

    eigenvalues: Array
    depth: Scalar
    loss: dict[str, Scalar]
    dynamics: dict[str, Scalar]


class Program(NamedTuple):
    """The compiled functions of one static part; each takes a batch of lanes.

    `init(lanes, weights)` also returns what is known of each lane from its start.
    `advance(lanes, states, until, attempts)` makes so many attempts at a step, or as many as bring
    every running lane to its `until`. Then, or where no attempt was asked for, it looks at the lanes
    as they were at `until`, and ends those that are done. It returns the states, whether that is
    still to come, and what it saw.
    """

    init: Callable[[Lane, Weights], tuple[State, dict[str, Array]]]
    advance: Callable[[Lane, State, Array, Array], tuple[State, Array, dict[str, Array]]]
    finish: Callable[[State], dict[str, Array]]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`; on a CPU without spreading products of matrices over cores: other programs use them."""
    options = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


@functools.lru_cache(maxsize=32)
def program(static: Static) -> Program:
    """The program of a static part; compiled once per shape and precision, however many runs."""

    def init(lane: Lane, weights: Weights) -> tuple[State, dict[str, Array]]:
        target, loss, dynamics = _parts(static, lane)
        # A balanced minimizer of the loss has squared size N Σ λ^{1/N} at most.
        scale = len(weights) * jnp.sum(lane.eigenvalues ** (1 / len(weights)))
        margin = diagnostics.margin(networks.reduced(weights), target, loss)
        return integrate.start(dynamics, networks.pack(weights), scale), {"margin": margin}

    def step(lane: Lane, state: State, until: Array) -> State:
        return integrate.step(_parts(static, lane)[2], state, until)

    def active(lane: Lane, state: State, until: Array) -> Array:
        return integrate.active(_parts(static, lane)[2], state, until)

    def record(lane: Lane, state: State, at: Array) -> tuple[State, dict[str, Array]]:
        target, loss, dynamics = _parts(static, lane)
        seen = integrate.at(dynamics, state, at)
        values = diagnostics.record(seen.weights, target, loss)
        counts = ("time", "step", "rejected", "evaluations")
        values |= {name: getattr(seen, name) for name in counts}
        values["gradient_norm"] = dynamics.gradient_norm(seen.weights)
        if static.keep_end_to_end:
            values["end_to_end"] = networks.end_to_end(networks.unpack(seen.weights))
        if static.sharpness:
            ends = curvature(loss, seen.weights, target)
            values |= {"sharpness": ends.largest, "smallest_curvature": ends.smallest}
        if dynamics.end_to_end:
            del values["imbalance"]  # of the balanced layers: 0
        return integrate.settle(dynamics, state, seen, values["relative_gap"]), values

    def finish(state: State) -> dict[str, Array]:
        layers = networks.unpack(state.weights)
        values = {f"weights_{j}": layer for j, layer in enumerate(layers, start=1)}
        final = {"final_cosines": diagnostics.cosines(state.weights), "outcome": state.outcome}
        return values | final | {"final_end_to_end": networks.end_to_end(layers)}

    def see_all(lanes: Lane, states: State, until: Array) -> tuple[State, dict[str, Array]]:
        axes = integrate.lane_axes(states)
        return jax.vmap(record, in_axes=(0, axes, 0), out_axes=(axes, 0))(lanes, states, until)

    def init_all(lanes: Lane, weights: Weights) -> tuple[State, dict[str, Array]]:
        states, known = jax.vmap(init)(lanes, weights)
        return integrate.lanes_placed(states), known

    def advance_all(
        lanes: Lane, states: State, until: Array, attempts: Array
    ) -> tuple[State, Array, dict[str, Array]]:
        axes = integrate.lane_axes(states)
        batched_step = jax.vmap(step, in_axes=(0, axes, 0), out_axes=axes)
        batched_active = jax.vmap(active, in_axes=(0, axes, 0))

        def any_active(states: State) -> Array:
            return jnp.any(batched_active(lanes, states, until))

        def go(states: State) -> State:
            return batched_step(lanes, states, until)

        states = integrate.advance(go, any_active, states, attempts)
        unfinished = any_active(states) & (attempts > 0)
        shapes = jax.eval_shape(see_all, lanes, states, until)[1]
        blank = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        states, seen = lax.cond(unfinished, lambda: (states, blank), lambda: see_all(lanes, states, until))
        return states, unfinished, seen

    def finish_all(states: State) -> dict[str, Array]:
        return jax.vmap(finish, in_axes=(integrate.lane_axes(states),))(states)

    return Program(compiled(init_all), compiled(advance_all), compiled(finish_all))


def _parts(static: Static, lane: Lane) -> tuple[Target, Loss, Dynamics]:
    """The target in its eigenbasis, the loss and the dynamics of one lane, from traced numbers."""
    make_loss, make_dynamics = static.functions
    target = Target(lane.eigenvalues, None)
    loss = make_loss(**dict(static.loss.options), **lane.loss)
    dynamics = make_dynamics(
        lambda weights: layer_gradients(loss, weights, target),
        lane.depth,
        **dict(static.dynamics.options),
        **lane.dynamics,
    )
    return target, loss, dynamics
