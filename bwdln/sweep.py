"""Many configurations -> few programs: jobs that differ only in traced numbers are lanes of one program.

A sweep is planned before it is run. Jobs whose result is in the store are done; the others are grouped
by their program, and each group is cut into batches of lanes, in the order of the jobs. A batch is what runs,
fails, and is saved as a checkpoint: the next one begins when it has ended.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from bwdln import lanes, results, simulate
from bwdln.config import Config, Sweep, split
from bwdln.errors import InvalidOption, check
from bwdln.initializations import STARTS
from bwdln.interruption import Interruption
from bwdln.lanes import Progress
from bwdln.results import Result
from bwdln.simulate import Problem
from bwdln.store import Store
from bwdln.store import key as key_of

log = logging.getLogger(__name__)

#: Lanes in a batch on a CPU unless told otherwise: more gain nothing, and a batch is what a failure costs.
LANES_PER_BATCH_ON_CPU = 512
#: The share of the memory that a batch may take by its estimate, which leaves out what XLA needs meanwhile.
SHARE_OF_MEMORY = 0.2

Name = TypeVar("Name", bound=Hashable)


class Piece(NamedTuple):
    """Seeds of a job that are lanes of one batch: all of them, if so many fit."""

    job: int
    key: str
    problem: Problem

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return self.problem.config.seeds


class Batch(NamedTuple):
    """Pieces that run together. `places`: the lanes of the largest batch of their program."""

    pieces: tuple[Piece, ...]
    places: int

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return sum(piece.lanes for piece in self.pieces)

    @property
    def keys(self) -> list[str]:
        """What the results of its pieces, and its checkpoint, are stored under."""
        return [piece.key for piece in self.pieces]


class Plan(NamedTuple):
    """What a sweep comes to, before any of it runs; jobs go by their numbers.

    `keys`: what the result of each job is stored under. `stored`: jobs whose result is there.
    `refused`: jobs that cannot be run, and why. `programs`: for each program to compile its batches.
    `bytes_per_batch`: on the devices, and of records on the host, of the largest batch, estimated.
    """

    configs: dict[int, Config]
    keys: dict[int, str]
    stored: tuple[int, ...]
    refused: dict[int, InvalidOption]
    programs: tuple[tuple[Batch, ...], ...]
    devices: tuple[jax.Device, ...]
    bytes_per_batch: tuple[int, int]

    @property
    def batches(self) -> list[Batch]:
        """The batches of all programs, in the order they run."""
        return [batch for program in self.programs for batch in program]

    @property
    def lanes(self) -> int:
        """How many lanes are to run."""
        return sum(batch.lanes for batch in self.batches)


class SweepProgress(NamedTuple):
    """How far a sweep is: jobs that are done, of them stored before and failed; then lanes.

    `running` is the progress of the batch that runs.
    """

    jobs: int
    done: int
    stored: int
    failed: int
    lanes: int
    lanes_done: int
    running: Progress | None


class Done(NamedTuple):
    """A job that has ended: with its result, or with why there is none. `stored`: it was there before."""

    job: int
    outcome: Result | Exception
    stored: bool


# --- the plan -------------------------------------------------------------------------------------


def plan(configs: Mapping[int, Config], options: Sweep | None = None, store: Store | None = None) -> Plan:
    """Check every configuration and plan their runs; compiles nothing. Jobs of equal content run once.

    Raises `InvalidOption` for more devices than there are.
    """
    options = options or Sweep()
    simulate.set_up_process()
    devices = _devices(options.devices)
    keys: dict[int, str] = {}
    refused: dict[int, InvalidOption] = {}
    problems: dict[int, Problem] = {}
    first: dict[str, int] = {}
    stored = []
    for job, config in configs.items():
        try:
            keys[job] = key = key_of(config)
            if store is not None and not options.fresh and store.has(key):
                stored.append(job)
            elif first.setdefault(key, job) == job:
                problems[job] = simulate.prepare(config)
        except InvalidOption as error:
            refused[job] = error
            keys.pop(job, None)
    # What is equal to a job that is refused is refused, too.
    for job, key in keys.items():
        if first.get(key) in refused:
            refused[job] = refused[first[key]]
    keys = {job: key for job, key in keys.items() if job not in refused}
    programs, largest = [], (0, 0)
    for names in groups(problems):
        group = [problems[name] for name in names]
        size, needed = _lanes_per_batch(group[0], devices, options)
        pieces = [piece for name in names for piece in _pieces(name, keys[name], problems[name], size)]
        batches = _batches(pieces, size, _begun(store) if not options.fresh else [])
        programs.append(tuple(batches))
        largest = max(largest, (needed[0] * batches[0].places, needed[1] * batches[0].places))
    return Plan(dict(configs), keys, tuple(stored), refused, tuple(programs), devices, largest)


def groups(problems: Mapping[Name, Problem]) -> list[list[Name]]:
    """The names of problems that are lanes of one program, in the order of the first of each."""
    together: dict[Hashable, list[Name]] = {}
    for name, problem in problems.items():
        together.setdefault(_program_of(problem), []).append(name)
    return list(together.values())


def _program_of(problem: Problem) -> Hashable:
    """What problems that run together must have in common (`simulate.run_together`)."""
    config = problem.config
    start, numbers = split(STARTS.resolved(config.initialization))
    same_start = (start, tuple(numbers), problem.start_widths)
    return problem.static, same_start, tuple(problem.lane.loss), len(problem.record_points), config.precision


def _devices(count: int | None) -> tuple[jax.Device, ...]:
    """So many of the devices of this process, or all."""
    present = jax.local_devices()
    takes = f"an integer up to {len(present)}, the {present[0].platform} devices there are, or null"
    check(count is None or count <= len(present), "sweep.devices", count, takes)
    return tuple(present[:count])


def _lanes_per_batch(
    problem: Problem, devices: Sequence[jax.Device], options: Sweep
) -> tuple[int, tuple[int, int]]:
    """Lanes in a batch of a program, and the bytes of one lane on its device and on the host."""
    records = len(problem.record_points)
    on_device, on_host = lanes.bytes_per_lane(problem.static, problem.lane, problem.config.precision, records)
    if options.lanes_per_batch is not None:
        return options.lanes_per_batch, (on_device, on_host)
    room = [lanes.memory_limit(devices) / on_device, lanes.memory_limit(None) / on_host]
    fitting = max(1, int(SHARE_OF_MEMORY * min(room)))
    on_cpu = devices[0].platform == "cpu"
    return min(fitting, LANES_PER_BATCH_ON_CPU) if on_cpu else fitting, (on_device, on_host)


def _pieces(job: int, key: str, problem: Problem, size: int) -> list[Piece]:
    """A job as pieces of at most `size` lanes."""
    config = problem.config
    if config.seeds <= size:
        return [Piece(job, key, problem)]
    parts = []
    for begin in range(0, config.seeds, size):
        seeds = min(size, config.seeds - begin)
        part = dataclasses.replace(config, seed=config.seed + begin, seeds=seeds)
        parts.append(Piece(job, key_of(part), problem._replace(config=part)))
    return parts


def _begun(store: Store | None) -> list[tuple[str, ...]]:
    """The keys of the pieces of each batch that has a checkpoint."""
    return [] if store is None else store.checkpoints()


def _batches(pieces: Sequence[Piece], size: int, begun: Sequence[tuple[str, ...]]) -> list[Batch]:
    """Batches of at most `size` lanes; those that an earlier sweep began are made again, and come first."""
    left = {piece.key: piece for piece in pieces}
    batches: list[tuple[Piece, ...]] = []
    for keys in begun:
        if all(key in left for key in keys):
            batches.append(tuple(left.pop(key) for key in keys))
    batch: list[Piece] = []
    for piece in left.values():
        if batch and _lanes(batch) + piece.lanes > size:
            batches.append(tuple(batch))
            batch = []
        batch.append(piece)
    batches += [tuple(batch)] if batch else []
    places = max(map(_lanes, batches))
    return [Batch(each, places) for each in batches]


# --- the run --------------------------------------------------------------------------------------


def run(
    configs: Sequence[Config],
    options: Sweep | None = None,
    *,
    store: Store | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> list[Result]:
    """Run configurations, those of equal static part as lanes of one program; results in their order.

    With a store, results that are there are not computed again, and new ones are kept as they come.

    Raises `InvalidOption` for the first configuration that cannot be run, and what a run raises; on Ctrl-C
    `KeyboardInterrupt`, after a checkpoint.
    """
    planned = plan(dict(enumerate(configs)), options, store)
    for error in planned.refused.values():
        raise error
    finished: dict[int, Result] = {}
    for done in execute(planned, options, store=store, on_progress=on_progress):
        if isinstance(done.outcome, Exception):
            raise done.outcome
        finished[done.job] = done.outcome
    return [finished[job] for job in sorted(finished)]


def execute(
    planned: Plan,
    options: Sweep | None = None,
    *,
    store: Store | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> Iterator[Done]:
    """Run what was planned, batch after batch; every job that can run is yielded once, when it is done.

    A batch that fails is halved, until the job that fails is alone, or until it fits into memory. Ctrl-C
    saves the batch in progress and raises `KeyboardInterrupt`; a second one gives up at once.
    """
    options = options or Sweep()
    told = _Told(planned, on_progress)
    damaged = {}
    for job in planned.stored:
        result = store.result(planned.keys[job]) if store is not None else None
        if result is None:
            damaged[job] = planned.configs[job]
        else:
            yield told.done(Done(job, result, True))
    waiting = deque([*planned.batches, *(plan(damaged, options, store).batches if damaged else ())])
    alike = _alike(planned)
    parts: dict[int, list[Result]] = {}
    failed: set[int] = set()
    while waiting:
        batch = waiting.popleft()
        batch = batch._replace(pieces=tuple(piece for piece in batch.pieces if piece.job not in failed))
        if not batch.pieces:
            continue
        try:
            outcomes = _outcomes(batch, planned.devices, options, store, told)
        except Exception as error:
            gc.collect()  # of what the batch held on the devices
            halves = _halved(batch, error)
            if halves:
                log.info("a batch of %d lanes failed and is halved: %s", batch.lanes, error)
                waiting.extendleft(reversed(halves))
                continue
            broken = batch.pieces[0].job
            failed.add(broken)
            told.ended(batch.lanes)
            for job in alike[broken]:
                yield told.done(Done(job, error, False))
            continue
        told.ended(batch.lanes)
        for piece, outcome in zip(batch.pieces, outcomes, strict=True):
            config = planned.configs[piece.job]
            own = parts.setdefault(piece.job, [])
            own.append(outcome)
            if store is not None:
                store.keep(piece.key, outcome, replace=options.fresh)
            if sum(part.dataset.sizes["seed"] for part in own) < config.seeds:
                continue
            own.sort(key=lambda part: int(part.dataset["seed"][0]))
            whole = own[0] if len(own) == 1 else results.joined(own, config)
            del parts[piece.job]
            if store is not None and len(own) > 1:
                store.keep(planned.keys[piece.job], whole, replace=options.fresh)
            for job in alike[piece.job]:
                yield told.done(Done(job, whole, False))
        if store is not None:
            store.drop_checkpoint(batch.keys)


def _outcomes(
    batch: Batch,
    devices: Sequence[jax.Device],
    options: Sweep,
    store: Store | None,
    told: _Told,
) -> list[Result]:
    """The result of each piece of a batch; those that are stored as parts of a job are not run again."""
    known: dict[str, Result] = {}
    if store is not None and not options.fresh:
        found = {key: store.result(key) for key in batch.keys if store.has(key)}
        known = {key: result for key, result in found.items() if result is not None}
    missing = batch._replace(pieces=tuple(piece for piece in batch.pieces if piece.key not in known))
    if missing.pieces:
        with Interruption() as interruption:
            ran = _run_batch(missing, devices, options, store, told, interruption.check)
        known |= dict(zip(missing.keys, ran, strict=True))
    return [known[key] for key in batch.keys]


def _run_batch(
    batch: Batch,
    devices: Sequence[jax.Device],
    options: Sweep,
    store: Store | None,
    told: _Told,
    interrupt: Callable[[], None],
) -> list[Result]:
    """Run the lanes of a batch, from its checkpoint if there is one."""
    began = saved = time.perf_counter()
    keys, problems = batch.keys, [piece.problem for piece in batch.pieces]
    start, running = simulate.begin(problems, devices, batch.places)
    if store is not None and not options.fresh and (snapshot := store.checkpoint(keys)) is not None:
        running.restore(snapshot)
        log.info("a batch of %d lanes goes on behind record %d", batch.lanes, len(running.records) - 1)

    def save() -> None:
        nonlocal saved
        if store is not None and running.records:
            try:
                store.save_checkpoint(keys, running.snapshot())
            except InvalidOption as error:  # a full disk, say: the run may come to its end all the same
                log.warning("no checkpoint: %s", error)
            saved = time.perf_counter()

    def save_sometimes() -> None:
        if time.perf_counter() - saved >= options.checkpoint_seconds:
            save()

    points = simulate.points(problems)
    if running.run(points, told.running, interrupt, on_record=save_sometimes, look=False):
        save()
        raise KeyboardInterrupt
    history = simulate.History(start, running.records, running.finish(), False)
    return simulate.finished(problems, history, time.perf_counter() - began)


def _halved(batch: Batch, error: Exception) -> list[Batch]:
    """The two halves of a batch that failed; nothing where it is one job, unless memory was short."""
    first, *others = batch.pieces
    if others:
        middle = len(batch.pieces) // 2
        halves = [batch.pieces[:middle], batch.pieces[middle:]]
    elif first.lanes > 1 and _is_out_of_memory(error):
        halves = [(part,) for part in _pieces(first.job, first.key, first.problem, -(-first.lanes // 2))]
    else:
        return []
    return [Batch(half, _lanes(half) if _is_out_of_memory(error) else batch.places) for half in halves]


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _lanes(pieces: Sequence[Piece]) -> int:
    return sum(piece.lanes for piece in pieces)


def _alike(planned: Plan) -> dict[int, list[int]]:
    """The jobs of the same content as each job, itself among them, that have no result yet."""
    by_key: dict[str, list[int]] = {}
    for job, key in planned.keys.items():
        by_key.setdefault(key, []).append(job)
    return {job: by_key[key] for job, key in planned.keys.items()}


class _Told:
    """Keeps count of jobs and lanes, and tells how far the sweep is."""

    def __init__(self, planned: Plan, on_progress: Callable[[SweepProgress], None] | None) -> None:
        self._tell, refused = on_progress, len(planned.refused)
        self._now = SweepProgress(len(planned.configs), refused, 0, refused, planned.lanes, 0, None)

    def done(self, done: Done) -> Done:
        """A job has ended."""
        now, failed = self._now, isinstance(done.outcome, Exception)
        self._change(done=now.done + 1, stored=now.stored + done.stored, failed=now.failed + failed)
        return done

    def running(self, progress: Progress) -> None:
        """The batch that runs is so far."""
        self._change(running=progress)

    def ended(self, lanes: int) -> None:
        """The batch that ran has ended, with so many lanes."""
        self._change(running=None, lanes_done=self._now.lanes_done + lanes)

    def _change(self, **values: Any) -> None:
        self._now = self._now._replace(**values)
        if self._tell is not None:
            self._tell(self._now)
