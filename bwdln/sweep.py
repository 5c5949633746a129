"""Many configurations -> few programs: jobs that differ only in traced numbers are lanes of one program.

A sweep is planned before it is run. Jobs whose result is in the store are done; the others are grouped
by their program, and each group is cut into batches of lanes, in the order of the jobs. A batch is what runs,
fails, and is saved as a checkpoint: the next one begins when it has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from bwdln import distribution, lanes, results, simulate
from bwdln.config import Config, Sweep, from_mapping, split
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
#: The share of the memory that a batch may take by its estimate.
SHARE_OF_MEMORY = 0.5

Name = TypeVar("Name", bound=Hashable)


class Piece(NamedTuple):
    """Seeds of a job that are lanes of one batch: all of them, if so many fit. Jobs may have it in common."""

    jobs: tuple[int, ...]
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
    `bytes_per_batch`: on the devices, and on the host of records and targets, of the largest; an estimate.
    `bytes_of_dataset`: what gathering the records of all jobs takes in the end.
    """

    configs: dict[int, Config]
    keys: dict[int, str]
    stored: tuple[int, ...]
    refused: dict[int, InvalidOption]
    programs: tuple[tuple[Batch, ...], ...]
    devices: tuple[jax.Device, ...]
    bytes_per_batch: tuple[int, int]
    bytes_of_dataset: int

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
    lanes_done: float
    running: Progress | None


class Done(NamedTuple):
    """A job that has ended: with its result, or with why there is none. `stored`: it was there before."""

    job: int
    outcome: Result | Exception
    stored: bool


# --- the plan -------------------------------------------------------------------------------------


def plan(
    configs: Mapping[int, Config],
    options: Sweep | None = None,
    store: Store | None = None,
    known: Iterable[Config] = (),
) -> Plan:
    """Check every configuration and plan their runs; compiles nothing. Jobs of equal content run once.

    `known`: pieces that were handed out before; jobs are cut so that these are pieces again.

    Raises `InvalidOption` for more devices than there are.
    """
    options = options or Sweep()
    simulate.set_up_process()
    devices = _devices(options)
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
    programs, largest, records = [], (0, 0), 0
    # Of all jobs, so that whoever comes back when some are done finds the same pieces.
    lanes = sum({key: configs[job].seeds for job, key in keys.items()}.values())
    fair = max(1, lanes if options.tasks is None else -(-lanes // options.tasks))
    spans, begun = _spans(known), [] if store is None or options.fresh else store.checkpoints()
    for names in groups(problems):
        group = [problems[name] for name in names]
        size = min(fair, _lanes_per_batch(group[0], devices, options))
        pieces = [
            piece
            for name in names
            for piece in _pieces((name,), keys[name], problems[name], size, _known(configs[name], spans))
        ]
        batches = _batches(pieces, size, begun)
        programs.append(tuple(batches))
        largest = max(largest, max(_bytes(batch, devices) for batch in batches))
        records += sum(batch.lanes for batch in batches) * _bytes_per_lane(group[0]).records
    planned = Plan(dict(configs), keys, tuple(stored), refused, tuple(programs), devices, largest, 0)
    # Twice, as they are gathered into one; of what is stored as much for a lane as of what is to run.
    every = sum(configs[job].seeds for job in keys)
    return planned._replace(bytes_of_dataset=2 * records * every // max(1, planned.lanes))


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


def _devices(options: Sweep) -> tuple[jax.Device, ...]:
    """So many of the devices of this process as it shall use, or all; others count their own."""
    present, count = jax.local_devices(), options.devices if options.runs_here else None
    takes = f"an integer up to {len(present)}, the {present[0].platform} devices there are, or null"
    check(count is None or count <= len(present), "sweep.devices", count, takes)
    return tuple(present[:count])


def _lanes_per_batch(problem: Problem, devices: Sequence[jax.Device], options: Sweep) -> int:
    """Lanes in a batch of a program."""
    if options.lanes_per_batch is not None:
        return options.lanes_per_batch
    needed, on_cpu = _bytes_per_lane(problem), devices[0].platform == "cpu"
    room = SHARE_OF_MEMORY * lanes.memory_limit(devices)
    # On a CPU a program works on one lane at a time, elsewhere on all of them.
    fitting = room / needed.state if on_cpu else room / (needed.state + needed.work)
    fitting = max(1, int(min(fitting, SHARE_OF_MEMORY * lanes.memory_limit(None) / needed.host)))
    return min(fitting, LANES_PER_BATCH_ON_CPU) if on_cpu else fitting


def _bytes_per_lane(problem: Problem) -> lanes.Bytes:
    records = len(problem.record_points)
    return lanes.bytes_per_lane(problem.static, problem.lane, problem.config.precision, records)


def _bytes(batch: Batch, devices: Sequence[jax.Device]) -> tuple[int, int]:
    """The bytes of a batch on the devices and on the host, where each target is in three n × n matrices."""
    needed = _bytes_per_lane(batch.pieces[0].problem)
    at_a_time = min(batch.places, lanes.cores()) if devices[0].platform == "cpu" else batch.places
    on_devices = batch.places * needed.state + at_a_time * needed.work
    targets = {piece.problem.config.target: piece.problem.target.dimension for piece in batch.pieces}
    return on_devices, batch.places * needed.host + sum(3 * 8 * size**2 for size in targets.values())


#: Seeds in a row: the first, and the one behind the last.
Span = tuple[int, int]


def _spans(configs: Iterable[Config]) -> dict[Config, list[Span]]:
    """The seeds of configurations that differ in nothing else."""
    spans: dict[Config, list[Span]] = {}
    for config in configs:
        spans.setdefault(_seedless(config), []).append((config.seed, config.seed + config.seeds))
    return spans


def _known(config: Config, spans: Mapping[Config, list[Span]]) -> list[Span]:
    """The seeds of pieces of a configuration that are known."""
    return spans.get(_seedless(config), []) if spans else []


def _seedless(config: Config) -> Config:
    """What configurations have in common that differ in their seeds only."""
    return dataclasses.replace(config, seed=0, seeds=1)


def _pieces(
    jobs: tuple[int, ...], key: str, problem: Problem, size: int, known: Iterable[Span] = ()
) -> list[Piece]:
    """A job, or a piece, as pieces of at most `size` lanes, but for those that are known."""
    config = problem.config
    parts = []
    for begin, end in cut(config.seed, config.seed + config.seeds, size, known):
        part = dataclasses.replace(config, seed=begin, seeds=end - begin)
        own = key if part == config else key_of(part)
        parts.append(Piece(jobs, own, problem._replace(config=part)))
    return parts


def cut(begin: int, end: int, size: int, fixed: Iterable[Span] = ()) -> list[Span]:
    """A span as spans of at most `size`, among them those `fixed` that lie in it side by side."""
    spans, at = [], begin
    for first, behind in [*sorted(fixed), (end, end)]:
        if at <= first and behind <= end:
            spans += [(each, min(each + size, first)) for each in range(at, first, size)]
            spans += [(first, behind)] if first < behind else []
            at = behind
    return spans


def _batches(pieces: Sequence[Piece], size: int, begun: Sequence[tuple[str, ...]]) -> list[Batch]:
    """Batches of at most `size` lanes; those that an earlier sweep began are made again, and come first."""
    left: dict[str, Piece] = {}
    for piece in pieces:  # jobs whose seeds overlap may have some in common
        others = left[piece.key].jobs if piece.key in left else ()
        left[piece.key] = piece._replace(jobs=others + piece.jobs)
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
    return [finished[job] for job in range(len(configs))]


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
    books = Books(planned, options, store, on_progress)
    yield from books.stored()
    waiting = deque(books.batches)
    while waiting:
        batch = books.wanted(waiting.popleft())
        if not batch.pieces:
            continue
        try:
            outcomes = _outcomes(batch, planned.devices, options, store, books.running)
        except distribution.Separated:
            raise  # no job's fault, and nothing that a smaller batch would mend
        except Exception as error:
            gc.collect()  # of what the batch held on the devices
            halves = _halved(batch, error)
            if halves:
                log.info("a batch of %d lanes failed and is halved: %s", batch.lanes, error)
                waiting.extendleft(reversed(halves))
                continue
            books.ended(batch.lanes)
            yield from books.failed(batch.pieces[0], error)
            continue
        books.ended(batch.lanes)
        for piece, outcome in zip(batch.pieces, outcomes, strict=True):
            if store is not None:
                store.keep(piece.key, outcome, replace=options.fresh)
            yield from books.came(piece, outcome)
        if store is not None:
            store.drop_checkpoint(batch.keys)


class Books:
    """Which jobs are done: puts pieces together to jobs, and tells how far the sweep is.

    `batches` are to run: those planned, and of jobs whose stored result turned out to be damaged.
    """

    def __init__(
        self,
        planned: Plan,
        options: Sweep,
        store: Store | None,
        on_progress: Callable[[SweepProgress], None] | None,
    ) -> None:
        self.batches = planned.batches
        self._planned, self._options, self._store, self._tell = planned, options, store, on_progress
        self._alike = _alike(planned)
        self._parts: dict[int, list[tuple[Piece, Result]]] = {}
        self._whole: set[int] = set()
        self._failed: set[int] = set()
        refused = len(planned.refused)
        self._now = SweepProgress(len(planned.configs), refused, 0, refused, planned.lanes, 0, None)

    def stored(self) -> Iterator[Done]:
        """The jobs whose result was there before; what is damaged joins the batches."""
        damaged = {}
        for job in self._planned.stored:
            result = self._store.result(self._planned.keys[job]) if self._store is not None else None
            if result is None:
                damaged[job] = self._planned.configs[job]
            else:
                yield self._done(Done(job, result, True))
        if damaged:
            self.batches = [*self.batches, *plan(damaged, self._options, self._store).batches]

    def wanted(self, batch: Batch) -> Batch:
        """A batch without what belongs to jobs that failed meanwhile."""
        pieces = tuple(each for each in batch.pieces if not self._failed.issuperset(each.jobs))
        return batch._replace(pieces=pieces)

    def came(self, piece: Piece, outcome: Result) -> Iterator[Done]:
        """The result of a piece is here: the jobs that are done by it."""
        for job in piece.jobs:
            if job not in self._failed:
                yield from self._came(job, piece, outcome)

    def _came(self, job: int, piece: Piece, outcome: Result) -> Iterator[Done]:
        config, own = self._planned.configs[job], self._parts.setdefault(job, [])
        own.append((piece, outcome))
        if sum(part.lanes for part, _ in own) < config.seeds:
            return
        parts = [result for _, result in sorted(own, key=lambda part: part[0].problem.config.seed)]
        whole = parts[0] if len(parts) == 1 else results.joined(parts, config)
        del self._parts[job]
        self._whole.add(job)
        if self._store is not None and len(parts) > 1:
            self._store.keep(self._planned.keys[job], whole, replace=self._options.fresh)
            self._drop(part for part, _ in own)
        for each in self._alike[job]:
            yield self._done(Done(each, whole, False))

    def _drop(self, pieces: Iterable[Piece]) -> None:
        """Do not store twice what is in whole results, unless another job is it, or is made of it."""
        jobs = set(self._planned.keys.values())
        for piece in pieces:
            if self._store is not None and piece.key not in jobs and self._whole.issuperset(piece.jobs):
                self._store.drop(piece.key)

    def failed(self, piece: Piece, error: Exception) -> Iterator[Done]:
        """A piece has no result: its jobs cannot come to their end, nor can those of the same content."""
        for job in piece.jobs:
            if job not in self._failed:
                self._failed.add(job)
                self._parts.pop(job, None)
                for each in self._alike[job]:
                    yield self._done(Done(each, error, False))

    def running(self, progress: Progress) -> None:
        """What runs is so far."""
        self._change(running=progress)

    def ended(self, lanes: int) -> None:
        """What ran has ended, with so many lanes."""
        self._change(running=None, lanes_done=self._now.lanes_done + lanes)

    def reached(self, lanes: float) -> None:
        """What runs elsewhere has done so many lanes in all."""
        self._change(lanes_done=lanes)

    def _done(self, done: Done) -> Done:
        now, failed = self._now, isinstance(done.outcome, Exception)
        self._change(done=now.done + 1, stored=now.stored + done.stored, failed=now.failed + failed)
        return done

    def _change(self, **values: Any) -> None:
        self._now = self._now._replace(**values)
        if self._tell is not None:
            self._tell(self._now)


def _outcomes(
    batch: Batch,
    devices: Sequence[jax.Device],
    options: Sweep,
    store: Store | None,
    on_progress: Callable[[Progress], None],
) -> list[Result]:
    """The result of each piece of a batch; those that are stored as parts of a job are not run again."""
    known: dict[str, Result] = {}
    if store is not None and not options.fresh:
        found = {key: store.result(key) for key in batch.keys if store.has(key)}
        known = {key: result for key, result in found.items() if result is not None}
    missing = batch._replace(pieces=tuple(piece for piece in batch.pieces if piece.key not in known))
    if missing.pieces:
        with Interruption() as interruption:
            ran = _run_batch(missing, devices, options, store, on_progress, interruption.check)
        known |= dict(zip(missing.keys, ran, strict=True))
    return [known[key] for key in batch.keys]


def _run_batch(
    batch: Batch,
    devices: Sequence[jax.Device],
    options: Sweep,
    store: Store | None,
    on_progress: Callable[[Progress], None],
    interrupt: Callable[[], None],
) -> list[Result]:
    """Run the lanes of a batch, with the other processes if there are any."""
    began = time.perf_counter()
    order = Order(
        [piece.problem.config.mapping() for piece in batch.pieces],
        batch.keys,
        batch.places,
        options.devices,
        None if store is None else str(store.folder.absolute()),
        options.fresh,
        options.checkpoint_seconds,
    )
    if distribution.processes() > 1:
        distribution.told(json.dumps(order))
    problems = [piece.problem for piece in batch.pieces]
    history = _history(order, lambda: problems, devices, on_progress, interrupt)
    return simulate.finished(problems, history, time.perf_counter() - began)


class Order(NamedTuple):
    """What the processes of a program run next, as the first of them tells the others."""

    configs: list[dict[str, Any]]
    keys: list[str]
    places: int
    devices: int | None
    store: str | None
    fresh: bool
    checkpoint_seconds: float


def follow() -> None:
    """Advance the share of this process in every batch that the first one runs, until that has no more.

    What goes wrong here goes wrong in the first process, too, which decides what follows from it.
    """
    simulate.set_up_process()

    def quiet(progress: Progress) -> None:
        """Only the first process shows how far it is."""

    while text := distribution.told(""):
        order = Order(*json.loads(text))

        def problems(order: Order = order) -> list[Problem]:
            return [simulate.prepare(from_mapping(config)) for config in order.configs]

        with Interruption() as interruption:
            try:
                _history(order, problems, _devices(Sweep(devices=order.devices)), quiet, interruption.check)
            except (Exception, KeyboardInterrupt) as error:
                log.info("a batch ended early: %s", error or type(error).__name__)


@contextlib.contextmanager
def first_process() -> Iterator[bool]:
    """Says whether this is the first of the processes of the program, which runs sweeps inside.

    The others first run what that tells them, until it has left; then all part.
    """
    try:
        if distribution.is_first():
            yield True
        else:
            follow()
            yield False
    finally:
        if distribution.is_first() and distribution.processes() > 1:
            distribution.told("")
        distribution.part_company()


def _history(
    order: Order,
    prepared: Callable[[], Sequence[Problem]],
    devices: Sequence[jax.Device],
    on_progress: Callable[[Progress], None],
    interrupt: Callable[[], None],
) -> simulate.History:
    """Advance the lanes of this process, from their checkpoint if there is one; what came of all lanes."""
    saved = time.perf_counter()
    store = None if order.store is None else Store(order.store)
    part = distribution.part()
    with distribution.together():
        problems = prepared()
        start, running = simulate.begin(problems, devices, order.places)
        snapshot = None if store is None or order.fresh else store.checkpoint(order.keys, part)
        if snapshot is not None and running.restore(snapshot):
            log.info("a batch of %d lanes goes on behind record %d", running.count, len(running.records) - 1)

    def save() -> None:
        nonlocal saved
        if store is not None and running.records:
            try:
                store.save_checkpoint(order.keys, running.snapshot(), part)
            except InvalidOption as error:  # a full disk, say: the run may come to its end all the same
                log.warning("no checkpoint: %s", error)
            saved = time.perf_counter()

    def save_if_due() -> None:
        if time.perf_counter() - saved >= order.checkpoint_seconds:
            save()

    def advance() -> bool:
        points = simulate.points(problems)
        if running.run(points, on_progress, interrupt, on_pause=save_if_due, look=False):
            save()
            raise KeyboardInterrupt
        return False

    return simulate.history(start, running, advance)


def _halved(batch: Batch, error: Exception) -> list[Batch]:
    """The two halves of a batch that failed; nothing where it is one job, unless memory was short."""
    first, *others = batch.pieces
    if others:
        middle = len(batch.pieces) // 2
        halves = [batch.pieces[:middle], batch.pieces[middle:]]
    elif first.lanes > 1 and _is_out_of_memory(error):
        halves = [(part,) for part in _pieces(first.jobs, first.key, first.problem, -(-first.lanes // 2))]
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
