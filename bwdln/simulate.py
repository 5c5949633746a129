"""Configuration -> result: check everything, build the target and the starts, run the lanes.

Targets and starts are built in float64, on the CPU, whatever the precision of the run, and moved
into the target's eigenbasis; every seed is a lane.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  JAX calls its LAPACK; loaded here, so that its threads can be limited
import threadpoolctl
import xarray
from jax import lax

from bwdln import compilation, data, distribution, initializations, networks, results, targets
from bwdln import config as configuration
from bwdln.certification import certified, check_certifiable
from bwdln.config import Config
from bwdln.dynamics.base import DYNAMICS, Dynamics, Outcome
from bwdln.errors import InvalidOption, check, within
from bwdln.initializations import STARTS
from bwdln.interruption import Interruption
from bwdln.lanes import Lanes, Progress
from bwdln.losses import LOSSES, Loss
from bwdln.program import Lane, Static
from bwdln.record_points import record_points
from bwdln.registry import Choice, load_plugins
from bwdln.targets import Target
from bwdln.types import Array, Scalar, Weights, Widths

#: How many real samples a result keeps, for the eye.
REAL_SAMPLES = 64
#: Largest imbalance of a balanced start, relative to the squared size of its layers.
BALANCED = 1e-8


class Problem(NamedTuple):
    """A checked configuration with its target, all of it concrete.

    `widths` are those of the network, or for a depth that is no integer those of the smallest one
    with its latent dimension, bottleneck and dimension. `start_widths` are those of the start.
    """

    config: Config
    static: Static
    lane: Lane
    target: Target
    samples: data.Samples | None
    dynamics: Dynamics
    record_points: np.ndarray
    widths: Widths
    start_widths: Widths


class Start(NamedTuple):
    """Where the lanes of problems begin, in data coordinates, float64; lanes along the first axis.

    `weights` is what moves: the layers, or for an end-to-end flow the reduced generator (n, k), of
    the generator `end_to_end` (n, m) = reduced generator · `rows` (k, m).
    """

    weights: Weights
    end_to_end: Array
    rows: Array | None


def run(config: Config, *, on_progress: Callable[[Progress], None] | None = None) -> results.Result:
    """Run every seed of a configuration as a lane, and return the records and final weights.

    The lane of seed s is the same whatever other lanes run beside it. Ctrl-C ends the run within a
    fraction of a second or, while something compiles, after that: the result then holds what was
    recorded, with the attribute `interrupted` = 1. A second Ctrl-C gives up at once.

    Raises `InvalidOption`, before anything compiles, for a configuration that cannot be run.
    """
    began = time.perf_counter()
    with Interruption() as interruption:
        problems = [prepare(config)]
        history = _integrated(problems, on_progress, interruption)
    return finished(problems, history, time.perf_counter() - began)[0]


def run_together(
    problems: Sequence[Problem],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    places: int | None = None,
) -> list[results.Result]:
    """Run problems that differ only in traced numbers and seeds as lanes of one program.

    All must have the same `static` part, the same start but for its numbers, and as many records. Calls with
    the same `places`, at least as many as lanes, share what is compiled. The results are in the order of the
    problems; see `run`.
    """
    began = time.perf_counter()
    with Interruption() as interruption:
        history = _integrated(problems, on_progress, interruption, places)
    return finished(problems, history, time.perf_counter() - began)


class History(NamedTuple):
    """What lanes went through: their start, each record, and their end; lanes along the first axis."""

    start: Start
    records: list[dict[str, np.ndarray]]
    final: dict[str, np.ndarray]
    interrupted: bool


def _integrated(
    problems: Sequence[Problem],
    on_progress: Callable[[Progress], None] | None,
    interruption: Interruption,
    places: int | None = None,
) -> History:
    start, lanes = begin(problems, places=places)

    def advance() -> bool:
        interrupted = lanes.run(points(problems), on_progress, interruption.check)
        if interrupted and distribution.processes() > 1:  # the others have other records by now
            raise KeyboardInterrupt
        return interrupted

    return history(start, lanes, advance)


def history(start: Start, lanes: Lanes, advance: Callable[[], bool]) -> History:
    """What all lanes go through, those of other processes too; `advance` says whether it was interrupted."""
    with distribution.together():
        interrupted = advance()
        part = lanes.records, lanes.finish()
    records, final = distribution.gathered(part, len(start.end_to_end))
    return History(start, records, final, interrupted)


def finished(problems: Sequence[Problem], history: History, seconds: float) -> list[results.Result]:
    """The result of each problem, from its part of the lanes, which ran for so many seconds."""
    done, taken, origin = [], 0, results.provenance()
    for problem in problems:
        own = slice(taken, taken + problem.config.seeds)
        taken = own.stop
        with _on_cpu():
            parts = jax.tree.map(lambda leaf, own=own: leaf[own], history[:3])
            variables, coordinates = _dataset(problem, *parts)
        attributes = origin | _attributes(problem, history.interrupted, seconds)
        done.append(results.Result(xarray.Dataset(variables, coordinates, attributes)))
    return done


def points(problems: Sequence[Problem]) -> np.ndarray:
    """Where on its clock each lane of this process is looked at; (lanes, records)."""
    stacked: np.ndarray = _stacked([(problem.record_points, problem.config.seeds) for problem in problems])
    return distribution.own(stacked, len(stacked))


def begin(
    problems: Sequence[Problem], devices: Sequence[jax.Device] | None = None, places: int | None = None
) -> tuple[Start, Lanes]:
    """The starts and the lanes of problems as `run_together` takes them, before the first step.

    They are spread over the `devices`, all there are if none are given. Calls with the same `places`, at
    least as many as lanes, share what is compiled. Where several processes share the program, the lanes are
    those of this one, the start is that of all.
    """
    start, first = starts(problems), problems[0]
    every = _stacked([(problem.lane, problem.config.seeds) for problem in problems])
    lane, weights = distribution.own((every, _in_eigenbasis(problems, start.weights)), len(start.end_to_end))
    clock, precision = first.dynamics.clock, first.config.precision
    own_places = None if places is None else -(-places // distribution.processes())
    return start, Lanes(first.static, lane, weights, precision, clock, devices, own_places)


def _stacked(parts: Sequence[tuple[Any, int]]) -> Any:
    """Trees of arrays, each repeated as often as it says, along a new first axis."""
    counts = [count for _, count in parts]
    trees = [tree for tree, _ in parts]
    return jax.tree.map(lambda *leaves: np.repeat(np.stack(leaves), counts, axis=0), *trees)


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
    # Only numbers are looked at here, so the gradients need not be any; the depth is checked below.
    dynamics: Dynamics = DYNAMICS.build(config.dynamics, lambda weights: weights, 1.0)
    with _on_cpu():
        target, samples = _target(config.target)
    _check_scale(target, config.precision)
    with within("network"):
        widths, depth = _widths(target.dimension, config, dynamics)
    start_widths = _start_widths(config, widths, dynamics, depth)
    takes = f"false with {config.dynamics.name}, which has no layers"
    check(not (config.record.sharpness and dynamics.end_to_end), "record.sharpness", True, takes)
    if config.record.certificates:
        check_certifiable(config)
    loss, loss_numbers = configuration.split(LOSSES.resolved(config.loss))
    motion, motion_numbers = configuration.split(DYNAMICS.resolved(config.dynamics))
    _check_numbers("loss", loss_numbers, config.precision)
    _check_numbers("dynamics", motion_numbers, config.precision)
    moved = (networks.bottleneck(widths), widths[-1]) if dynamics.end_to_end else widths
    functions = (LOSSES[loss.name], DYNAMICS[motion.name])
    kept = (config.record.end_to_end, config.record.sharpness)
    return Problem(
        config=config,
        static=Static(moved, loss, motion, functions, *kept),
        lane=Lane(np.asarray(target.eigenvalues), depth, loss_numbers, motion_numbers),
        target=target,
        samples=samples,
        dynamics=dynamics,
        record_points=record_points(dynamics, config.record),
        widths=widths,
        start_widths=start_widths,
    )


def _target(choice: Choice) -> tuple[Target, data.Samples | None]:
    """The target of a choice and the data behind it: made once for many jobs, as long as its files stay."""
    states = tuple(_state(str(value)) for name, value in choice.options if name == "path")
    make = _same_target.__wrapped__ if None in states else _same_target
    return make(targets.TARGETS.resolved(choice), targets.TARGETS[choice.name], states)


@functools.lru_cache(maxsize=64)
def _same_target(choice: Choice, *_made_of: object) -> tuple[Target, data.Samples | None]:
    return targets.TARGETS.build(choice), data.samples(choice)


def _state(path: str) -> tuple[int, ...] | None:
    """What differs once a file is written anew; None for what is no file, as a folder with files in it."""
    try:
        found = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return None
    whole = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    return whole if stat.S_ISREG(found.st_mode) else None


def _widths(dimension: int, config: Config, dynamics: Dynamics) -> tuple[Widths, float]:
    """The widths of the network and its number of layers, which for an end-to-end flow is any."""
    network, depth = config.network, config.network.depth
    if not dynamics.end_to_end or depth is None or isinstance(depth, int):
        widths = networks.widths(dimension, network)
        return widths, len(widths) - 1.0
    check(1 <= depth < 2**31, "depth", depth, "a number from 1 to below 2^31")
    whole = dataclasses.replace(network, depth=math.ceil(depth))
    return initializations.shortest(networks.widths(dimension, whole)), depth


def _start_widths(config: Config, widths: Widths, dynamics: Dynamics, depth: float) -> Widths:
    """The widths to start with: for a balanced start of an end-to-end flow, as few as tell it."""
    if not dynamics.end_to_end or depth == 1:
        return widths
    with within("initialization"):
        balanced = initializations.balanced_by_construction(STARTS.resolved(config.initialization))
        takes = f"true with {config.dynamics.name}, which is the flow of balanced layers"
        check(balanced is not False, "balanced", False, takes)
    return initializations.shortest(widths) if balanced else widths


def _check_scale(target: Target, precision: str) -> None:
    """Refuse a target whose eigenvalues have no squares in the precision of the run."""
    largest, kind = float(target.eigenvalues[0]), np.finfo(precision)
    lowest, highest = float(kind.tiny) ** 0.5, float(kind.max) ** 0.5
    takes = f"one from {lowest:.0e} to {highest:.0e} in {precision}: scale the data"
    check(lowest <= largest <= highest, "target", f"a largest eigenvalue of {largest:.2g}", takes)


def _check_numbers(group: str, numbers: dict[str, float], precision: str) -> None:
    """Refuse numbers that the precision of the run rounds to 0 or to infinity."""
    kind = np.finfo(precision)
    for name, value in numbers.items():
        held = np.isinf(value) or float(kind.tiny) <= abs(value) <= float(kind.max)
        takes = f"0 or a number from {float(kind.tiny):.0e} to {float(kind.max):.0e} in {precision}"
        check(held, f"{group}.{name}", value, takes)


def set_up_process() -> None:
    """What a run needs of the whole process: float64 in JAX, one thread in LAPACK, compiled programs kept.

    XLA already runs the lanes of a batch side by side. Where LAPACK starts threads of its own below
    that, the two wait for each other: on a busy machine decompositions of 64 × 64 matrices then take
    up to 200 times as long.
    """
    jax.config.update("jax_enable_x64", True)
    compilation.keep_programs()
    _limit_lapack()


@functools.cache
def _limit_lapack() -> None:
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def _on_cpu() -> AbstractContextManager[object]:
    """What is not part of a compiled program is computed on the CPU, which has float64 everywhere."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


# --- starts ---------------------------------------------------------------------------------------


def starts(problems: Sequence[Problem]) -> Start:
    """Where all lanes of the problems begin, by one program, lanes along the first axis.

    Raises `InvalidOption` for an end-to-end flow whose start is not balanced.
    """
    first = problems[0]
    choices = [STARTS.resolved(problem.config.initialization) for problem in problems]
    static, _ = configuration.split(choices[0])
    function = functools.partial(STARTS[static.name], widths=first.start_widths)
    with _on_cpu(), within("initialization"):
        distinct, places = _distinct([problem.target for problem in problems])
        # Options are checked where their numbers are known.
        for place, choice in dict.fromkeys(zip(places, choices, strict=True)):
            known = functools.partial(function, target=distinct[place], **dict(choice.options))
            jax.eval_shape(known, jax.random.key(0))
        seeds = [np.arange(p.config.seed, p.config.seed + p.config.seeds) for p in problems]
        counts = [problem.config.seeds for problem in problems]
        numbers = [configuration.split(choice)[1] for choice in choices]
        lanes = (
            np.concatenate(seeds),
            np.repeat(places, counts),
            _stacked(list(zip(numbers, counts, strict=True))),
        )
        # Each target once, whatever the number of lanes: it may be larger than all else together.
        each_target = jax.tree.map(lambda *leaves: np.stack(leaves), *distinct)
        draw = functools.partial(_drawn, functools.partial(function, **dict(static.options)))
        drawn = jax.jit(draw)(each_target, lanes)
        if first.dynamics.end_to_end:
            return _reduced_start(first, drawn)
        return Start(drawn, jax.vmap(networks.end_to_end)(drawn), None)


def _drawn(
    function: Callable[..., Weights], targets: Target, lanes: tuple[Array, Array, dict[str, Scalar]]
) -> Weights:
    """The start of each lane, from its seed, the place of its target among `targets`, and its numbers."""

    def draw(lane: tuple[Array, Array, dict[str, Scalar]]) -> Weights:
        seed, place, numbers = lane
        target = jax.tree.map(lambda leaf: leaf[place], targets)
        return function(jax.random.key(seed), target=target, **numbers)

    # One after the other: on a CPU several decompositions may wait for each other (`program`).
    weights: Weights = lax.map(draw, lanes)
    return weights


def _distinct(every: Sequence[Target]) -> tuple[list[Target], list[int]]:
    """The targets that differ, and the place of each among them.

    They go by identity: `prepare` makes a target once for many problems, and matrices take long to compare.
    """
    distinct = {id(target): target for target in every}
    places = {identity: place for place, identity in enumerate(distinct)}
    return list(distinct.values()), [places[id(target)] for target in every]


def _reduced_start(problem: Problem, drawn: Weights) -> Start:
    """The start of an end-to-end flow, from layers that must be balanced."""
    squares = sum(jnp.sum(layer**2, axis=(1, 2)) for layer in drawn)
    worst = jnp.max(jax.vmap(networks.imbalance)(drawn), axis=1, initial=0) / squares
    if not float(jnp.max(worst)) <= BALANCED:
        got = f"{problem.config.initialization.name} with a relative imbalance of {float(jnp.max(worst)):.1e}"
        takes = f"a balanced start with {problem.config.dynamics.name} (an imbalance up to {BALANCED:.0e})"
        raise InvalidOption("name", got, takes)
    reduced, rows = jax.vmap(networks.reduction)(drawn)
    return Start((reduced,), jax.vmap(networks.end_to_end)(drawn), rows)


def _in_eigenbasis(problems: Sequence[Problem], weights: Weights) -> Weights:
    """The weights of all lanes, moved from data coordinates into the eigenbases of their targets."""
    parts, taken = [], 0
    with _on_cpu():
        for problem in problems:
            own = weights[-1][taken : taken + problem.config.seeds]
            parts.append(np.asarray(problem.target.to_eigenbasis(own)))
            taken += problem.config.seeds
    return (*weights[:-1], np.concatenate(parts))


# --- the result -----------------------------------------------------------------------------------

#: The dimensions of what a record and the end of a run hold, behind `seed` and `record`.
DIMENSIONS = {"imbalance": ("interface",), "end_to_end": ("feature", "latent")} | dict.fromkeys(
    ("singular_values", "alignment", "eigenvalue_error"), ("mode",)
)


def _dataset(
    problem: Problem, start: Start, records: list[dict[str, np.ndarray]], final: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Variables and coordinates of a result: records, start and final weights, in data coordinates."""
    config = problem.config
    variables: dict[str, Any] = {
        name: (("seed", "record", *DIMENSIONS.get(name, ())), np.stack(values, axis=1))
        for name, values in ((name, [each[name] for each in records]) for name in records[0])
    }
    if "end_to_end" in variables:
        dimensions, recorded = variables["end_to_end"]
        variables["end_to_end"] = (dimensions, _whole(problem, start, recorded))
    rank = networks.bottleneck(problem.widths)
    if config.record.certificates:
        spectrum, depth = np.asarray(problem.target.eigenvalues), float(problem.lane.depth)
        variables |= certified(config, spectrum, depth, rank, variables)
    generators = {
        "initial_end_to_end": np.asarray(start.end_to_end, config.precision),
        "final_end_to_end": _whole(problem, start, final["final_end_to_end"]),
    }
    variables |= {name: (("seed", "feature", "latent"), value) for name, value in generators.items()}
    labels = [Outcome(code).label for code in final["outcome"]]
    variables["outcome"] = ("seed", np.array(labels, dtype=object))
    variables["final_cosines"] = (("seed", "mode", "eigenvalue"), final["final_cosines"])
    variables["margin"] = ("seed", final["margin"])
    if not problem.dynamics.end_to_end:
        variables |= _final_layers(problem, final)
    coordinates = {
        "seed": np.arange(config.seed, config.seed + config.seeds),
        "record": np.arange(len(records)),
        "mode": np.arange(1, rank + 1),
    }
    if len(problem.static.widths) > 2:
        coordinates["interface"] = np.arange(1, len(problem.static.widths) - 1)
    else:
        variables.pop("imbalance", None)
    return variables | _references(problem) | _samples(problem.samples), coordinates


def _whole(problem: Problem, start: Start, generators: np.ndarray) -> np.ndarray:
    """Generators in data coordinates, of shape (n, m), from those that moved; seeds come first."""
    rotated = problem.target.from_eigenbasis(generators)
    if start.rows is not None:
        rows = start.rows.reshape(len(start.rows), *[1] * (generators.ndim - 3), *start.rows.shape[1:])
        rotated = rotated @ rows
    return np.asarray(rotated, problem.config.precision)


def _final_layers(problem: Problem, final: dict[str, np.ndarray]) -> dict[str, Any]:
    """The final layers as variables, in data coordinates."""
    last = len(problem.widths) - 1
    layers = {layer: final[f"weights_{layer}"] for layer in range(1, last + 1)}
    layers[last] = np.asarray(problem.target.from_eigenbasis(layers[last]), problem.config.precision)
    return {
        f"weights_{layer}": (("seed", f"width_{layer}", f"width_{layer - 1}"), values)
        for layer, values in layers.items()
    }


def _references(problem: Problem) -> dict[str, Any]:
    """What the records are compared with: the target and the optimum."""
    target, rank = problem.target, networks.bottleneck(problem.widths)
    loss: Loss = LOSSES.build(problem.config.loss)
    optimum = jnp.diagonal(loss.minimizer(target.in_eigenbasis(), rank))[:rank]
    return {
        "minimum": float(loss.minimum(target, rank)),
        "target_trace": float(jnp.sum(target.eigenvalues)),
        "optimal_singular_values": ("mode", np.sqrt(optimum)),
        "target_eigenvalues": ("eigenvalue", np.asarray(target.eigenvalues)),
        "target_eigenvectors": (("feature", "eigenvalue"), np.asarray(target.eigenvectors)),
    }


def _samples(samples: data.Samples | None) -> dict[str, Any]:
    """Some of the data, and what to add to a generated sample to be like them."""
    if samples is None:
        return {}
    rows = np.asarray(samples.values)
    chosen = np.linspace(0, len(rows) - 1, min(REAL_SAMPLES, len(rows))).astype(int)
    return {
        "sample_mean": ("feature", rows.mean(axis=0) * samples.center),
        "real_samples": (("example", "feature"), rows[chosen]),
    }


def _attributes(problem: Problem, interrupted: bool, seconds: float) -> dict[str, Any]:
    """What a result says about where it comes from."""
    config = problem.config
    image = problem.samples.image_shape if problem.samples is not None else None
    shape = {} if image is None else {"image_shape": np.array(image)}
    return shape | {
        "configuration": config.json(),
        "widths": np.array(problem.widths),
        "depth": float(problem.lane.depth),
        "clock": problem.dynamics.clock,
        "precision": config.precision,
        "seed": config.seed,
        "seeds": config.seeds,
        "wall_seconds": seconds,
        "interrupted": int(interrupted),
        "schema": results.SCHEMA,
    }
