"""Tasks as processes of this machine, started by submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bwdln import config, lanes
from bwdln.engines.base import PARALLEL, Standing, importable, library
from bwdln.engines.jobs import Job

#: Minutes that stand for no limit: submitit needs one.
ENDLESS = 10 * 365 * 24 * 60


class Processes:
    """See `base.Engine`. Each task gets an equal part of the cores; an interrupted command ends its tasks."""

    outlives = False
    pace = 0.25
    grace = 0.5

    def __init__(self, options: config.Processes, folder: Path) -> None:
        cores = lanes.cores()
        self.parallel: int | None = options.parallel or min(PARALLEL, cores)
        self._cores = max(1, cores // self.parallel)
        self._folder = folder / "logs"
        self._started: list[Any] = []

    def submit(self, tasks: Sequence[Path]) -> list[str]:
        """Start a process for each task."""
        local = library("submitit.local.local", "processes")
        executor = local.LocalExecutor(self._folder)
        executor.update_parameters(timeout_min=ENDLESS)
        with importable(), _ignoring(signal.SIGINT, signal.SIGHUP), _silent():
            started = executor.map_array(Job(self._cores), list(map(str, tasks)))
        self._started += started
        return [job.job_id for job in started]

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """See `base.Engine`; a task goes by the number of its process."""
        for job in self._started:
            job.done()  # takes note of children that ended
        gone = Standing("ended", "its process is gone")
        return {name: Standing("running") if _is_ours(int(name), self._folder) else gone for name in names}

    def cancel(self, names: Sequence[str]) -> None:
        """See `base.Engine`."""
        for name in names:
            if _is_ours(int(name), self._folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGTERM)

    def log(self, name: str) -> Path | None:
        """See `base.Engine`."""
        return self._folder / f"{name}_0_log.err"

    def close(self) -> None:
        """See `base.Engine`."""


def _is_ours(number: int, folder: Path) -> bool:
    """Whether a process is one that submitit started for this folder, and has not ended."""
    try:
        line = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        if Path("/proc/self").exists():
            return False
        asked = subprocess.run(["ps", "-o", "command=", "-p", str(number)], capture_output=True, text=True)
        line = asked.stdout
    return "submitit.local._local" in line and str(folder) in line


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
