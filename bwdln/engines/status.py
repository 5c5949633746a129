"""How a sweep stands, from its folder alone: for whoever looks on, while a command is at work or none is."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bwdln.config import Sweep
from bwdln.engines import base, driver, ledger, tasks
from bwdln.engines.base import Engine, Standing
from bwdln.engines.ledger import Handed, Ledger
from bwdln.errors import InvalidOption, check
from bwdln.store import Store


class TaskStatus(NamedTuple):
    """A task: how it stands, and how far it is.

    `state`: waiting, running, stuck, done, failed, ended (it died, and is out no more), or unknown.
    `jobs`: those it has pieces of. `reasons`: why it ended early, once for each time, or why it waits.
    `silent`: seconds since its last sign of life.
    """

    name: str
    state: str
    lanes: int
    lanes_done: float
    jobs: list[int]
    times: int
    reasons: list[str]
    host: str | None
    silent: float | None
    log: Path | None


class Status(NamedTuple):
    """A sweep: how many jobs have a result, why others have none, and its tasks.

    `command`: the one that is at work in its folder, if any. `running`: jobs that are at work in tasks, in
    part at least. `failed`: reason -> how many jobs.
    """

    folder: Path
    engine: str
    command: str | None
    jobs: int
    done: int
    running: int
    failed: Counter[str]
    tasks: list[TaskStatus]


def look(folder: Path) -> Status:
    """How the sweep in a folder stands. Raises `InvalidOption` for a folder without one."""
    store = Store(folder / "store")
    takes = "the folder of a sweep that began"
    check((store.folder / "ledger.json").is_file(), "PATH", folder, takes)
    record, command = Ledger(store.folder), store.holder()
    engine, standings = _asked(record, store, command)
    found = [_task(name, each, standings.get(name), store, engine) for name, each in record.tasks.items()]
    done = {job for job, key in record.jobs.items() if job not in record.failed and store.has(key)}
    running = {job for task in found if task.state == "running" for job in task.jobs}
    return Status(
        folder,
        record.engine,
        command,
        len(record.jobs) + len(record.failed.keys() - record.jobs.keys()),
        len(done),
        len(running - done - record.failed.keys()),
        Counter(record.failed.values()),
        found,
    )


def cancel(folder: Path) -> list[str]:
    """Tell the tasks of a sweep that live to save what they have and to end; what they go by.

    Raises `InvalidOption` for a folder without a sweep, and where a command is at work, which would mind.
    """
    found = look(folder)
    takes = f"a sweep without a command at work; there is {found.command}: end that first"
    check(found.command is None, "--cancel", folder, takes)
    store = Store(folder / "store")
    record = Ledger(store.folder)
    engine, standings = _asked(record, store, None)
    takes = (
        f"tasks that can be asked after: {record.engine} does not answer, or is not installed here "
        f"(if they are gone for good, remove {store.folder / 'ledger.json'})"
    )
    lost = any(standing.state == "unknown" for standing in standings.values())
    check(not lost, "--cancel", folder, takes)
    alive = {task for task, standing in standings.items() if standing.state != "ended"}
    names = [handed.name for task, handed in record.out().items() if task in alive]
    if engine is not None:
        elsewhere = [name for name in names if not engine.reaches(name)]
        takes = f"the machine where they run; from here nothing ends {', '.join(elsewhere)}"
        check(not elsewhere, "--cancel", folder, takes)
        engine.cancel(names)
    return names


def _asked(record: Ledger, store: Store, command: str | None) -> tuple[Engine | None, dict[str, Standing]]:
    """The engine of the tasks that are out, and what it says of each; nothing is known if it is not here.

    Only the `command` at work knows the tasks of Ray; others see their signs of life.
    """
    if not (record.out() or record.submitting):
        return None, {}
    if record.engine == "ray" and command is not None:
        signs = {name: tasks.sign_of(store.folder / "tasks" / f"{name}.json") for name in record.out()}
        return None, {
            name: Standing("running" if sign.exists() else "waiting") for name, sign in signs.items()
        }
    try:
        engine = base.make(Sweep(engine=record.engine), store.folder / "tasks")  # type: ignore[arg-type]
        if command is None:  # else it is about to learn what they go by itself
            driver.adopt(record, engine)
        out = record.out()
        said = engine.standings([handed.name for handed in out.values()])
    except InvalidOption:
        record.tasks |= record.submitted() | record.out()
        return None, dict.fromkeys(record.out(), Standing("unknown"))
    return engine, {name: said[handed.name] for name, handed in out.items()}


def _task(
    name: str, handed: Handed, standing: Standing | None, store: Store, engine: Engine | None
) -> TaskStatus:
    file = store.folder / "tasks" / f"{name}.json"
    alive, reported = tasks.sign_of(file), tasks.report_at(file).exists()
    sign = ledger.read(alive) or {}
    state, reasons = handed.state, list(handed.reasons)
    if standing is not None:
        state = "done" if reported else standing.state
        if standing.reason and state not in ("running", "done"):
            reasons.append(standing.reason)
    try:
        silent = max(0.0, time.time() - alive.stat().st_mtime) if state == "running" else None
    except OSError:
        silent = None
    lanes_done = float(handed.lanes) if state == "done" else float(sign.get("lanes_done", 0))
    log = None if engine is None else engine.log(handed.name)
    return TaskStatus(
        handed.name,
        state,
        handed.lanes,
        lanes_done,
        tasks.jobs_of(file),
        handed.times,
        reasons,
        sign.get("host"),
        silent,
        log,
    )
