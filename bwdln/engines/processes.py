"""Tasks as processes of this machine, started by submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bwdln import config, lanes
from bwdln.engines import ledger
from bwdln.engines.base import PARALLEL, Standing, importable, library
from bwdln.engines.jobs import Job

#: Minutes that stand for no limit: submitit needs one.
ENDLESS = 10 * 365 * 24 * 60
#: Seconds without a sign of life after which nothing of a sweep runs on another machine.
SILENCE = 600


class Processes:
    """See `base.Engine`. Each task gets an equal part of the cores; an interrupted command ends its tasks."""

    outlives = False
    at_once = 1
    pace = 0.25
    grace = 0.5

    def __init__(self, options: config.Processes, folder: Path) -> None:
        cores = lanes.cores()
        self.parallel: int | None = options.parallel or min(PARALLEL, cores)
        self._cores = max(1, cores // self.parallel)
        self._folder = folder.resolve() / "logs"
        self._started: list[Any] = []

    def submit(self, tasks: Sequence[Path], label: str) -> list[str]:
        """Start a process for each task. The label is part of its command line, where `find` sees it."""
        local = library("submitit.local.local", "processes")
        executor = local.LocalExecutor(self._folder / label)
        executor.update_parameters(timeout_min=ENDLESS)
        with importable(), _ignoring(signal.SIGINT, signal.SIGHUP), _silent():
            started = executor.map_array(Job(self._cores), list(map(str, tasks)))
        self._started += started
        return [_name(job.job_id) for job in started]

    def find(self, label: str, count: int) -> list[str]:
        """See `base.Engine`."""
        return [_name(number) for number in _controllers(self._folder / label)]

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """See `base.Engine`; a task goes by its machine and the number of its process.

        What was started on another machine may run still, as long as anything there gives signs of life.
        """
        for job in self._started:
            job.done()  # takes note of children that ended
        alive = set(map(_name, _controllers(self._folder)))
        others = _machines(self._folder.parent)
        lives = {
            name: name in alive if _is_here(name) else name.rpartition(":")[0] in others for name in names
        }
        gone = Standing("ended", "its process is gone")
        return {name: Standing("running") if lives[name] else gone for name in names}

    def reaches(self, name: str) -> bool:
        """See `base.Engine`."""
        return _is_here(name)

    def cancel(self, names: Sequence[str]) -> None:
        """See `base.Engine`; submitit passes it on."""
        _send(signal.SIGTERM, self._own(names))

    def kill(self, names: Sequence[str]) -> None:
        """See `base.Engine`; the process of submitit ends by itself when the one below it has."""
        own = set(self._own(names))
        _send(signal.SIGKILL, [number for number, (parent, _) in _processes().items() if parent in own])

    def _own(self, names: Sequence[str]) -> list[int]:
        """The processes of submitit among those that go by these names."""
        return [number for number in _controllers(self._folder) if _name(number) in names]

    def log(self, name: str) -> Path | None:
        """See `base.Engine`."""
        return next(self._folder.glob(f"*/{_number(name)}_0_log.err"), None)

    def close(self) -> None:
        """See `base.Engine`."""


def _send(number: signal.Signals, processes: Sequence[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _name(number: int | str) -> str:
    """What the process of a number goes by, on this machine."""
    return f"{socket.gethostname()}:{number}"


def _number(name: str) -> str:
    return name.rpartition(":")[2]


def _is_here(name: str) -> bool:
    return name.rpartition(":")[0] == socket.gethostname()


def _machines(folder: Path) -> set[str]:
    """The machines from which tasks gave signs of life not long ago."""
    signs = [path for path in folder.glob("*.alive.json") if time.time() - path.stat().st_mtime < SILENCE]
    return {str((ledger.read(path) or {}).get("host")) for path in signs}


def _controllers(folder: Path) -> list[int]:
    """The processes that submitit started for a folder, or one in it, and that have not ended."""
    found = _processes().items()
    return [number for number, (_, line) in found if "submitit.local._local" in line and str(folder) in line]


def _processes() -> dict[int, tuple[int, str]]:
    """By number every process that has not ended: its parent's number, and its command line."""
    if not Path("/proc/self/stat").exists():
        asked = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True)
        rows = (line.split(None, 2) for line in asked.stdout.splitlines())
        return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # Behind the name of the program, in parentheses: its state and the number of its parent.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(folder.name)] = int(parent), line
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What is started meanwhile holds no pipe of this process open, for which another one may wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    saved = [os.dup(stream) for stream in (0, 1, 2)]
    try:
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        yield
    finally:
        for stream, copy in enumerate(saved):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nothing)


@contextlib.contextmanager
def _ignoring(*signals: signal.Signals) -> Iterator[None]:
    """What is started meanwhile ignores these signals: the terminal sends them to all of its processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
