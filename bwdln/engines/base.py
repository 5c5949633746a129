"""What an engine is: something that runs tasks elsewhere, and knows how they stand."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax

from bwdln import compilation, distribution, lanes, sweep
from bwdln.config import Sweep, plain
from bwdln.errors import check

#: Processes at a time unless told otherwise, where there are as many cores.
PARALLEL = 2


class Standing(NamedTuple):
    """How a task stands, as far as its engine knows; `reason`: why it waits or ended, in the engine's words.

    What is `stuck` waits and will never run.
    """

    state: Literal["waiting", "running", "ended", "stuck", "unknown"]
    reason: str = ""


class Engine(Protocol):
    """Runs `tasks.run` on files of tasks.

    `outlives`: whether tasks go on when their command is interrupted. `parallel`: how many may be out at a
    time; None for all, where it has a queue of its own. `at_once`: how many one submission may have. `pace`:
    seconds between two questions that do it no harm. `grace`: seconds after the end of a task until what it
    left is seen here.
    """

    outlives: bool
    pace: float
    grace: float

    @property
    def parallel(self) -> int | None:
        """See above."""

    @property
    def at_once(self) -> int:
        """See above."""

    def submit(self, tasks: Sequence[Path], label: str) -> list[str]:
        """Hand out tasks; what each goes by. Raises `InvalidOption` where the engine refuses them."""

    def find(self, label: str, count: int) -> list[str]:
        """What the tasks of a submission go by that nobody saw the end of; nothing if it came to nothing.

        Raises `InvalidOption` where the engine does not say.
        """

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """How tasks stand that this or an earlier command handed out."""

    def reaches(self, name: str) -> bool:
        """Whether `cancel` and `kill` from here would end a task."""

    def cancel(self, names: Sequence[str]) -> None:
        """Tell tasks to save what they have and to end; those that ended are no error."""

    def kill(self, names: Sequence[str]) -> None:
        """End tasks that do not answer."""

    def log(self, name: str) -> Path | None:
        """Where what the task prints is kept, if anywhere."""

    def close(self) -> None:
        """Let go of what the engine holds."""


def make(options: Sweep, folder: Path) -> Engine:
    """The engine of a sweep, which keeps its logs in the folder.

    Raises `InvalidOption` for an engine that is not installed, or not there.
    """
    if options.engine == "processes":
        from bwdln.engines.processes import Processes

        return Processes(options.processes, folder)
    if options.engine == "slurm":
        from bwdln.engines.slurm import Slurm

        return Slurm(options.slurm, folder)
    from bwdln.engines.ray import Ray

    return Ray(options.ray)


def prepared(options: Sweep) -> Sweep:
    """The options of a sweep, with those of its engine that are left to it.

    Where tasks are handed out, this process leaves the accelerators to them from here on.
    Raises `InvalidOption` for an engine that cannot run here.
    """
    if options.runs_here:
        return options
    if options.engine in ("processes", "slurm"):
        library("submitit", options.engine)
    if options.engine == "ray":
        library("ray", options.engine)
    takes = "null with sweep.engine=ray, whose tasks end with the command"
    check(
        options.engine != "ray" or options.wait_seconds is None,
        "sweep.wait_seconds",
        options.wait_seconds,
        takes,
    )
    jax.config.update("jax_platforms", "cpu")
    if options.engine != "processes" or options.tasks is not None:
        return options
    # One a process, so that none of them waits.
    return dataclasses.replace(options, tasks=options.processes.parallel or min(PARALLEL, lanes.cores()))


def check_there(options: Sweep, folder: Path) -> None:
    """Raise `InvalidOption` where the engine of a sweep cannot be handed tasks from here."""
    if options.engine != "slurm":
        return
    takes = "a machine that hands jobs to Slurm: there is no sbatch here; or another engine"
    check(shutil.which("sbatch") is not None, "sweep.engine", "slurm", takes)
    from bwdln.engines import slurm

    asked = slurm.asked("sinfo", "--noheader", "--format=%T")
    check(
        asked is not None, "sweep.engine", "slurm", "a Slurm that answers: sinfo does not; or another engine"
    )
    takes = "a folder without a percent sign, which Slurm takes for a pattern in the paths of logs"
    check("%" not in str(folder.absolute()), "hydra.sweep.dir", folder, takes)


def library(name: str, engine: str) -> Any:
    """The library of an engine. Raises `InvalidOption`, with what to install."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        module = None
    # A folder of that name somewhere on the path is a module, too; Ray makes one for its temporary files.
    found = module is not None and getattr(module, "__file__", None) is not None
    takes = f"an installation with the extra `{engine}`: pip install 'bwdln[{engine}]'"
    check(found, "sweep.engine", f"{engine} without {name}", takes)
    return module


@contextlib.contextmanager
def all_processes(options: Sweep) -> Iterator[None]:
    """With engine=distributed: join the processes that share the program; only the first one gets inside.

    The others run what it tells them, and end. Raises `InvalidOption` where they do not find each other.
    """
    if options.engine != "distributed":
        yield
        return
    joined = distribution.processes_joined()
    takes = "inline with this sweeper, which hands over its jobs in several calls"
    check(not joined, "sweep.engine", options.engine, takes)
    distribution.initialize(**plain(options.distributed))
    with sweep.first_process() as is_first:
        if is_first:
            yield
    if not is_first:
        sys.exit(0)


@contextlib.contextmanager
def importable() -> Iterator[dict[str, str]]:
    """Let processes that are started meanwhile import what this one can; yields the variables they need."""
    before = os.environ.get("PYTHONPATH")
    folders = [os.path.abspath(folder or os.getcwd()) for folder in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
    try:
        kept = {name: os.environ[name] for name in (compilation.VARIABLE,) if name in os.environ}
        yield {"PYTHONPATH": os.environ["PYTHONPATH"], **kept}
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
