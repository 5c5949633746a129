"""What a task declares so that the jobs of a sweep run together: the protocol of the launcher `batched`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Job(NamedTuple):
    """A job of a sweep, composed and not yet run.

    `overrides`: those of the task, as typed. `swept`: option -> value of what differs between the jobs.
    `options`: the resolved configuration of the task, or why it does not compose. `folder`: where it
    writes; not made yet.
    """

    number: int
    overrides: tuple[str, ...]
    swept: Mapping[str, Any]
    options: Mapping[str, Any] | Exception
    folder: Path


class Refused(Exception):
    """A job failed, and its user has been told why."""


class Detached(Exception):
    """The jobs go on elsewhere, without this process."""


class BatchTask(Protocol):
    """A task that runs the jobs of a sweep together; a function declares it by two attributes."""

    def plan(self, jobs: Sequence[Job], folder: Path) -> None:
        """Print what would run. Runs and writes nothing; `folder` is that of the sweep."""

    def batch(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run the jobs; yields the number of each, at most once, and the function to call as that job.

        It is called inside the folder, the logging and the callbacks of the job; what it returns or
        raises is the value or the failure of the job.
        """


def expose_plugin() -> None:
    """Let Hydra find the launcher and the sweeper in a clone that is not installed."""
    try:
        found = importlib.util.find_spec("hydra_plugins.bwdln_launcher")
    except ModuleNotFoundError:  # no plugin of Hydra is installed
        found = None
    if found is None:
        sys.path.append(str(Path(__file__).parent / "launcher" / "plugin"))
