"""The host's side of a run: lanes in batches, side by side on all cores, until each has ended.

A lane is one run: the traced numbers of a configuration and a start. Lanes are advanced in batches
of a fixed size, from record to record; in between the host looks at progress and at Ctrl-C, and
packs the lanes that still run into fewer batches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from bwdln.dynamics import integrate
from bwdln.dynamics.base import Outcome, State
from bwdln.program import Lane, Static, program
from bwdln.types import Array, Weights

#: On a CPU a program advances one lane, and as many programs as there are cores run side by side.
#: More lanes in a program are no faster there (benchmarks/descent.py), lanes with steps of their own
#: would wait for each other, and above all a decomposition of several matrices waits for threads
#: that may be waiting for another one, for ever.
LANES_PER_BATCH_ON_CPU = 1
#: On an accelerator all lanes go together; when this fraction of them is left, they move to a
#: program for so many.
FEWER = 4
#: Seconds between two looks at progress and at Ctrl-C, about.
PACE = 0.25

Tree = TypeVar("Tree")


class Progress(NamedTuple):
    """How far lanes are: where those that run are on the clock (`step` or `time`), the median.

    Then its end, how many of them run, and relative gaps.
    """

    position: float
    end: float
    clock: str
    running: int
    lanes: int
    best_gap: float
    median_gap: float


@dataclass
class Batch:
    """Lanes that one call advances together: `members` are their numbers, -1 for padding."""

    members: np.ndarray
    lanes: Lane
    state: State

    def running(self) -> np.ndarray:
        """Which members have not ended."""
        return (np.asarray(self.state.outcome) == Outcome.RUNNING) & (self.members >= 0)


class Lanes:
    """All lanes of one static part: run them, then finish them.

    `lane` and `weights` hold every lane along the first axis of each leaf; weights are in the
    eigenbasis of the target. `clock` is that of the dynamics.
    """

    def __init__(self, static: Static, lane: Lane, weights: Weights, precision: str, clock: str) -> None:
        self.count = len(lane.eigenvalues)
        self.program = program(static)
        self._clock, self._precision = clock, precision
        self._lane = jax.tree.map(lambda leaf: np.asarray(leaf, precision), lane)
        self._latest: dict[str, np.ndarray] = {}
        self._final: dict[str, np.ndarray] = {}
        self._attempts, self._stopping = 1, False
        self.batches: list[Batch] = []
        layers = jax.tree.map(lambda leaf: np.asarray(leaf, precision), weights)
        for members in _cut(np.arange(self.count), self._batch_size(self.count)):
            lanes = _placed(self._lane, members)
            state, known = self.program.init(lanes, _placed(layers, members))
            self.batches.append(_batch(members, lanes, state))
            self._scatter(self.batches[-1], known, self._final)

    def run(
        self,
        points: Float[Array, "lanes records"],
        on_progress: Callable[[Progress], None] | None,
        check: Callable[[], None],
    ) -> tuple[bool, list[dict[str, np.ndarray]]]:
        """Advance all lanes from record to record, at the `points` of each lane on the clock.

        Returns whether it was interrupted, and the records, with the lanes along the first axis.
        `check` is called now and then and interrupts by raising `KeyboardInterrupt`.
        """
        points = points.astype(np.int32 if self._clock == "step" else self._precision)
        told = _Told(on_progress, self._clock, points[:, -1])
        records: list[dict[str, np.ndarray]] = []
        try:
            for until in points.T:

                def pause(until: np.ndarray = until) -> None:
                    check()
                    told.sometimes(self, until)

                self.advance(until, pause)
                records.append({name: values.copy() for name, values in self._latest.items()})
                told.now(self, until)
                self._pack()
        except KeyboardInterrupt:
            # The weights may be ahead of the last record, and a result must describe its weights.
            self._attempts = 0
            self.advance(points[:, -1])
            records.append(self._latest)
            return True, records
        return False, records

    def advance(self, until: np.ndarray, pause: Callable[[], None] = lambda: None) -> None:
        """Bring every running lane to its `until` on the clock, (lanes,), and look at it there.

        The batches go side by side, on a CPU on all cores. `pause` is called about every `PACE`
        seconds; what it raises stops them where they are.
        """
        pause()
        running = [batch for batch in self.batches if batch.running().any()]
        if running and not self._latest:  # alone: it compiles, and makes the arrays all write to
            self._bring(running.pop(0), until, pause)
        with ThreadPoolExecutor(_workers()) as executor:
            waiting = {executor.submit(self._bring, batch, until) for batch in running}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=PACE)
                    for each in done:
                        each.result()
                    pause()
            except BaseException:
                self._stopping = True
                raise
            finally:
                executor.shutdown(cancel_futures=True)
                self._stopping = False

    def _bring(self, batch: Batch, until: np.ndarray, pause: Callable[[], None] = lambda: None) -> None:
        """Bring a batch to its `until` and look at it, in blocks that take about `PACE` seconds."""
        stops, unfinished = until[batch.members], True
        while unfinished and not self._stopping:
            # Threads share the number: it decides how long a block is, and nothing else.
            began, attempts = time.perf_counter(), np.int32(self._attempts)
            batch.state, more, seen = self.program.advance(batch.lanes, batch.state, stops, attempts)
            unfinished = bool(more)
            seconds = time.perf_counter() - began
            if not unfinished:
                self._scatter(batch, seen, self._latest)
            elif seconds < PACE / 2:
                self._attempts = min(2 * int(attempts), 2**30)
            elif seconds > 2 * PACE:
                self._attempts = max(1, int(attempts) // 2)
            pause()

    def finish(self) -> dict[str, np.ndarray]:
        """What is saved of the lanes at the end: outcomes, cosines, weights in the eigenbasis."""
        for batch in self.batches:
            self._scatter(batch, self.program.finish(batch.state), self._final)
        return self._final

    def running(self) -> int:
        """How many lanes have not ended."""
        return sum(int(batch.running().sum()) for batch in self.batches)

    def positions(self) -> np.ndarray:
        """Where the lanes that run are on the clock; (running,)."""
        parts = [np.asarray(getattr(b.state, self._clock))[b.running()] for b in self.batches]
        return np.concatenate(parts)

    def latest(self, name: str) -> np.ndarray:
        """A quantity of every lane at its last record; empty before the first."""
        return self._latest.get(name, np.empty(0))

    def _pack(self) -> None:
        """Put the lanes that still run together where that leaves a quarter of the places or more.

        Those that took most evaluations come first: lanes of a batch should need about as many.
        """
        running, places = self.running(), sum(len(batch.members) for batch in self.batches)
        size = self._batch_size(running)
        if not running or -(-running // size) * size > 0.75 * places:
            return
        for batch in self.batches:
            if not batch.running().all():
                self._scatter(batch, self.program.finish(batch.state), self._final)
        states = _concatenated([batch.state for batch in self.batches])
        members = np.concatenate([batch.members for batch in self.batches])
        kept = np.flatnonzero(np.concatenate([batch.running() for batch in self.batches]))
        kept = kept[np.argsort(-states.evaluations[kept], kind="stable")]
        self.batches = [
            _batch(np.where(each >= 0, members[each], -1), _placed(self._lane, members[each]), state)
            for each in _cut(kept, size)
            for state in (_placed(states, each),)
        ]

    def _scatter(self, batch: Batch, values: dict[str, Array], into: dict[str, np.ndarray]) -> None:
        """Write the members' values into arrays of every lane, made where they are missing."""
        real = batch.members >= 0
        for name, value in values.items():
            array = np.asarray(value)
            if name not in into:
                into[name] = np.zeros((self.count, *array.shape[1:]), array.dtype)
            into[name][batch.members[real]] = array[real]

    def _batch_size(self, running: int) -> int:
        """Lanes in a batch when so many still run: few different sizes, or one."""
        if jax.default_backend() == "cpu":
            return -(-self.count // -(-self.count // LANES_PER_BATCH_ON_CPU))
        size = self.count
        while size > 1 and running <= -(-size // FEWER):
            size = -(-size // FEWER)
        return size


def _workers() -> int:
    """Batches to run side by side: as many as cores on a CPU, one on an accelerator."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cut(lanes: np.ndarray, size: int) -> np.ndarray:
    """The numbers of lanes in rows of `size`, the last one filled up with -1."""
    padded = np.pad(lanes, (0, -len(lanes) % size), constant_values=-1)
    return padded.reshape(-1, size)


def _placed(every: Tree, chosen: np.ndarray) -> Tree:
    """The chosen lanes of a tree that holds every lane, on the device."""
    axes = integrate.lane_axes(every)
    device = jax.devices()[0]
    return jax.tree.map(lambda leaf, axis: jax.device_put(np.take(leaf, chosen, axis), device), every, axes)


def _concatenated(states: Sequence[State]) -> State:
    """The states of several batches as one, on the host."""

    def joined(*leaves: Array) -> np.ndarray:
        return np.concatenate([np.asarray(leaf) for leaf in leaves], 1 if leaves[0].ndim == 4 else 0)

    return jax.tree.map(joined, *states)


def _batch(members: np.ndarray, lanes: Lane, state: State) -> Batch:
    """A batch; its padding has ended before it began."""
    outcome = np.where(members >= 0, np.asarray(state.outcome), np.int32(Outcome.REACHED_END))
    return Batch(members, lanes, state._replace(outcome=jax.device_put(outcome, jax.devices()[0])))


class _Told:
    """Tells how far lanes are: after every record, and between records every `PACE` seconds."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, clock: str, end: np.ndarray) -> None:
        self._tell, self._clock, self._end = on_progress, clock, float(np.max(end))
        self._position, self._last = 0.0, time.perf_counter()

    def sometimes(self, lanes: Lanes, until: np.ndarray) -> None:
        """Tell if it is time."""
        if time.perf_counter() - self._last > PACE and lanes.latest("relative_gap").size:
            self.now(lanes, until)

    def now(self, lanes: Lanes, until: np.ndarray) -> None:
        """Tell."""
        if self._tell is None:
            return
        positions, gaps = np.minimum(lanes.positions(), np.max(until)), lanes.latest("relative_gap")
        middle = float(np.median(positions)) if positions.size else self._end
        self._position = max(self._position, middle)  # a lane that ends may leave slower ones
        self._last = time.perf_counter()
        best, median, running = float(np.min(gaps)), float(np.median(gaps)), len(positions)
        progress = Progress(self._position, self._end, self._clock, running, lanes.count, best, median)
        self._tell(progress)
