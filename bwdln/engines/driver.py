"""The command's side of tasks elsewhere: hand them out, watch over them, gather what they leave on disk.

What decides is on disk: a task has ended when its report is there. Its engine is asked only about those that
died. Nothing that lives is handed out twice, be it by an earlier command.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bwdln import sweep
from bwdln.batching import Detached
from bwdln.config import Config, Sweep
from bwdln.engines import base, ledger, tasks
from bwdln.engines.base import Engine
from bwdln.engines.ledger import Handed, Ledger
from bwdln.engines.tasks import Task
from bwdln.errors import Failure, InvalidOption
from bwdln.store import Store
from bwdln.sweep import Done, Piece, Plan, SweepProgress

log = logging.getLogger(__name__)

#: Seconds between two looks at the folder of the tasks.
PACE = 0.2
#: Seconds that tasks have to save what they have, where they end with the command.
PATIENCE = 30.0
#: So many of the last lines of the log of a task that is given up are shown.
LINES = 12


@dataclass
class _Out:
    """A task that is out: the pieces of this sweep in it, and what was last seen of it.

    `attempts` counts those of this command; `signed`: the time of its sign of life, by its file system;
    `seen`: when that changed, by the clock here; `gone`: since when its engine says that it ended; `killed`:
    why it was told to end; `refused`: since when its engine does not take it again.
    """

    name: str
    pieces: dict[str, Piece]
    attempts: int
    seen: float
    signed: int = 0
    gone: float | None = None
    killed: str | None = None
    refused: float | None = None
    lanes_done: float = 0.0


def execute(
    planned: Plan,
    options: Sweep,
    store: Store,
    record: Ledger | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> Iterator[Done]:
    """Run what was planned by the engine of the options; yields every job that can run, when it is done.

    Tasks of an earlier command that live are waited for. Ctrl-C leaves tasks to an engine that outlives the
    command; else it ends them, when they have saved what they have. Inline it is `sweep.execute`.

    Raises `InvalidOption` for an engine that does not take the tasks; `Detached` after `wait_seconds`.
    """
    if options.runs_here:
        yield from sweep.execute(planned, options, store=store, on_progress=on_progress)
        return
    books, record = sweep.Books(planned, options, store, on_progress), record or Ledger(store.folder)
    yield from books.stored()
    if not (books.batches or record.out() or record.submitting):
        return
    driver = _Driver(planned, books, options, store, record)
    try:
        yield from driver.run()
    except Detached:
        raise
    except BaseException:
        driver.leave()
        raise
    finally:
        driver.close()


def plan(configs: Mapping[int, Config], options: Sweep, store: Store) -> Plan:
    """What `sweep.plan` makes of configurations, in which what is out elsewhere is found again."""
    record, folder = Ledger(store.folder), store.folder / "tasks"
    out = record.submitted() | record.out()
    pieces = [config for name in out for config in tasks.configs_of(folder / f"{name}.json")]
    return sweep.plan(configs, options, store, [*pieces, *record.parts()])


def begin(options: Sweep, store: Store, keys: Mapping[int, str], failed: Mapping[int, str]) -> Ledger:
    """The ledger of a command that begins; tasks of another engine, which must have ended, are forgotten."""
    record = Ledger(store.folder)
    for name in record.out() if record.engine != options.engine else ():
        tasks.remove(store.folder / "tasks", name)
    record.begin(options.engine, keys, failed)
    return record


def check_free(options: Sweep, store: Store) -> None:
    """Raise `InvalidOption` where tasks of another engine live in the folder of a sweep."""
    record = Ledger(store.folder)
    if record.engine != options.engine and (alive := living(record, store)):
        takes = (
            f"{record.engine} while {len(alive)} of its tasks run in this folder: "
            f"wait for them, or python -m experiments.status {store.folder.parent} --cancel"
        )
        raise InvalidOption("sweep.engine", options.engine, takes)


def living(record: Ledger, store: Store) -> dict[str, Handed]:
    """The tasks that may still wait or run; with an engine that cannot be asked, all that are out."""
    if not (record.out() or record.submitting):
        return {}
    try:
        engine = base.make(Sweep(engine=record.engine), store.folder / "tasks")  # type: ignore[arg-type]
        adopt(record, engine)
        standings = engine.standings([handed.name for handed in record.out().values()])
    except InvalidOption:
        return record.submitted() | record.out()
    return {name: handed for name, handed in record.out().items() if standings[handed.name].state != "ended"}


def adopt(record: Ledger, engine: Engine) -> None:
    """Take tasks over from submissions that nobody saw the end of, as after a kill; nothing is written.

    Raises `InvalidOption` where the engine does not tell.
    """
    for label, lanes in record.submitting.items():
        for (task, count), name in zip(lanes.items(), engine.find(label, len(lanes)), strict=False):
            record.handed(task, count, name)
    record.submitting = {}


class _Driver:
    """One command's care for the tasks of a sweep; see `execute`."""

    def __init__(
        self, planned: Plan, books: sweep.Books, options: Sweep, store: Store, record: Ledger
    ) -> None:
        self._books, self._options, self._store = books, options, store
        self._folder = store.folder / "tasks"
        self._engine: Engine = base.make(options, self._folder)
        self._record = record
        record.engine = options.engine
        self._whole = set(planned.keys.values())
        self._out: dict[str, _Out] = {}
        self._lanes_done = 0.0  # of tasks that ended
        self._asked = -1e9
        self._waiting = deque(self._cut())

    def run(self) -> Iterator[Done]:
        """Go on until every task has ended, or the time to wait is over."""
        began, limit = time.monotonic(), self._options.wait_seconds
        while self._waiting or self._out:
            self._hand_out()
            time.sleep(PACE)
            reported = {path.name.partition(".")[0] for path in self._folder.glob("*.report.json")}
            for name in reported & self._out.keys():
                yield from self._gather(self._out[name])
            if time.monotonic() - self._asked >= self._engine.pace:
                self._asked = time.monotonic()
                yield from self._look_after()
            self._books.reached(self._lanes_done + sum(out.lanes_done for out in self._out.values()))
            late = limit is not None and time.monotonic() - began >= limit
            if late and (self._waiting or self._out):
                raise Detached(self._left())

    def _left(self) -> str:
        """What goes on without the command, in words."""
        out, waiting = len(self._out), len(self._waiting)
        said = f"{out} tasks are left to themselves" if out != 1 else "1 task is left to itself"
        return said if not waiting else f"{said}, {waiting} not handed out"

    def leave(self) -> None:
        """The command ends early: so do its tasks, saving what they have, unless their engine outlives it."""
        if self._engine.outlives:
            self._record.left = len(self._out)
            return
        alive = [self._record.tasks[name].name for name in self._out]
        self._engine.cancel(alive)
        deadline = time.monotonic() + PATIENCE
        while alive and time.monotonic() < deadline:
            time.sleep(PACE)
            standings = self._engine.standings(alive)
            alive = [name for name in alive if standings[name].state != "ended"]
        self._engine.kill(alive)

    def close(self) -> None:
        """Keep the record, and let go of the engine."""
        self._record.save()
        self._engine.close()

    # --- handing out ---

    def _cut(self) -> list[Task]:
        """The tasks to hand out; tasks that live, or ended unseen, are taken over instead."""
        adopt(self._record, self._engine)
        pieces = {piece.key: piece for batch in self._books.batches for piece in batch.pieces}
        out = self._record.out()
        standings = self._engine.standings([handed.name for handed in out.values()])
        for name, handed in out.items():
            keys = [key for key in tasks.keys_of(self._folder / f"{name}.json") if key in pieces]
            reported, lives = self._has_report(name), standings[handed.name].state != "ended"
            if keys and (reported or lives):
                taken = {key: pieces.pop(key) for key in keys}
                self._out[name] = _Out(name, taken, 1, time.monotonic())
            elif not lives:
                self._forget(name, "done" if reported else "ended")
        if self._out:
            log.info("%d tasks of an earlier command are waited for", len(self._out))
        left = [
            batch._replace(pieces=own)
            for batch in self._books.batches
            if (own := tuple(piece for piece in batch.pieces if piece.key in pieces))
        ]
        return tasks.dealt(left, self._options.tasks)

    def _hand_out(self) -> None:
        """Hand out what waits, as much of it as the engine takes at a time."""
        room = len(self._waiting)
        if self._engine.parallel is not None:
            room = min(room, self._engine.parallel - len(self._out))
        while room > 0:
            chosen = [self._waiting.popleft() for _ in range(min(room, self._engine.at_once))]
            room -= len(chosen)
            parts = {
                piece.key: piece.problem.config
                for task in chosen
                for piece in task.pieces
                if piece.key not in self._whole
            }
            self._record.add_parts(parts)
            self._submit(
                {task.name: task.lanes for task in chosen},
                {task.name: tasks.write(task, self._folder, self._options) for task in chosen},
            )
            for task in chosen:
                pieces = {piece.key: piece for piece in task.pieces}
                self._out[task.name] = _Out(task.name, pieces, 1, time.monotonic())

    def _submit(self, lanes: dict[str, int], files: dict[str, Path]) -> None:
        """Submit tasks; it is written down before and after, so that none is forgotten or comes twice."""
        label, record = uuid.uuid4().hex[:8], self._record
        record.submitting[label] = lanes
        record.save()
        try:
            names = self._engine.submit(list(files.values()), label)
        except InvalidOption as refused:
            # What did not answer in time may have taken them all the same.
            try:
                names = self._engine.find(label, len(lanes))
            except InvalidOption as silent:
                takes = f"{refused.takes}; it is not known whether they were taken: {silent}"
                raise InvalidOption(refused.option, refused.got, takes) from silent
            if not names:
                del record.submitting[label]
                record.save()
                raise
        for task, name in zip(lanes, names, strict=True):
            record.handed(task, lanes[task], name)
        del record.submitting[label]
        record.save()

    def _hand_out_again(self, out: _Out) -> None:
        """Hand out a task once more, which goes on behind what it saved."""
        before = self._record.tasks[out.name]
        adopt(self._record, self._engine)  # what an earlier try without an answer came to
        if self._record.tasks[out.name].name == before.name:
            self._submit({out.name: before.lanes}, {out.name: tasks.ready(self._folder, out.name)})
        self._out[out.name] = _Out(out.name, out.pieces, out.attempts + 1, time.monotonic())

    # --- what becomes of them ---

    def _has_report(self, name: str) -> bool:
        return tasks.report_at(self._folder / f"{name}.json").exists()

    def _gather(self, out: _Out) -> Iterator[Done]:
        """Take what a task left that has ended by itself."""
        report = tasks.report_of(self._folder, out.name)
        if report.refused is not None:
            yield from self._give_up(out, report.refused)
            return
        for key, piece in list(out.pieces.items()):
            if key in report.failed:
                yield from self._books.failed(piece, report.failed[key])
            elif (result := self._store.result(key)) is not None:
                yield from self._books.came(piece, result)
            else:
                continue
            del out.pieces[key]
        if out.pieces:
            yield from self._died(out, "it left no results, or damaged ones")
        else:
            self._end(out, "done")

    def _look_after(self) -> Iterator[Done]:
        """Ask the engine how the tasks stand, and look for those that died."""
        names = {self._record.tasks[name].name: out for name, out in self._out.items()}
        standings = self._engine.standings(list(names)) if names else {}
        now, silence = time.monotonic(), self._options.silence_seconds
        for name, standing in standings.items():
            out, state = names[name], standing.state
            self._look(out)
            out.gone = None if state != "ended" else out.gone or now
            if self._has_report(out.name):
                continue
            if out.gone is not None:
                if now - out.gone >= self._engine.grace:
                    yield from self._died(out, out.killed or standing.reason)
            elif state == "stuck":
                self._engine.kill([name])
                yield from self._give_up(out, f"{self._options.engine} would never run it: {standing.reason}")
            elif state != "running":  # it waits, or nobody knows
                out.seen = now
            elif now - out.seen > silence:
                # First it is ended: two processes must not write in one place. What even that does not end,
                # such as one on a machine that is gone, is left behind.
                if out.killed is not None:
                    yield from self._died(out, out.killed)
                    continue
                out.killed, out.seen = f"no sign of life for {silence:g} s", now
                self._engine.kill([name])

    def _look(self, out: _Out) -> None:
        """Note a new sign of life."""
        path = tasks.sign_of(self._folder / f"{out.name}.json")
        try:
            signed = path.stat().st_mtime_ns
        except OSError:
            return
        if signed != out.signed and out.killed is None:
            out.signed, out.seen = signed, time.monotonic()
            out.lanes_done = float((ledger.read(path) or {}).get("lanes_done", out.lanes_done))

    def _died(self, out: _Out, reason: str) -> Iterator[Done]:
        """A task ended before its time: it is handed out again, or given up."""
        handed = self._record.tasks[out.name]
        if out.refused is None:
            handed.reasons.append(reason)
            log.info("task %s (%s) ended before its time: %s", out.name, handed.name, reason)
        if out.attempts <= self._options.retries:
            try:
                self._hand_out_again(out)
                return
            except InvalidOption as error:  # it may be taken later
                out.gone = time.monotonic()
                out.refused = out.refused or out.gone
                if out.gone - out.refused < self._options.silence_seconds:
                    return
                reason = f"{reason}, and is not taken again: {error}"
        place = self._engine.log(handed.name)
        for line in tasks.last_lines(place, LINES):
            print(f"{handed.name}: {line}", file=sys.stderr)
        if place is not None and place.exists():
            seen = f"see {place}"
        else:
            seen = "it left no log" + ("" if out.signed else f"; its machine must see {self._folder}")
        times = "once" if out.attempts == 1 else f"{out.attempts} times"
        yield from self._give_up(out, f"its task ended {times} before its time ({reason}); {seen}")

    def _give_up(self, out: _Out, reason: str) -> Iterator[Done]:
        """The jobs of a task have no result, but for those that are there."""
        handed = self._record.tasks[out.name]
        if not handed.reasons or handed.reasons[-1] != reason:
            handed.reasons.append(reason)
        for key, piece in out.pieces.items():
            result = self._store.result(key) if not self._options.fresh else None
            if result is None:
                yield from self._books.failed(piece, Failure(reason))
            else:
                yield from self._books.came(piece, result)
        self._end(out, "failed")

    def _end(self, out: _Out, state: str) -> None:
        """A task is out no more."""
        del self._out[out.name]
        for label, lanes in list(self._record.submitting.items()):
            if lanes.keys() <= {out.name}:  # handed out again without an answer, and all the same it ended
                del self._record.submitting[label]
        self._lanes_done += self._record.tasks[out.name].lanes
        self._forget(out.name, state)

    def _forget(self, name: str, state: str) -> None:
        """Nobody needs to look at a task again; of one that failed the files stay."""
        self._record.tasks[name].state = state
        if state != "failed":
            tasks.remove(self._folder, name)
        self._record.save_sometimes()
