"""What is handed out: a file with the configurations of a few batches, and what a process makes of it.

Beside the file NAME.json the process leaves NAME.alive.json, a sign of life with how far it is, NAME.log, and
in the end NAME.report.json. The results themselves are in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bwdln import distribution, lanes, sweep
from bwdln.config import Config, Sweep, from_mapping
from bwdln.engines import ledger
from bwdln.errors import Failure, InvalidOption, check
from bwdln.store import Store
from bwdln.sweep import Batch, Piece, SweepProgress

log = logging.getLogger(__name__)

#: Seconds between two signs of life.
PACE = 2.0
#: The signals that tell a task to save what it has: before it is cancelled, and before its time is up.
SAVE = (signal.SIGTERM, signal.SIGUSR2)
#: The options of a sweep that a task needs.
OPTIONS = ("fresh", "lanes_per_batch", "devices", "checkpoint_seconds")


class Task(NamedTuple):
    """Batches that go together to one process, or to several that share them."""

    name: str
    batches: tuple[Batch, ...]

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of its batches."""
        return [piece for batch in self.batches for piece in batch.pieces]

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return sum(batch.lanes for batch in self.batches)


def dealt(batches: Sequence[Batch], count: int | None) -> list[Task]:
    """Batches as tasks, one each, or at most `count` of about as many lanes; the order stays."""
    if count is None:
        return [_task([batch]) for batch in batches]
    total, done = sum(batch.lanes for batch in batches), 0
    groups: dict[int, list[Batch]] = {}
    for batch in batches:
        # By the middle of the batch: in which of as many equal stretches of all lanes it lies.
        place = (2 * done + batch.lanes) * count // (2 * total)
        groups.setdefault(place, []).append(batch)
        done += batch.lanes
    return [_task(group) for group in groups.values()]


def _task(batches: Sequence[Batch]) -> Task:
    keys = " ".join(key for batch in batches for key in batch.keys)
    return Task(hashlib.sha256(keys.encode()).hexdigest()[:12], tuple(batches))


def write(task: Task, folder: Path, options: Sweep) -> Path:
    """Write the file of a task, to be handed out."""
    content = {
        "keys": [piece.key for piece in task.pieces],
        "configs": [piece.problem.config.mapping() for piece in task.pieces],
        "jobs": sorted({job for piece in task.pieces for job in piece.jobs}),
        "options": {name: getattr(options, name) for name in OPTIONS},
    }
    ledger.write(folder / f"{task.name}.json", content)
    return ready(folder, task.name)


def ready(folder: Path, name: str) -> Path:
    """The file of a task, without what a process left beside it."""
    file = folder / f"{name}.json"
    for left in (sign_of(file), report_at(file)):
        left.unlink(missing_ok=True)
    return file


def remove(folder: Path, name: str) -> None:
    """Remove the file of a task, and what was left beside it."""
    file = ready(folder, name)
    file.unlink(missing_ok=True)
    log_of(file).unlink(missing_ok=True)


def sign_of(file: Path) -> Path:
    """Where the sign of life of a task is, by its file."""
    return file.with_suffix(".alive.json")


def report_at(file: Path) -> Path:
    """Where the report of a task is, by its file."""
    return file.with_suffix(".report.json")


def log_of(file: Path) -> Path:
    """Where a task logs, by its file."""
    return file.with_suffix(".log")


def jobs_of(path: Path) -> list[int]:
    """The numbers of the jobs that a task in a file has pieces of."""
    return list((ledger.read(path) or {}).get("jobs", []))


def configs_of(path: Path) -> list[Config]:
    """The configurations of the pieces of a task in a file; none where the file is gone, or of other code."""
    try:
        return [from_mapping(config) for config in (ledger.read(path) or {}).get("configs", [])]
    except InvalidOption:
        return []


def keys_of(path: Path) -> list[str]:
    """What the results of a task in a file are stored under; nothing where the file is gone."""
    return list((ledger.read(path) or {}).get("keys", []))


class Report(NamedTuple):
    """How a task ended: what failed in it, by key, or why none of it can be run."""

    failed: dict[str, Exception]
    refused: str | None


def report_of(folder: Path, name: str) -> Report:
    """What a task reported."""
    found = ledger.read(report_at(folder / f"{name}.json")) or {}
    failed = {key: _error_of(said) for key, said in found.get("failed", {}).items()}
    return Report(failed, found.get("refused"))


def last_lines(path: Path | None, count: int) -> list[str]:
    """The last lines of a log, if there is one."""
    try:
        text = "" if path is None else path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


# --- in the process that runs it ------------------------------------------------------------------


def run(path: str, cores: int | None = None, shared: bool = False) -> None:
    """Run a task on so many cores, maybe `shared` with other processes of a job; it ends with a report.

    A first Ctrl-C saves the batch in progress; then `KeyboardInterrupt` is raised. Raises `InvalidOption` for
    a task that cannot be run here, such as one whose file this machine does not see.
    """
    file = Path(path)
    if cores is not None:
        os.environ[lanes.CORES] = str(cores)
    with _logging(file):
        if not shared:
            _run(file)
            return
        distribution.initialize()
        with sweep.first_process() as is_first:
            if is_first:
                _run(file)


@contextlib.contextmanager
def _logging(file: Path) -> Iterator[None]:
    """What the package logs meanwhile goes to the standard error and to the log beside the file."""
    form = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(format=form)
    package = logging.getLogger("bwdln")
    package.setLevel(logging.INFO)
    try:
        handler: logging.Handler = logging.FileHandler(log_of(file), delay=False)
    except OSError:  # the task will say so
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(form))
    package.addHandler(handler)
    try:
        yield
    except Exception:
        log.exception("the task ends early")
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


def _run(file: Path) -> None:
    task = ledger.read(file)
    takes = "a file that this machine can read: the folder of the sweep must be one that all of them see"
    check(task is not None, "hydra.sweep.dir", f"{file} on {socket.gethostname()}", takes)
    options, keys = Sweep(**task["options"]), task["keys"]
    store = Store(file.parent.parent)
    if options.fresh:
        options = Sweep(**task["options"] | {"fresh": False})
        store.drop_older(keys, file.stat().st_mtime)
    with _sign(file) as show:
        try:
            planned = _planned(task, options, store)
        except InvalidOption as error:  # nothing that another attempt would mend
            _report(file, {}, str(error))
            raise
        failed = {}
        for done in sweep.execute(planned, options, store=store, on_progress=show):
            if isinstance(done.outcome, Exception):
                failed[keys[done.job]] = _said(done.outcome)
                log.error("job %d of the task failed", done.job, exc_info=done.outcome)
    _report(file, failed)


def _planned(task: Mapping[str, Any], options: Sweep, store: Store) -> sweep.Plan:
    """The plan of a task. Raises `InvalidOption` where it would be another one than that of the command."""
    configs = {number: from_mapping(config) for number, config in enumerate(task["configs"])}
    planned = sweep.plan(configs, options, store)
    for error in planned.refused.values():
        raise error
    takes = "the code and the packages that handed it out: results would differ"
    same = list(planned.keys.values()) == task["keys"]
    check(same, "sweep.engine", f"a task on {socket.gethostname()}", takes)
    return planned


def _said(error: Exception) -> dict[str, str]:
    """An error in a form that the report can hold."""
    if isinstance(error, InvalidOption):
        return {"option": error.option, "got": str(error.got), "takes": error.takes}
    return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


def _error_of(said: dict[str, str]) -> Exception:
    """An error that a report holds."""
    return Failure(said["error"]) if "error" in said else InvalidOption(**said)


def _report(file: Path, failed: dict[str, dict[str, str]], refused: str | None = None) -> None:
    with contextlib.suppress(InvalidOption):  # where nothing can be written, the log tells
        ledger.write(report_at(file), {"failed": failed, "refused": refused})


@contextlib.contextmanager
def told_to_save() -> Iterator[list[int]]:
    """Take the signals of `SAVE` for Ctrl-C, at which a batch saves what it has; yields those that came."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.signal(number, note) for number in SAVE}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _sign(file: Path) -> Iterator[Any]:
    """Give a sign of life now and then, with what `show` was told last, from a thread of its own."""
    alive, ended = sign_of(file), threading.Event()
    latest: list[SweepProgress] = []

    def show(at: SweepProgress) -> None:
        latest[:] = [at]

    def sign() -> None:
        with contextlib.suppress(InvalidOption):
            ledger.write(alive, {"host": socket.gethostname(), "pid": os.getpid()} | _lanes_done(latest))

    def keep_signing() -> None:
        sign()
        while not ended.wait(PACE):
            sign()

    thread = threading.Thread(target=keep_signing, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()


def _lanes_done(latest: Sequence[SweepProgress]) -> dict[str, float]:
    if not latest:
        return {"lanes_done": 0.0, "time": time.time()}
    at = latest[0]
    part = 0.0 if at.running is None else at.running.lanes * min(1.0, at.running.position / at.running.end)
    return {"lanes_done": at.lanes_done + part, "time": time.time()}
