"""What is compiled: the program of a static part, over a batch of lanes of traced numbers.

On an accelerator the lanes of a batch are vmapped. On a CPU a program goes through them one after the
other: a decomposition of several matrices waits there for threads that may be waiting for another one,
for ever. Where a step takes none, and all lanes take as many steps, it goes through blocks of them that the
cache holds. Over several devices a batch is cut along its lanes, and each device goes on for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from bwdln import diagnostics, networks
from bwdln.dynamics import integrate
from bwdln.dynamics.base import Dynamics, State
from bwdln.losses import LayerGradients, Loss
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
    still to come on each device, (devices,), and what it saw: to be used when it is to come on none.
    """

    init: Callable[[Lane, Weights], tuple[State, dict[str, Array]]]
    advance: Callable[[Lane, State, Array, Array], tuple[State, Array, dict[str, Array]]]
    finish: Callable[[State], dict[str, Array]]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`; on a CPU without spreading products of matrices over cores: other programs use them."""
    options = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


#: Lanes that a CPU advances together, where it can, and the largest width where that is faster: they share
#: what it costs to start an operation, and their weights stay in the cache (docs/performance.md).
BLOCK = 8
BLOCK_UP_TO = 48
#: The operations that must not see several matrices on a CPU.
DECOMPOSITIONS = (
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu", "qr"),
    *("schur", "svd", "triangular_solve", "tridiagonal"),
)

#: The axis of the devices that the lanes of a batch are cut along.
LANES = "lanes"


def program(static: Static, devices: tuple[jax.Device, ...] | None = None) -> Program:
    """The program of a static part; compiled once per shape and precision, however many runs.

    Over several devices the number of lanes must be a multiple of theirs.
    """
    return _program(static, devices or tuple(jax.local_devices()[:1]), jax.default_backend() == "cpu")


def placed(every: Any, devices: tuple[jax.Device, ...]) -> Any:
    """A batch on its devices, cut along the lanes; `every` is a tree as `integrate.lane_axes` takes it."""

    def sharding(leaf: Array) -> Any:
        spec = _spec(integrate.lane_axes(leaf))
        return NamedSharding(_mesh(devices), spec) if len(devices) > 1 else devices[0]

    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), every)


def _mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    return Mesh(np.array(devices), (LANES,))


def _spec(axis: int) -> Spec:
    """How an array with its lanes along an axis is cut."""
    return Spec(*[None] * axis, LANES)


@functools.lru_cache(maxsize=32)
def _program(static: Static, devices: tuple[jax.Device, ...], one_by_one: bool) -> Program:
    """See `program`."""

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
        counts = ("time", "step", "rejected", "evaluations", "fallbacks")
        values |= {name: getattr(seen, name) for name in counts}
        values["gradient_norm"] = dynamics.gradient_norm(seen.weights)
        if static.keep_end_to_end:
            values["end_to_end"] = networks.end_to_end(networks.unpack(seen.weights))
        if static.sharpness:
            ends = curvature(loss, seen.weights, target)
            values |= {"sharpness": ends.largest, "smallest_curvature": ends.smallest}
        if dynamics.end_to_end:
            del values["imbalance"]  # of the balanced layers: 0
        return integrate.settle(dynamics, state, seen, values["gap"], values["relative_gap"]), values

    def finish(state: State) -> dict[str, Array]:
        layers = networks.unpack(state.weights)
        values = {f"weights_{j}": layer for j, layer in enumerate(layers, start=1)}
        final = {"final_cosines": diagnostics.cosines(state.weights), "outcome": state.outcome}
        return values | final | {"final_end_to_end": networks.end_to_end(layers)}

    def each_lane(function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one lane for a batch with all lanes along the first axis."""
        if not one_by_one:
            return jax.vmap(function)
        return lambda *batch: lax.map(lambda lane: function(*lane), batch)

    def go_all(lanes: Lane, states: State, until: Array, attempts: Array) -> State:
        """Attempts at steps: of all lanes at a time, of blocks of them, or of each lane for itself."""

        def attempting(move: Callable[..., State], goes_on: Callable[..., Array]) -> Callable[..., State]:
            return lambda lanes, states, until: integrate.advance(
                lambda states: move(lanes, states, until),
                lambda states: goes_on(lanes, states, until),
                states,
                attempts,
            )

        go, go_alone = attempting(step_all, active_all), attempting(step, active)
        if not one_by_one:
            return go(lanes, states, until)
        size = block_size(lanes, states, until)
        if size == 1:
            first = integrate.lanes_first(states)
            return integrate.lanes_placed(each_lane(go_alone)(lanes, first, until))
        axes = integrate.lane_axes(states)

        def go_block(number: Array, states: State) -> State:
            def own(leaf: Array, axis: int = 0) -> Array:
                return lax.dynamic_slice_in_dim(leaf, number * size, size, axis)

            gone = go(jax.tree.map(own, lanes), jax.tree.map(own, states, axes), own(until))
            put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=number * size)
            moved: State = jax.tree.map(lambda all, own, axis: put(all, own, axis=axis), states, gone, axes)
            return moved

        return lax.fori_loop(0, len(until) // size, go_block, states)

    def block_size(lanes: Lane, states: State, until: Array) -> int:
        """How many lanes a CPU advances together."""
        clock = _parts(static, jax.tree.map(lambda leaf: leaf[0], lanes))[2].clock
        if clock != "step" or max(static.widths) > BLOCK_UP_TO or len(until) % BLOCK:
            return 1
        together = jax.make_jaxpr(step_all)(lanes, states, until)
        return 1 if decomposes_several(together.jaxpr) else BLOCK

    def step_all(lanes: Lane, states: State, until: Array) -> State:
        axes = integrate.lane_axes(states)
        states = jax.vmap(step, in_axes=(0, axes, 0), out_axes=axes)(lanes, states, until)
        return states

    def active_all(lanes: Lane, states: State, until: Array) -> Array:
        return jax.vmap(active, in_axes=(0, integrate.lane_axes(states), 0))(lanes, states, until)

    def see_all(lanes: Lane, states: State, until: Array) -> tuple[State, dict[str, Array]]:
        states, seen = each_lane(record)(lanes, integrate.lanes_first(states), until)
        return integrate.lanes_placed(states), seen

    def advance_all(
        lanes: Lane, states: State, until: Array, attempts: Array
    ) -> tuple[State, Array, dict[str, Array]]:
        states = go_all(lanes, states, until, attempts)
        unfinished = jnp.any(active_all(lanes, states, until)) & (attempts > 0)
        shapes = jax.eval_shape(see_all, lanes, states, until)[1]
        blank = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        states, seen = lax.cond(unfinished, lambda: (states, blank), lambda: see_all(lanes, states, until))
        return states, unfinished[jnp.newaxis], seen

    def init_all(lanes: Lane, weights: Weights) -> tuple[State, dict[str, Array]]:
        states, known = on_devices(each_lane(init), lanes, weights)
        return integrate.lanes_placed(states), known

    def advance_devices(
        lanes: Lane, states: State, until: Array, attempts: Array
    ) -> tuple[State, Array, dict[str, Array]]:
        if len(devices) == 1:
            return advance_all(lanes, states, until, attempts)
        cut = jax.tree.map(_spec, integrate.lane_axes(states))
        specs = (_spec(0), cut, _spec(0), Spec()), (cut, _spec(0), _spec(0))
        result: tuple[State, Array, dict[str, Array]] = jax.shard_map(
            advance_all, mesh=_mesh(devices), in_specs=specs[0], out_specs=specs[1], check_vma=False
        )(lanes, states, until, attempts)
        return result

    def finish_all(states: State) -> dict[str, Array]:
        values: dict[str, Array] = on_devices(each_lane(finish), integrate.lanes_first(states))
        return values

    def on_devices(function: Callable[..., Any], *batch: Any) -> Any:
        """A function of a batch with all lanes along the first axis, each device with its own lanes."""
        if len(devices) == 1:
            return function(*batch)
        cut = jax.shard_map(
            function,
            mesh=_mesh(devices),
            in_specs=(_spec(0),) * len(batch),
            out_specs=_spec(0),
            check_vma=False,
        )
        return cut(*batch)

    return Program(compiled(init_all), compiled(advance_devices), compiled(finish_all))


def decomposes_several(jaxpr: Jaxpr) -> bool:
    """Whether a decomposition of several matrices at a time is among the operations, at any depth."""

    def inside(parameter: Any) -> Iterator[Jaxpr]:
        for each in jax.tree.leaves(parameter, is_leaf=lambda leaf: isinstance(leaf, Jaxpr | ClosedJaxpr)):
            if isinstance(each, Jaxpr | ClosedJaxpr):
                yield each.jaxpr if isinstance(each, ClosedJaxpr) else each

    return any(
        (each.primitive.name in DECOMPOSITIONS and len(getattr(each.invars[0].aval, "shape", ())) > 2)
        or any(map(decomposes_several, inside(list(each.params.values()))))
        for each in jaxpr.eqns
    )


def _parts(static: Static, lane: Lane) -> tuple[Target, Loss, Dynamics]:
    """The target in its eigenbasis, the loss and the dynamics of one lane, from traced numbers."""
    make_loss, make_dynamics = static.functions
    target = Target(lane.eigenvalues, None)
    loss = make_loss(**dict(static.loss.options), **lane.loss)
    dynamics = make_dynamics(
        LayerGradients(loss, target),
        lane.depth,
        **dict(static.dynamics.options),
        **lane.dynamics,
    )
    return target, loss, dynamics
