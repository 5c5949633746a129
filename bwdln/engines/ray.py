"""Tasks as those of Ray, on this machine or on a cluster."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bwdln import config, distribution
from bwdln.engines import tasks
from bwdln.engines.base import Standing, importable, library
from bwdln.errors import InvalidOption, check


class Ray:
    """See `base.Engine`. A task ends with the command that handed it out: Ray ties one to the other."""

    outlives = False
    parallel = None
    at_once = 1000
    pace = 0.5
    grace = 2.0

    def __init__(self, options: config.Ray) -> None:
        self._options = options
        self._tasks: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        self._ray: Any = None

    def _connected(self) -> Any:
        """Ray, connected to its cluster, or to one that is started here."""
        if self._ray is None:
            ray = library("ray", "ray")
            self._check_reachable()
            with importable() as variables, warnings.catch_warnings():
                # Ray forks, and at once runs another program: that is safe where JAX has threads.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                try:
                    ray.init(
                        address=self._options.address or "local",
                        runtime_env={"env_vars": variables},
                        include_dashboard=False if self._options.address is None else None,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
                except (ConnectionError, ValueError, RuntimeError) as error:
                    takes = f"the address of a cluster of Ray, or null ({' '.join(str(error).split())})"
                    raise InvalidOption("sweep.ray.address", self._options.address, takes) from error
            self._ray = ray
            if self._options.address is None:
                self._check_room(ray.cluster_resources())
        return self._ray

    def _check_reachable(self) -> None:
        """Raise `InvalidOption` where nothing listens at the address: Ray would look for it for minutes."""
        address = self._options.address or ""
        place = address.removeprefix("ray://")
        takes = "the address of a cluster of Ray, or null (nothing answers there)"
        check(":" not in place or distribution.listens(place), "sweep.ray.address", address, takes)

    def _check_room(self, present: Mapping[str, float]) -> None:
        """Raise `InvalidOption` for a task that this machine will never have room for."""
        for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
            asked, most = getattr(self._options, option) or 0, present.get(resource, 0)
            check(asked <= most, f"sweep.ray.{option}", f"{asked:g}", f"at most the {most:g} of this machine")

    def submit(self, files: Sequence[Path], label: str) -> list[str]:
        """Hand out a task for each file."""
        ray, options = self._connected(), self._options
        resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "memory": options.memory}
        task = ray.remote(max_retries=0, **resources)(tasks.run)
        cores = max(1, int(options.num_cpus))
        references = [task.remote(str(file), cores) for file in files]
        names = [reference.hex() for reference in references]
        self._tasks |= dict(zip(names, references, strict=True))
        self._files |= dict(zip(names, files, strict=True))
        return names

    def find(self, label: str, count: int) -> list[str]:
        """See `base.Engine`: what was submitted has ended with the command that did."""
        return []

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """See `base.Engine`. Tasks of an earlier command have ended with it."""
        own = [self._tasks[name] for name in names if name in self._tasks]
        ended = set(self._ray.wait(own, num_returns=len(own), timeout=0)[0]) if own else set()
        found = {}
        for name in names:
            if name not in self._tasks:
                found[name] = Standing("ended", "it ended with its command")
            elif self._tasks[name] in ended:
                found[name] = Standing("ended", self._reason(self._tasks[name]))
            else:  # Ray does not tell which
                runs = tasks.sign_of(self._files[name]).exists()
                found[name] = Standing("running" if runs else "waiting")
        return found

    def _reason(self, reference: Any) -> str:
        """Why a task ended."""
        try:
            self._ray.get(reference)
        except Exception as error:  # of Ray, or what the task raised
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        return "it left no report"

    def reaches(self, name: str) -> bool:
        """See `base.Engine`."""
        return name in self._tasks

    def cancel(self, names: Sequence[str]) -> None:
        """See `base.Engine`."""
        for name in names:
            if name in self._tasks:
                self._ray.cancel(self._tasks[name], force=False)

    def kill(self, names: Sequence[str]) -> None:
        """See `base.Engine`."""
        for name in names:
            if name in self._tasks:
                self._ray.cancel(self._tasks[name], force=True)

    def log(self, name: str) -> Path | None:
        """See `base.Engine`: Ray keeps what is printed by worker, on the machine of each."""
        return tasks.log_of(self._files[name]) if name in self._files else None

    def close(self) -> None:
        """See `base.Engine`."""
        if self._ray is not None:
            self._ray.shutdown()
