"""What submitit calls in the processes of a job, on this machine or in Slurm."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from bwdln.engines import tasks


class Job:
    """Runs a task, on so many cores, with all the processes of its job; submitit pickles it.

    Told that its time is up, or that others need its place, it saves what it has, and is queued again.
    """

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores

    def __call__(self, path: str) -> None:
        """Run the task in a file."""
        import submitit

        environment = submitit.JobEnvironment()
        if hasattr(os, "setsid") and os.getpid() != os.getpgrp() and environment.cluster == "local":
            os.setsid()  # away from the terminal, whose Ctrl-C is the business of the command
        requeue = signal.getsignal(signal.SIGUSR2)
        with tasks.told_to_save() as came:
            try:
                tasks.run(path, self._cores or _cores_by_slurm(), shared=environment.num_tasks > 1)
            except KeyboardInterrupt:
                if signal.SIGUSR2 in came and callable(requeue):
                    requeue(signal.SIGUSR2, None)  # submitit's: it does not return in the first process
                # Of several processes it is the first that queues the job again: the others must not end it.
                sys.exit(128 + (came[-1] if came else signal.SIGINT) if environment.global_rank == 0 else 0)

    def checkpoint(self, path: str) -> Any:
        """What submitit puts back into the queue: the same, since what was done is in the store."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, path)


def _cores_by_slurm() -> int | None:
    """The cores that Slurm gives to this process, which may see more; None outside of Slurm."""
    of_task, of_node = os.environ.get("SLURM_CPUS_PER_TASK"), os.environ.get("SLURM_CPUS_ON_NODE")
    if of_task is not None:
        return int(of_task)
    beside = int(os.environ.get("SLURM_NTASKS_PER_NODE", 1))
    return None if of_node is None else max(1, int(of_node) // beside)
