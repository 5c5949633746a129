"""How everything here is timed, and what a line of the table holds.

A contestant is warmed up, then called often enough to fill a slice of time; the slices of all contestants
of a case take turns, so that a machine that slows down slows all of them. Reported are the median, the
minimum and the spread (interquartile range over median) of the slices.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax import lax

from bwdln import lanes
from bwdln.program import compiled

#: Slices go up to so many times the seconds asked for, where the least work fills more.
LONGEST = 10
#: The largest error of values and gradients (or of what else is compared), relative, that counts as equal.
VALUE, GRADIENT = {"float64": 1e-8, "float32": 1e-4}, {"float64": 1e-6, "float32": 1e-2}


class Settings(NamedTuple):
    """How long things are measured."""

    short: bool
    seconds: float
    repeats: int


@dataclass
class Row:
    """A line of the table: what one contestant did in one case."""

    section: str
    case: str
    contestant: str
    n: int
    depth: int
    k: int
    batch: int
    precision: str
    conditioning: str
    ours: bool = False
    # Of a lane: for one evaluation, or for one step.
    seconds: float = math.nan
    minimum: float = math.nan
    spread: float = math.nan
    # The largest relative error against the reference; nan where nothing was compared.
    error: float = math.nan
    agrees: bool = True
    # The time that its matrix products alone take on this machine, over its time.
    ceiling: float = math.nan
    note: str = ""


class Timing(NamedTuple):
    """Seconds for a unit of work."""

    median: float
    minimum: float
    spread: float


@dataclass
class Work:
    """What is timed: `do(count)` does so many units and returns when they are done."""

    do: Callable[[int], object]
    # Units in a slice, at least: what does not belong to a unit must not show.
    least: int = 1
    threads: int = 1
    units: int = field(default=1, repr=False)


def repeated(call: Callable[[], object], threads: int = 1) -> Work:
    """The work of one call, which waits for its result."""

    def do(count: int) -> None:
        for _ in range(count):
            call()

    return Work(do, threads=threads)


def timings(works: Sequence[Work], settings: Settings) -> list[Timing]:
    """The seconds for a unit of each, in turns."""
    slices: list[list[float]] = [[] for _ in works]
    for work in works:
        with threads(work.threads):
            _warm_up(work, settings.seconds)
    for _ in range(settings.repeats):
        for work, taken in zip(works, slices, strict=True):
            with threads(work.threads):
                taken.append(_seconds(work, work.units) / work.units)
    return [_timing(each) for each in slices]


def _warm_up(work: Work, seconds: float) -> None:
    """Call it with growing counts, and find how many units fill a slice."""
    _seconds(work, 1)
    units = 1
    while True:
        taken = _seconds(work, units)
        if seconds / 2 <= taken < LONGEST * seconds:  # a machine that was busy for once must not stop this
            taken = min(taken, _seconds(work, units))
        if taken >= seconds / 2:
            break
        units *= 2
    each = taken / units
    most = max(1, int(LONGEST * seconds / each))
    work.units = max(1, math.ceil(seconds / each), min(work.least, most))


def _seconds(work: Work, units: int) -> float:
    began = time.perf_counter()
    work.do(units)
    return time.perf_counter() - began


def _timing(slices: Sequence[float]) -> Timing:
    median = statistics.median(slices)
    if len(slices) < 2:
        return Timing(median, min(slices), 0.0)
    first, _, third = statistics.quantiles(slices, n=4, method="inclusive")
    return Timing(median, min(slices), (third - first) / median)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads in the linear algebra of NumPy and PyTorch; ours always has one there."""
    if count == 1:  # as `simulate.set_up_process` and `one_thread` have it
        yield
        return
    try:
        _torch_threads(count)
        with threadpoolctl.threadpool_limits(limits=count, user_api="blas"):
            yield
    finally:
        _torch_threads(1)


def one_thread() -> None:
    """One thread in PyTorch, too: the state that `threads` comes back to."""
    _torch_threads(1)


def _torch_threads(count: int) -> None:
    if installed("torch"):
        import torch

        torch.set_num_threads(count)


def thread_counts() -> tuple[int, ...]:
    """One thread, and one for each core up to two."""
    return (1, 2) if lanes.cores() > 1 else (1,)


@functools.cache
def installed(package: str) -> bool:
    """Whether a peer can be imported; says so once where not."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed: its lines are left out", flush=True)
    return found


def relative(found: Any, expected: np.ndarray) -> float:
    """The largest relative error over the lanes, each by its norm; infinite where it is not a number."""
    found = np.asarray(found, float).reshape(len(expected), -1)
    flat = expected.reshape(len(expected), -1)
    errors = np.linalg.norm(found - flat, axis=1) / np.linalg.norm(flat, axis=1)
    return float(np.max(errors)) if np.all(np.isfinite(errors)) else math.inf


# --- the floor ------------------------------------------------------------------------------------


@functools.cache
def product_seconds(n: int, k: int, precision: str, batch: int) -> float:
    """The seconds of a product of n × k and k × k matrices, of one lane of a batch, as fast as here.

    On a CPU blocks of up to 8 lanes stay in the cache, on as many cores as there are blocks; on an
    accelerator the whole batch goes at once.
    """
    on_cpu = jax.default_backend() == "cpu"
    block = min(batch, 8) if on_cpu else batch
    workers = max(1, min(lanes.cores(), batch // block)) if on_cpu else 1
    times = max(1, min(2000, int(2e8 / (n * k * k * block))))

    def chain(left: jax.Array, right: jax.Array) -> jax.Array:
        return lax.fori_loop(0, times, lambda _, product: product @ right, left)

    right = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(k, k)))[0], precision)
    rights = jnp.broadcast_to(right, (block, k, k)) + 0.0
    left = jnp.ones((block, n, k), precision)
    run = compiled(chain)
    jax.block_until_ready(run(left, rights))
    with ThreadPoolExecutor(workers) as executor:

        def all_workers() -> None:
            for each in [executor.submit(run, left, rights) for _ in range(workers)]:
                jax.block_until_ready(each.result())

        (timing,) = timings([repeated(all_workers)], Settings(False, 0.05, 5))
    return timing.minimum / (times * block * workers)


def processor() -> str:
    """The name of the processor, as the system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return os.uname().machine
