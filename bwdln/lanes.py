"""The host's side of a run: lanes in batches, side by side on all cores, until each has ended.

A lane is one run: the traced numbers of a configuration and a start. Lanes are advanced in batches
of a fixed size, from record to record; in between the host looks at progress and at Ctrl-C, and
packs the lanes that still run into fewer batches.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from bwdln import linalg
from bwdln.dynamics import integrate
from bwdln.dynamics.base import Outcome, State
from bwdln.program import Lane, Program, Static, placed, program
from bwdln.types import Array, Weights

#: On a CPU a program goes through its lanes one after the other, or in small blocks, and as many programs as
#: there are cores run side by side. More lanes in a program save what a call costs; each core should have so
#: many programs to run at least, to even out the lanes that take longer, where they do: on the clock of steps
#: they do not. Few sizes, so that few programs are compiled.
PROGRAMS_PER_CORE = {"time": 4, "step": 1}
SIZES_ON_CPU = (64, 8, 1)
#: On an accelerator, and over several devices, all lanes go together; when this fraction of them is left,
#: they move to a program for so many.
FEWER = 4
#: The variable that says how many cores this process may use.
CORES = "BWDLN_CORES"
#: Seconds between two looks at progress, at Ctrl-C and at whether a checkpoint is due, about.
PACE = 0.25

Tree = TypeVar("Tree")


class Progress(NamedTuple):
    """How far lanes are: where those that run are on the clock (`step` or `time`), the median.

    Then its end, how many of the lanes run, have converged and have diverged, and relative gaps.
    """

    position: float
    end: float
    clock: str
    running: int
    converged: int
    diverged: int
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
    eigenbasis of the target. `clock` is that of the dynamics. Over several `devices` (None: all local
    ones) the lanes of a batch are cut. `places`: how many lanes the largest of several calls has, which
    then share what is compiled. `records` grows by one each time all lanes have been looked at.
    """

    def __init__(
        self,
        static: Static,
        lane: Lane,
        weights: Weights,
        precision: str,
        clock: Literal["time", "step"],
        devices: Sequence[jax.Device] | None = None,
        places: int | None = None,
    ) -> None:
        self.count = len(lane.eigenvalues)
        self._places = max(self.count, places or 0)
        present = tuple(jax.local_devices() if devices is None else devices)
        self.devices = present[: self._places]  # no device without a lane
        self.program: Program = program(static, self.devices)
        self.records: list[dict[str, np.ndarray]] = []
        self._clock, self._precision = clock, precision
        self._lane = jax.tree.map(lambda leaf: np.asarray(leaf, precision), lane)
        self._latest: dict[str, np.ndarray] = {}
        self._final: dict[str, np.ndarray] = {}
        self._attempts, self._stopping = 1, False
        # Held while a batch moves on, by whichever thread, and while a snapshot is made.
        self._moving = threading.Lock()
        self.batches: list[Batch] = []
        layers = jax.tree.map(lambda leaf: np.asarray(leaf, precision), weights)
        for members in _cut(np.arange(self.count), self._batch_size(self.count)):
            lanes = self._placed(self._lane, members)
            state, known = self.program.init(lanes, self._placed(layers, members))
            self.batches.append(self._batch(members, lanes, state))
            self._scatter(self.batches[-1], known, self._final)

    def run(
        self,
        points: Float[Array, "lanes records"],
        on_progress: Callable[[Progress], None] | None,
        check: Callable[[], None],
        *,
        on_pause: Callable[[], None] = lambda: None,
        look: bool = True,
    ) -> bool:
        """Advance all lanes from record to record, at the `points` of each lane on the clock.

        It goes on behind the records that are there, and returns whether it was interrupted. `check` is
        called before each record and about every `PACE` seconds, and interrupts by raising
        `KeyboardInterrupt`: then the lanes are looked at where they are, as the last record, unless
        `look` is false, which leaves them such that they can go on (`snapshot`). `on_pause` is called
        where `check` is; batches may be moving, and it may make a snapshot.
        """
        points = points.astype(np.int32 if self._clock == "step" else self._precision)
        told = _Told(on_progress, self._clock, points[:, -1])
        try:
            for until in points.T[len(self.records) :]:

                def pause(until: np.ndarray = until) -> None:
                    check()
                    told.sometimes(self, until)
                    on_pause()

                self.advance(until, pause)
                self.records.append({name: values.copy() for name, values in self._latest.items()})
                told.now(self, until)
                self._pack()
        except KeyboardInterrupt:
            if look:
                # The weights may be ahead of the last record, and a result must describe its weights.
                self._attempts = 0
                self.advance(points[:, -1])
                self.records.append(self._latest)
            return True
        return False

    def snapshot(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on from here, by name: states, records, what is known of the end.

        Batches may be moving: each is in it as it was behind its last block, with what was seen of it there.
        """
        with self._moving:  # states are never written to, what was seen of them is
            states = [batch.state for batch in self.batches]
            latest = {name: values.copy() for name, values in self._latest.items()}
        leaves = jax.tree.leaves(_concatenated(states))
        arrays = {f"state_{index}": leaf for index, leaf in enumerate(leaves)}
        arrays["members"] = np.stack([batch.members for batch in self.batches])
        arrays |= {f"latest_{name}": values for name, values in latest.items()}
        arrays |= {f"final_{name}": values for name, values in self._final.items()}
        for name in self.records[0] if self.records else ():
            arrays[f"record_{name}"] = np.stack([record[name] for record in self.records])
        return arrays

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> bool:
        """Go on where a snapshot of the same lanes was made, maybe by another process.

        Returns whether it could: on other devices other things may be carried from step to step.
        """

        def named(prefix: str) -> dict[str, np.ndarray]:
            return {
                name.removeprefix(prefix): np.array(snapshot[name])
                for name in snapshot
                if name.startswith(prefix)
            }

        leaves = [snapshot[f"state_{index}"] for index in range(len(named("state_")))]
        now = self.batches[0].state
        if len(jax.tree.leaves(now)) != len(leaves):
            return False
        states = jax.tree.unflatten(jax.tree.structure(now), leaves)
        self._latest, self._final = named("latest_"), named("final_")
        stacked = named("record_")
        count = len(next(iter(stacked.values()))) if stacked else 0
        self.records = [{name: values[at] for name, values in stacked.items()} for at in range(count)]
        members = np.asarray(snapshot["members"])
        # Other devices than those of the snapshot may need other batches.
        size = -(-members.shape[1] // len(self.devices)) * len(self.devices)
        flat = members.reshape(-1)
        self.batches = self._cut_batches(states, flat, np.arange(flat.size), size)
        return True

    def advance(self, until: np.ndarray, pause: Callable[[], None] = lambda: None) -> None:
        """Bring every running lane to its `until` on the clock, (lanes,), and look at it there.

        The batches go side by side, on a CPU on all cores. `pause` is called about every `PACE`
        seconds; what it raises stops them where they are.
        """
        pause()
        running = [batch for batch in self.batches if batch.running().any()]
        if running and not self._latest:  # alone: it compiles, and makes the arrays all write to
            self._bring(running.pop(0), until, pause)
        with ThreadPoolExecutor(_workers(self.devices)) as executor:
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
            state, more, seen = self.program.advance(batch.lanes, batch.state, stops, attempts)
            unfinished = bool(np.any(more))
            seconds = time.perf_counter() - began
            # Both or neither are in a snapshot: lanes that have ended are not looked at again.
            with self._moving:
                batch.state = state
                if not unfinished:
                    self._scatter(batch, seen, self._latest)
            if unfinished and seconds < PACE / 2:
                self._attempts = min(2 * int(attempts), 2**30)
            elif unfinished and seconds > 2 * PACE:
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

    def outcomes(self) -> np.ndarray:
        """How each lane stands; (lanes,)."""
        found = np.array(self._final.get("outcome", np.zeros(self.count, np.int32)))
        for batch in self.batches:
            real = batch.members >= 0
            found[batch.members[real]] = np.asarray(batch.state.outcome)[real]
        return found

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
        self.batches = self._cut_batches(states, members, kept, size)

    def _cut_batches(self, states: State, members: np.ndarray, kept: np.ndarray, size: int) -> list[Batch]:
        """Batches of `size` lanes of the `kept` places of states on the host, whose lanes are `members`."""
        return [
            self._batch(
                np.where(each >= 0, members[each], -1),
                self._placed(self._lane, members[each]),
                self._placed(states, each),
            )
            for each in _cut(kept, size)
        ]

    def _batch(self, members: np.ndarray, lanes: Lane, state: State) -> Batch:
        """A batch; its padding has ended before it began."""
        outcome = np.where(members >= 0, np.asarray(state.outcome), np.int32(Outcome.REACHED_END))
        return Batch(members, lanes, state._replace(outcome=placed(outcome, self.devices)))

    def _placed(self, every: Tree, chosen: np.ndarray) -> Tree:
        """The chosen lanes of a tree that holds every lane, on the devices."""
        axes = integrate.lane_axes(every)
        tree: Tree = placed(
            jax.tree.map(lambda leaf, axis: np.take(leaf, chosen, axis), every, axes), self.devices
        )
        return tree

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
        devices = len(self.devices)
        if jax.default_backend() == "cpu" and devices == 1:
            return batch_size_on_cpu(self._places, self._clock)
        size = self._places
        while size > 1 and running <= -(-size // FEWER):
            size = -(-size // FEWER)
        return -(-size // devices) * devices


def batch_size_on_cpu(count: int, clock: Literal["time", "step"]) -> int:
    """Lanes in a batch on a CPU, of so many in all that go by such a clock."""
    programs = PROGRAMS_PER_CORE[clock] * cores()
    return next(size for size in SIZES_ON_CPU if size == 1 or size * programs <= count)


class Bytes(NamedTuple):
    """What a lane takes of memory: its state and the work on it, on its device; on the host its records, and
    its start and end.
    """

    state: int
    work: int
    records: int
    ends: int

    @property
    def host(self) -> int:
        """What the host keeps of it while its batch runs."""
        return self.records + self.ends


def bytes_per_lane(static: Static, lane: Lane, precision: str, records: int) -> Bytes:
    """The bytes of one lane, with so many records, estimated; nothing compiles.

    `lane` holds the traced numbers of one lane. With b bytes a number, an n × k generator and P numbers in
    all layers, the state is P b for descent, and 3 k² b where it follows the gradient, n for k where n is
    smaller or τ > 0; 6 P b for flows with their stages. The work is what XLA needs meanwhile, an estimate
    from above of what it says of its programs: 3 states, b n (16 k + 4 ROWS) for decompositions of the
    generator, with τ > 0 also 20 b n²: the gap and some gradients take n × n ones then. On
    the host are 2 P b and 3 b n k for its start and end, and the records.
    """

    def shaped(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), precision)

    functions = program(static)
    lanes = jax.tree.map(lambda leaf: shaped(np.shape(leaf)), lane)
    weights = tuple(shaped(pair[::-1]) for pair in itertools.pairwise(static.widths))
    state, known = jax.eval_shape(functions.init, lanes, weights)
    attempts = jax.ShapeDtypeStruct((), np.int32)
    _, _, seen = jax.eval_shape(functions.advance, lanes, state, shaped(()), attempts)
    final = jax.eval_shape(functions.finish, state)
    size, rank = static.widths[-1], min(static.widths)
    work = size * (16 * rank + 4 * linalg.ROWS)
    if lane.loss.get("tau") is not None:
        work += 20 * size**2
    held = _bytes((lanes, weights, state))
    moved = 3 * _bytes(state) + work * np.dtype(precision).itemsize
    ends = _bytes((weights, shaped((size, static.widths[0])), known, final))
    return Bytes(held, moved, records * _bytes(seen), ends)


def memory_limit(devices: Sequence[jax.Device] | None) -> int:
    """The bytes that devices have together; of CPU devices, or for None, the memory free on the host."""
    if devices is not None and devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        if all("bytes_limit" in each for each in stats):
            return sum(int(each["bytes_limit"]) for each in stats)
    try:
        with open("/proc/meminfo") as lines:
            free = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(free.split()[1])
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _bytes(tree: object) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _workers(devices: Sequence[jax.Device]) -> int:
    """Batches to run side by side: as many as cores on one CPU device, else one, over all devices."""
    return cores() if jax.default_backend() == "cpu" and len(devices) == 1 else 1


def cores() -> int:
    """The cores this process may use; `BWDLN_CORES` says it where fewer are its own than it sees."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = os.environ.get(CORES, "")
    return min(seen, int(own)) if own.isdecimal() and int(own) else seen


def _cut(lanes: np.ndarray, size: int) -> np.ndarray:
    """The numbers of lanes in rows of `size`, the last one filled up with -1."""
    padded = np.pad(lanes, (0, -len(lanes) % size), constant_values=-1)
    return padded.reshape(-1, size)


def _concatenated(states: Sequence[State]) -> State:
    """The states of several batches as one, on the host."""

    def joined(*leaves: Array) -> np.ndarray:
        return np.concatenate([np.asarray(leaf) for leaf in leaves], 1 if leaves[0].ndim == 4 else 0)

    return jax.tree.map(joined, *states)


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
        outcomes = lanes.outcomes()
        running, converged, diverged = (
            int(np.sum(outcomes == each)) for each in (Outcome.RUNNING, Outcome.CONVERGED, Outcome.DIVERGED)
        )
        best, median = float(np.min(gaps)), float(np.median(gaps))
        counts = running, converged, diverged, lanes.count
        self._tell(Progress(self._position, self._end, self._clock, *counts, best, median))
