"""Configuration -> records: one pure program per static part, over lanes of traced numbers.

`run` checks everything, builds the target and the starts (float64, on the CPU, whatever the
precision of the run), moves them into the target's eigenbasis, and advances all lanes from record
to record; between the blocks of compiled steps the host looks at progress and at Ctrl-C.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  JAX calls its LAPACK; loaded here, so that its threads can be limited
import threadpoolctl
import xarray

from bwdln import config as configuration
from bwdln import data, diagnostics, networks, results, targets
from bwdln.config import Config
from bwdln.dynamics import integrate
from bwdln.dynamics.base import DYNAMICS, Dynamics, Outcome, State
from bwdln.errors import check, within
from bwdln.initializations import STARTS
from bwdln.interruption import Interruption
from bwdln.losses import LOSSES, Loss, layer_gradients
from bwdln.registry import Choice, load_plugins
from bwdln.targets import Target
from bwdln.types import Array, Scalar, Weights, Widths

#: Lanes advanced by one call on a CPU: few enough that their weights stay in its cache.
LANES_PER_BATCH_ON_CPU = 16
#: Seconds between two looks at progress and at Ctrl-C, about.
PACE = 0.25
#: How many real samples a result keeps, for the eye.
REAL_SAMPLES = 64


class Progress(NamedTuple):
    """How far a run is: steps taken of steps in all, lanes still running, relative gaps."""

    step: int
    steps: int
    running: int
    lanes: int
    best_gap: float
    median_gap: float


class Static(NamedTuple):
    """What changes the compiled program."""

    widths: Widths
    loss: Choice
    dynamics: Choice
    # What the names of loss and dynamics stand for: their user may register them anew.
    functions: tuple[Callable[..., Loss], Callable[..., Dynamics]]


class Lane(NamedTuple):
    """The traced numbers of one lane: eigenvalues of the target, options of loss and dynamics."""

    eigenvalues: Array
    loss: dict[str, Scalar]
    dynamics: dict[str, Scalar]


class Problem(NamedTuple):
    """A checked configuration with its target, all of it concrete."""

    config: Config
    static: Static
    lane: Lane
    target: Target
    samples: data.Samples | None
    dynamics: Dynamics
    record_steps: np.ndarray


def run(config: Config, *, on_progress: Callable[[Progress], None] | None = None) -> results.Result:
    """Run every seed of a configuration as a lane, and return the records and final weights.

    The lane of seed s is the same whatever other lanes run beside it. Ctrl-C ends the run within a
    fraction of a second or, while something compiles, after that: the result then holds what was
    recorded, with the attribute `interrupted` = 1. A second Ctrl-C gives up at once.

    Raises `InvalidOption`, before anything compiles, for a configuration that cannot be run.
    """
    began = time.perf_counter()
    with Interruption() as interruption:
        problem = prepare(config)
        weights = starts(problem)
        groups = batches(problem, weights)
        interrupted, records = _integrate(problem, groups, on_progress, interruption)
    with _on_cpu():
        initial = np.asarray(jax.vmap(networks.end_to_end)(weights), config.precision)
        dataset = _dataset(problem, groups, records).assign(
            initial_end_to_end=(("seed", "feature", "latent"), initial), **_references(problem)
        )
    if problem.samples is not None:
        dataset = _with_samples(dataset, problem.samples)
    seconds = time.perf_counter() - began
    return results.Result(dataset.assign_attrs(_attributes(problem, interrupted, seconds)))


def prepare(config: Config) -> Problem:
    """Check a configuration as a whole and build its target.

    Raises `InvalidOption` for anything that cannot be run.
    """
    set_up_process()
    no_float64 = jax.default_backend() == "tpu"
    takes = "float32 on tpu, which has no float64 linear algebra"
    check(not (no_float64 and config.precision == "float64"), "precision", config.precision, takes)
    load_plugins(config.plugins)
    LOSSES.build(config.loss)
    # Only numbers are looked at here, so the gradient need not be one.
    dynamics: Dynamics = DYNAMICS.build(config.dynamics, lambda weights: weights)
    with _on_cpu():
        target, samples = targets.TARGETS.build(config.target), data.samples(config.target)
    _check_scale(target, config.precision)
    with within("network"):
        widths = networks.widths(target.dimension, config.network)
    loss, loss_numbers = configuration.split(LOSSES.resolved(config.loss))
    motion, motion_numbers = configuration.split(DYNAMICS.resolved(config.dynamics))
    steps = record_steps(dynamics.steps, config.record)
    static = Static(widths, loss, motion, (LOSSES[loss.name], DYNAMICS[motion.name]))
    lane = Lane(target.eigenvalues, loss_numbers, motion_numbers)
    return Problem(config, static, lane, target, samples, dynamics, steps)


def _check_scale(target: Target, precision: str) -> None:
    """Refuse a target whose eigenvalues have no squares in the precision of the run."""
    largest, kind = float(target.eigenvalues[0]), np.finfo(precision)
    lowest, highest = float(kind.tiny) ** 0.5, float(kind.max) ** 0.5
    takes = f"one from {lowest:.0e} to {highest:.0e} in {precision}: scale the data"
    check(lowest <= largest <= highest, "target", f"a largest eigenvalue of {largest:.2g}", takes)


def set_up_process() -> None:
    """What a run needs of the whole process: float64 in JAX, and one thread in LAPACK.

    XLA already runs the lanes of a batch side by side. Where LAPACK starts threads of its own below
    that, the two wait for each other: on a busy machine decompositions of 64 × 64 matrices then take
    up to 200 times as long.
    """
    jax.config.update("jax_enable_x64", True)
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def _on_cpu() -> AbstractContextManager[object]:
    """What is not part of a compiled program is computed on the CPU, which has float64 everywhere."""
    return jax.default_device(jax.devices("cpu")[0])


def record_steps(steps: int, record: configuration.Record) -> np.ndarray:
    """The step counts of the records: 0, then `count` increasing ones up to `steps`.

    Raises `InvalidOption` for more records than steps.
    """
    check(record.count <= steps, "record.count", record.count, f"an integer up to steps = {steps}")
    number = np.arange(1, record.count + 1)
    if record.spacing == "linear":
        return np.append(0, np.rint(number * (steps / record.count)).astype(int))
    spaced = np.rint(np.geomspace(1, steps, record.count)).astype(int) if record.count > 1 else [steps]
    # Where rounding makes two the same, the later one moves on.
    return np.append(0, np.maximum.accumulate(spaced - number) + number)


def starts(problem: Problem) -> Weights:
    """The starting weights of all lanes, in data coordinates, float64; seeds along the first axis."""
    config, choice = problem.config, STARTS.resolved(problem.config.initialization)
    options = dict(choice.options)
    with _on_cpu(), within("initialization"):
        keys = jax.vmap(jax.random.key)(jnp.arange(config.seed, config.seed + config.seeds))
        start = functools.partial(STARTS[choice.name], **options)
        return jax.jit(jax.vmap(lambda key: start(key, problem.static.widths, problem.target)))(keys)


# --- compiled programs ----------------------------------------------------------------------------


class Program(NamedTuple):
    """The compiled functions of one static part; each takes a batch of lanes."""

    init: Callable[[Lane, Weights], State]
    advance: Callable[[Lane, State, Array], State]
    record: Callable[[Lane, State], tuple[State, dict[str, Array]]]
    finish: Callable[[State], tuple[Weights, Array]]


@functools.lru_cache(maxsize=32)
def program(static: Static) -> Program:
    """The program of a static part; compiled once per shape and precision, however many runs."""

    def init(lane: Lane, weights: Weights) -> State:
        # A balanced minimizer of the loss has squared size N Σ λ^{1/N} at most.
        scale = len(weights) * jnp.sum(lane.eigenvalues ** (1 / len(weights)))
        return integrate.start(_parts(static, lane)[2], networks.pack(weights), scale)

    def step(lane: Lane, state: State) -> State:
        return integrate.step(_parts(static, lane)[2], state)

    def record(lane: Lane, state: State) -> tuple[State, dict[str, Array]]:
        target, loss, dynamics = _parts(static, lane)
        values = diagnostics.record(state.weights, target, loss)
        settled = integrate.settle(dynamics, state, values["relative_gap"])
        return settled, values | {"time": state.time, "step": state.step}

    def finish(state: State) -> tuple[Weights, Array]:
        return networks.unpack(state.weights), diagnostics.cosines(state.weights)

    def init_all(lanes: Lane, weights: Weights) -> State:
        return integrate.lanes_placed(jax.vmap(init)(lanes, weights))

    def advance_all(lanes: Lane, states: State, until: Array) -> State:
        axes = integrate.lane_axes(states)
        batched = jax.vmap(step, in_axes=(0, axes), out_axes=axes)
        return integrate.advance(functools.partial(batched, lanes), states, until)

    def record_all(lanes: Lane, states: State) -> tuple[State, dict[str, Array]]:
        axes = integrate.lane_axes(states)
        return jax.vmap(record, in_axes=(0, axes), out_axes=(axes, 0))(lanes, states)

    def finish_all(states: State) -> tuple[Weights, Array]:
        return jax.vmap(finish, in_axes=(integrate.lane_axes(states),))(states)

    return Program(jax.jit(init_all), jax.jit(advance_all), jax.jit(record_all), jax.jit(finish_all))


def _parts(static: Static, lane: Lane) -> tuple[Target, Loss, Dynamics]:
    """The target in its eigenbasis, the loss and the dynamics of one lane, from traced numbers."""
    make_loss, make_dynamics = static.functions
    target = Target(lane.eigenvalues, None)
    loss = make_loss(**dict(static.loss.options), **lane.loss)
    dynamics = make_dynamics(
        lambda weights: layer_gradients(loss, weights, target),
        **dict(static.dynamics.options),
        **lane.dynamics,
    )
    return target, loss, dynamics


# --- the host's side of the loop ------------------------------------------------------------------


@dataclass
class Batch:
    """Lanes that one call advances together; behind the first `count`, padding."""

    program: Program
    lanes: Lane
    state: State
    count: int
    latest: dict[str, np.ndarray] = field(default_factory=dict)

    def advance(self, until: int) -> None:
        """Let every running lane take steps until it has taken `until`; waits for the end."""
        if self.running():
            state = self.program.advance(self.lanes, self.state, np.int32(until))
            self.state = jax.block_until_ready(state)

    def record(self) -> dict[str, np.ndarray]:
        """What the lanes hold now, lanes along the first axis; ends those that are done."""
        if self.running() or not self.latest:
            self.state, values = self.program.record(self.lanes, self.state)
            self.latest = {name: np.asarray(each)[: self.count] for name, each in values.items()}
        return self.latest

    def finish(self) -> dict[str, np.ndarray]:
        """What is saved of the lanes at the end: outcomes, cosines, weights in the eigenbasis."""
        layers, cosines = self.program.finish(self.state)
        values = {f"weights_{j}": layer for j, layer in enumerate(layers, start=1)}
        values |= {"final_cosines": cosines, "outcome": self.state.outcome}
        return {name: np.asarray(each)[: self.count] for name, each in values.items()}

    def running(self) -> int:
        """How many lanes have not ended."""
        return int(np.sum(np.asarray(self.state.outcome)[: self.count] == Outcome.RUNNING))


def batches(problem: Problem, weights: Weights) -> list[Batch]:
    """The lanes in batches of equal size, in the eigenbasis and the precision of the run."""
    dtype, count = problem.config.precision, problem.config.seeds
    most = LANES_PER_BATCH_ON_CPU if jax.default_backend() == "cpu" else count
    size = -(-count // -(-count // most))
    with _on_cpu():
        rotated = (*weights[:-1], problem.target.to_eigenbasis(weights[-1]))

    def placed(value: Any) -> Array:
        return jax.device_put(np.asarray(value, dtype), jax.devices()[0])

    lanes = jax.tree.map(lambda x: placed(np.broadcast_to(x, (size, *np.shape(x)))), problem.lane)
    compiled = program(problem.static)
    built: list[Batch] = []
    for first in range(0, count, size):
        members = np.arange(first, first + size)
        layers = tuple(placed(np.asarray(each)[np.minimum(members, count - 1)]) for each in rotated)
        state = compiled.init(lanes, layers)
        outcome = jnp.where(members >= count, np.int32(Outcome.REACHED_END), state.outcome)
        real = int(np.sum(members < count))
        built.append(Batch(compiled, lanes, state._replace(outcome=outcome), real))
    return built


def _integrate(
    problem: Problem,
    batches: list[Batch],
    on_progress: Callable[[Progress], None] | None,
    interruption: Interruption,
) -> tuple[bool, list[dict[str, np.ndarray]]]:
    """Advance all batches from record to record; whether it was interrupted, and the records."""
    records: list[dict[str, np.ndarray]] = []
    pace, at = _Pace(), 0

    def report() -> None:
        if on_progress is not None and records:
            gaps = records[-1]["relative_gap"]
            running = sum(batch.running() for batch in batches)
            best, median = float(np.min(gaps)), float(np.median(gaps))
            on_progress(Progress(at, problem.dynamics.steps, running, len(gaps), best, median))

    try:
        for until in problem.record_steps:
            for stop in pace.stops(at, int(until)):
                for batch in batches:
                    interruption.check()
                    batch.advance(stop)
                at = stop
                report()
            records.append(_joined([batch.record() for batch in batches]))
            report()
    except KeyboardInterrupt:
        # The weights may be ahead of the last record, and a result must describe its weights.
        records.append(_joined([batch.record() for batch in batches]))
        return True, records
    return False, records


class _Pace:
    """Cuts the way to the next record into blocks of about `PACE` seconds."""

    def __init__(self) -> None:
        self._steps = 1

    def stops(self, begin: int, end: int) -> Iterator[int]:
        """Step counts behind `begin`, up to `end`; how long the caller takes for one sets the next."""
        while begin < end:
            began = time.perf_counter()
            block = min(self._steps, end - begin)
            begin += block
            yield begin
            seconds = time.perf_counter() - began
            if seconds < PACE / 2 and block == self._steps:
                self._steps *= 2
            elif seconds > 2 * PACE:
                self._steps = max(1, self._steps // 2)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The values of several batches as one, lanes along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- the result -----------------------------------------------------------------------------------

#: The dimensions of what a record and the end of a run hold, behind `seed` and `record`.
DIMENSIONS = {"imbalance": ("interface",)} | dict.fromkeys(
    ("singular_values", "alignment", "eigenvalue_error"), ("mode",)
)


def _dataset(problem: Problem, batches: list[Batch], records: list[dict[str, np.ndarray]]) -> xarray.Dataset:
    """Records and final weights, in data coordinates, as a dataset of results' layout."""
    config, target = problem.config, problem.target
    variables: dict[str, Any] = {
        name: (("seed", "record", *DIMENSIONS.get(name, ())), np.stack(values, axis=1))
        for name, values in ((name, [each[name] for each in records]) for name in records[0])
    }
    final = _joined([batch.finish() for batch in batches])
    labels = [Outcome(code).label for code in final.pop("outcome")]
    variables["outcome"] = ("seed", np.array(labels, dtype=object))
    variables["final_cosines"] = (("seed", "mode", "eigenvalue"), final.pop("final_cosines"))
    last = f"weights_{len(problem.static.widths) - 1}"
    final[last] = np.asarray(target.from_eigenbasis(final[last]), config.precision)
    for layer in range(1, len(problem.static.widths)):
        dimensions = ("seed", f"width_{layer}", f"width_{layer - 1}")
        variables[f"weights_{layer}"] = (dimensions, final[f"weights_{layer}"])
    depth, rank = len(problem.static.widths) - 1, networks.bottleneck(problem.static.widths)
    coordinates = {
        "seed": np.arange(config.seed, config.seed + config.seeds),
        "record": np.arange(len(records)),
        "mode": np.arange(1, rank + 1),
    }
    if depth > 1:
        coordinates["interface"] = np.arange(1, depth)
    else:
        del variables["imbalance"]
    return xarray.Dataset(variables, coordinates)


def _references(problem: Problem) -> dict[str, Any]:
    """What the records are compared with: the target and the optimum."""
    target, rank = problem.target, networks.bottleneck(problem.static.widths)
    loss: Loss = LOSSES.build(problem.config.loss)
    optimum = jnp.diagonal(loss.minimizer(target.in_eigenbasis(), rank))[:rank]
    return {
        "minimum": float(loss.minimum(target, rank)),
        "target_trace": float(jnp.sum(target.eigenvalues)),
        "optimal_singular_values": ("mode", np.sqrt(optimum)),
        "target_eigenvalues": ("eigenvalue", np.asarray(target.eigenvalues)),
        "target_eigenvectors": (("feature", "eigenvalue"), np.asarray(target.eigenvectors)),
    }


def _with_samples(dataset: xarray.Dataset, samples: data.Samples) -> xarray.Dataset:
    """The dataset with some of the data, and what to add to a generated sample to be like them."""
    rows = np.asarray(samples.values)
    chosen = np.linspace(0, len(rows) - 1, min(REAL_SAMPLES, len(rows))).astype(int)
    shape = {} if samples.image_shape is None else {"image_shape": np.array(samples.image_shape)}
    return dataset.assign(
        sample_mean=("feature", rows.mean(axis=0) * samples.center),
        real_samples=(("example", "feature"), rows[chosen]),
    ).assign_attrs(shape)


def _attributes(problem: Problem, interrupted: bool, seconds: float) -> dict[str, Any]:
    """What a result says about where it comes from."""
    config = problem.config
    return results.provenance() | {
        "configuration": config.json(),
        "widths": np.array(problem.static.widths),
        "precision": config.precision,
        "seed": config.seed,
        "seeds": config.seeds,
        "wall_seconds": seconds,
        "interrupted": int(interrupted),
        "schema": results.SCHEMA,
    }
