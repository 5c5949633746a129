"""Seconds per step and lane of gradient descent: products, gradients of all layers, and the update.

Ours is timed by the programs that `experiments.train` runs, side by side as there, without records, which the
loops of others do not have either. These have one lane, where they can many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.suite import loops, measure
from benchmarks.suite.measure import Row, Settings, Work
from bwdln import lanes, simulate
from bwdln.config import Config, from_mapping

#: After so many steps from the same start, of this size, generators are compared.
COMPARED, STEP_SIZE = 20, 1e-3
AGREES = {"float64": 1e-9, "float32": 1e-4}
#: The step size of the paper, with which steps are timed.
TIMED_STEP_SIZE = 1e-5
KERNELS = ("auto", "exact", "products")


class Case(NamedTuple):
    """A network and how many lanes of it."""

    widths: tuple[int, ...]
    lanes: int
    precision: str = "float64"
    condition: float = 10.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """n, depth and bottleneck."""
        return self.widths[-1], len(self.widths) - 1, min(self.widths)

    def __str__(self) -> str:
        n, depth, k = self.shape
        equal = k == max(self.widths)
        sizes = f"n = {n}, depth {depth}" if equal else f"widths {'-'.join(map(str, self.widths))}"
        condition = f", condition {self.condition:.0e}" if self.condition > 10 else ""
        return f"{sizes}, {self.lanes} lanes, {self.precision}{condition}"


def square(n: int, depth: int) -> tuple[int, ...]:
    """Widths that are all n."""
    return (n,) * (depth + 1)


SHORT = (Case(square(5, 3), 2), Case((6, 2, 6), 2))


def cases() -> Iterator[Case]:
    """Depths, sizes, bottlenecks, lanes, precisions and condition numbers."""
    for depth in (1, 3, 10, 100):
        yield from (Case(square(20, depth), count) for count in (1, 128))
    yield from (Case(square(20, 3), 128, "float32"), Case(square(20, 3), 128, condition=1e4))
    yield from (Case(square(20, 3), count) for count in (16, 1024))
    yield from (Case(square(100, 3), count) for count in (1, 16))
    yield from (Case(square(300, 3), 4), Case(square(500, 3), 2))
    yield from (Case((500, 16, 500), 1), Case((16, 500, 500, 500), 1), Case((500, 500, 16, 500), 8))


def job(case: Case, *, kernel: str = "auto", step_size: float = TIMED_STEP_SIZE) -> Config:
    """Configurations with balanced orthogonal starts and a geometric target."""
    config: Config = from_mapping(
        {
            "target": {
                "name": "geometric",
                "dimension": case.widths[-1],
                "condition_number": case.condition,
            },
            "network": {"widths": list(case.widths)},
            "initialization": {"name": "orthogonal", "balanced": True},
            "loss": {"name": "bures_wasserstein", "kernel": kernel},
            "dynamics": {"name": "gradient_descent", "step_size": step_size, "steps": 10**9},
            "record": {"count": 1},
            "seeds": case.lanes,
            "precision": case.precision,
        }
    )
    return config


class Ours:
    """All lanes of a configuration, which advance by steps."""

    def __init__(self, *configs: Config) -> None:
        problems = [simulate.prepare(config) for config in configs]
        _, self.running = simulate.begin(problems)
        self._done = 0

    def advance(self, steps: int) -> None:
        """So many steps of every lane, and a record."""
        self._done += steps
        self.running.advance(np.full(self.running.count, self._done, np.int32))

    def advance_only(self, steps: int) -> None:
        """So many steps of every lane by the same programs, side by side as there, without the record."""
        never = np.int32(2**30)

        def bring(batch: lanes.Batch) -> None:
            stops = np.full(len(batch.members), never)
            state, _, _ = self.running.program.advance(batch.lanes, batch.state, stops, np.int32(steps))
            batch.state = jax.block_until_ready(state)

        with ThreadPoolExecutor(lanes._workers(self.running.devices)) as executor:
            list(executor.map(bring, self.running.batches))

    def generators(self) -> np.ndarray:
        """The generators where the lanes are, in the eigenbasis."""
        return np.asarray(self.running.finish()["final_end_to_end"], float)


def start(case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """The layers of all lanes at the start, in the eigenbasis, and the eigenvalues of the target."""
    problem = simulate.prepare(job(case))
    weights = [np.asarray(layer, case.precision) for layer in simulate.starts([problem]).weights]
    vectors = np.asarray(problem.target.eigenvectors, case.precision)
    weights[-1] = vectors.T @ weights[-1]
    return weights, np.asarray(problem.target.eigenvalues, case.precision)


# --- the loops of others --------------------------------------------------------------------------


class Peer(NamedTuple):
    """A loop, with one lane or with all of them."""

    name: str
    build: loops.Build
    batched: bool
    threads: tuple[int, ...]


def peers(case: Case) -> list[Peer]:
    """The loops for a case; at a bottleneck the n × n Gram matrix is singular, and its forms are left out."""
    n, depth, _ = case.shape
    some = measure.thread_counts() if n >= 100 or depth == 3 else (1,)
    found = [Peer("NumPy loop, SVD", loops.NumPyLoop, False, some)]
    bottleneck = min(case.widths) < min(case.widths[0], case.widths[-1])
    if bottleneck:
        factored = functools.partial(loops.NumPyLoop, factored=True)
        found.append(Peer("NumPy loop, k × k factor", factored, False, some))
    if not measure.installed("torch"):
        return found
    for kind, loop in (("autograd", loops.TorchAutograd), ("closed form", loops.TorchClosed)):
        for svd in (True,) if bottleneck else (True, False):
            name = f"PyTorch loop, {'SVD' if svd else 'eigh of Gram'}, {kind}"
            found.append(Peer(name, functools.partial(loop, svd=svd), False, some))
    if case.lanes > 1:
        for svd in (True,) if bottleneck else (True, False):
            name = f"PyTorch batched, {'SVD' if svd else 'eigh of Gram'}, closed form"
            found.append(Peer(name, functools.partial(loops.TorchClosed, svd=svd), True, some))
    return found


# --- the lines ------------------------------------------------------------------------------------


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    for case in SHORT if settings.short else cases():
        yield from _of_case(case, settings)


def _of_case(case: Case, settings: Settings) -> Iterator[Row]:
    layers, eigenvalues = start(case)
    expected = reference(layers, eigenvalues)
    rows: list[Row] = []
    works: list[tuple[Work, int] | None] = []
    for kernel in KERNELS:
        row = _row(case, f"bwdln, {kernel}", True, "")
        ours = Ours(job(case, kernel=kernel, step_size=STEP_SIZE))
        ours.advance(COMPARED)
        row.error = measure.relative(ours.generators(), expected)
        rows.append(row)
        if not settings.short:
            works.append((Work(Ours(job(case, kernel=kernel)).advance_only, least=20), case.lanes))
    for peer in peers(case):
        own = layers if peer.batched else [layer[0] for layer in layers]
        lanes_here = case.lanes if peer.batched else 1
        loop = peer.build(own, eigenvalues, STEP_SIZE)
        try:
            for _ in range(COMPARED):
                loop.step()
        except Exception as failure:  # a peer that fails is a line of the table, too
            rows.append(_row(case, peer.name, False, f"failed: {type(failure).__name__}"))
            rows[-1].error = math.inf
            if not settings.short:
                works.append(None)
            continue
        found = loops.end_to_end(loop.layers).reshape(lanes_here, *expected.shape[1:])
        error = measure.relative(found, expected[:lanes_here])
        for count in (1,) if settings.short else peer.threads:
            threads = f", {count} thread{'s' if count > 1 else ''}" if len(peer.threads) > 1 else ""
            note = "" if peer.batched or case.lanes == 1 else "one lane at a time"
            rows.append(_row(case, peer.name + threads, False, note))
            rows[-1].error = error
            if not settings.short:
                again = peer.build(own, eigenvalues, TIMED_STEP_SIZE)
                works.append((measure.repeated(again.step, count), lanes_here))
    for row in rows:
        row.agrees = row.error <= AGREES[case.precision]
    if not settings.short:
        floor = floor_seconds(case)
        timed_rows = [(row, *work) for row, work in zip(rows, works, strict=True) if work]
        timings = measure.timings([work for _, work, _ in timed_rows], settings)
        for (row, _, count), timing in zip(timed_rows, timings, strict=True):
            row.seconds, row.minimum = timing.median / count, timing.minimum / count
            row.spread, row.ceiling = timing.spread, floor / row.seconds
    yield from rows


def _row(case: Case, name: str, ours: bool, note: str) -> Row:
    if jax.default_backend() != "cpu" and not ours:
        note = f"{note}; on the CPU".removeprefix("; ")
    n, depth, k = case.shape
    conditioning = f"condition {case.condition:.0e} (target)"
    sizes = n, depth, k, case.lanes
    return Row("descent", str(case), name, *sizes, case.precision, conditioning, ours, note=note)


def reference(layers: Sequence[np.ndarray], eigenvalues: np.ndarray) -> np.ndarray:
    """The generators of all lanes after the compared steps, in float64, lane by lane."""
    found = []
    for lane in range(len(layers[0])):
        own = [np.asarray(layer[lane], float) for layer in layers]
        loop = loops.NumPyLoop(own, np.asarray(eigenvalues, float), STEP_SIZE)
        for _ in range(COMPARED):
            loop.step()
        found.append(loops.end_to_end(loop.layers))
    return np.array(found)


def floor_seconds(case: Case) -> float:
    """The seconds of the products of a step alone: W_j ⋯ W_1, both ways, and one for each gradient.

    Of equal layers 3 a layer, less the ends, in all 3 (N − 1) and at least 2, for the polar factor; at a
    bottleneck as many of n × k with k × k.
    """
    n, depth, k = case.shape
    return max(2, 3 * (depth - 1)) * measure.product_seconds(n, k, case.precision, case.lanes)
