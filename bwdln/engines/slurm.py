"""Tasks as jobs of Slurm, in arrays, handed over by submitit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bwdln import config
from bwdln.engines.base import Standing, importable, library
from bwdln.engines.jobs import Job
from bwdln.errors import InvalidOption, check

log = logging.getLogger(__name__)

#: States of Slurm in which a job is yet to run, and in which it does; any other is an end.
WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
)
#: Why a job waits that Slurm would never start, or has put aside after it failed to.
NEVER = (
    *("BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "JobHeldAdmin"),
    *("PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed"),
    *("launch failed requeued held", "job requeued in held state"),
)
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "SUSPENDED", "STOPPED", "RESIZING")
#: Seconds that a command of Slurm may take.
PATIENCE = 60
#: Tasks in an array where Slurm does not say how many it takes.
IN_ARRAY = 1000


class Slurm:
    """See `base.Engine`. Needs no accounting: a job that Slurm has forgotten has ended."""

    outlives = True
    parallel = None
    pace = 5.0
    grace = 10.0

    def __init__(self, options: config.Slurm, folder: Path) -> None:
        self._options, self._folder = options, folder.absolute()

    @functools.cached_property
    def at_once(self) -> int:
        """How many tasks an array may have."""
        said = re.search(r"MaxArraySize\s*=\s*(\d+)", asked("scontrol", "show", "config") or "")
        return max(1, int(said[1]) - 1) if said else IN_ARRAY

    def submit(self, tasks: Sequence[Path], label: str) -> list[str]:
        """Hand over tasks as an array. Raises `InvalidOption` with what sbatch says against it."""
        submitit = library("submitit", "slurm")
        executor = submitit.SlurmExecutor(self._folder / "logs", self._options.max_num_timeout)
        executor.update_parameters(**self._parameters(label))
        try:
            with importable(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats what sbatch says
                return [job.job_id for job in executor.map_array(Job(), list(map(str, tasks)))]
        except Exception as error:  # submitit has many; what sbatch says is in the words of one of them
            said = re.findall(r"sbatch: (?:error: )?(.+)", str(error)) or [str(error).splitlines()[-1]]
            takes = f"what sbatch takes on this cluster ({'; '.join(dict.fromkeys(said))})"
            raise InvalidOption("sweep.slurm", self._given(), takes) from error

    def find(self, label: str, count: int) -> list[str]:
        """See `base.Engine`; a submission gives its name to its jobs."""
        named = f"--name={self._job_name(label)}"
        said = asked("squeue", "--noheader", "--states=all", named, "--format=%F")
        takes = "slurm when squeue answers: a submission may have come through that nobody saw the end of"
        check(said is not None, "sweep.engine", "slurm", takes)
        columns = ["--noheader", "--parsable2", "--allocations", "--format=JobID"]
        said = said or asked("sacct", *columns, named)
        jobs = sorted({line.strip().partition("_")[0] for line in (said or "").split()})
        if not jobs:
            return []
        return [jobs[0]] if count == 1 else [f"{jobs[0]}_{place}" for place in range(count)]

    def _job_name(self, label: str) -> str:
        """What jobs are called, by folder and submission; squeue would take a comma for a list."""
        folder = re.sub(r"[^\w.=+-]+", "_", self._folder.parent.parent.name)
        return f"bwdln-{folder}-{label}"

    def _parameters(self, label: str) -> dict[str, Any]:
        """The options in the words of submitit."""
        given = dataclasses.asdict(self._options) | {"setup": list(self._options.setup)}
        del given["max_num_timeout"]
        parameters = {option: value for option, value in given.items() if value is not None}
        # When one of the processes of a task dies, the others wait for it in vain.
        parameters["srun_args"] = ["--kill-on-bad-exit=1"]
        if self._options.cpus_per_task is not None:  # srun does not take it over from sbatch
            parameters["srun_args"].append(f"--cpus-per-task={self._options.cpus_per_task}")
        others = {"requeue": True} | (self._options.additional_parameters or {})
        return parameters | {"additional_parameters": others, "job_name": self._job_name(label)}

    def _given(self) -> str:
        """The options that are not as they are by default, as text."""
        fields = dataclasses.fields(self._options)
        given = {each.name: getattr(self._options, each.name) for each in fields}
        return (
            ", ".join(f"{e.name}={given[e.name]}" for e in fields if given[e.name] != e.default) or "nothing"
        )

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """See `base.Engine`. The queue knows jobs for minutes after their end; then accounting, if any."""
        jobs = sorted({name.partition("_")[0] for name in names}, key=int)
        if not jobs:
            return {}
        columns = ["--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i|%T|%r"]
        queue = asked("squeue", *columns)
        if queue is None:
            return dict.fromkeys(names, Standing("unknown"))
        found = _read(queue)
        if any(name not in found for name in names):
            columns = ["--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}"]
            found = _read(asked("sacct", *columns, "--format=JobID,State,Reason") or "") | found
        return {name: found.get(name, Standing("ended", "Slurm knows it no more")) for name in names}

    def reaches(self, name: str) -> bool:
        """See `base.Engine`."""
        return True

    def cancel(self, names: Sequence[str]) -> None:
        """See `base.Engine`."""
        if names and asked("scancel", *names) is None:
            log.warning("scancel did not end %s", ", ".join(names))

    def kill(self, names: Sequence[str]) -> None:
        """See `base.Engine`: Slurm kills what it cancels, some seconds later."""
        self.cancel(names)

    def log(self, name: str) -> Path | None:
        """See `base.Engine`; what the process printed, or else what Slurm did."""
        return self._folder / "logs" / f"{name}_0_log.err"

    def close(self) -> None:
        """See `base.Engine`."""


def asked(*command: str) -> str | None:
    """What a command of Slurm answers, nothing where it knows none of the jobs; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" in done.stderr:
        return ""
    return None if done.returncode else done.stdout


def _read(lines: str) -> dict[str, Standing]:
    """The standing of each job in lines of `ID|STATE|REASON`."""
    found = {}
    for line in lines.splitlines():
        name, state, reason = (part.strip() for part in line.split("|", 2))
        state = state.split(" ")[0]  # CANCELLED by 1000
        if state in WAITING:
            found[name] = Standing("stuck" if reason.strip("()") in NEVER else "waiting", reason)
        elif state in RUNNING:
            found[name] = Standing("running")
        else:
            found[name] = Standing("ended", state if reason in ("None", "") else f"{state}, {reason}")
    return found
