"""What a sweep is about, and what of it was handed out, in files: for whoever looks on or comes back."""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bwdln import results
from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption

#: Seconds between two times that changes of tasks are written.
PACE = 1.0


@dataclass
class Handed:
    """A task that was handed out: what it goes by now, how often it was, and how it ended.

    `state`: `out` (waiting or running), `done`, `failed`, or `ended` (it died, and others do what was left of
    it). `lanes`: how many it has.
    """

    name: str
    lanes: int
    times: int = 1
    state: str = "out"
    reasons: list[str] = field(default_factory=list)


class Ledger:
    """The file `ledger.json` of a store.

    `jobs`: the key of each job; `failed`: why jobs have no result; `tasks`: those handed out to `engine`.
    `submitting`: by the label of a submission that nobody has seen the end of, the lanes of its tasks.
    `left`: how many tasks go on without the command that ends.
    """

    def __init__(self, store: Path) -> None:
        """Reads what is there. Raises `InvalidOption` where that cannot be read: it may tell of tasks."""
        self._path, self._parts, self._written = store / "ledger.json", store / "parts.json", 0.0
        found = _found(self._path)
        self.engine: str = found.get("engine", "inline")
        self.jobs: dict[int, str] = {int(job): key for job, key in found.get("jobs", {}).items()}
        self.failed: dict[int, str] = {int(job): why for job, why in found.get("failed", {}).items()}
        try:
            tasks = {name: Handed(**task) for name, task in found.get("tasks", {}).items()}
        except TypeError as error:
            takes = f"a folder whose {self._path.name} is of this version ({error})"
            raise InvalidOption("hydra.sweep.dir", store.parent, takes) from error
        self.tasks: dict[str, Handed] = tasks
        self.submitting: dict[str, dict[str, int]] = found.get("submitting", {})
        self.left = 0

    def begin(self, engine: str, keys: Mapping[int, str], failed: Mapping[int, str]) -> None:
        """A command begins, with these jobs; of an earlier one the tasks of this engine are left."""
        if engine != self.engine:
            self.tasks, self.submitting = {}, {}
        self.engine, self.jobs, self.failed = engine, dict(keys), dict(failed)
        self.tasks = self.out()
        self.save()

    def out(self) -> dict[str, Handed]:
        """The tasks that are waiting or running, or that nobody has looked at since they ended."""
        return {name: task for name, task in self.tasks.items() if task.state == "out"}

    def handed(self, task: str, lanes: int, name: str) -> None:
        """A task was handed out, maybe once more, and goes by this name now."""
        before = self.tasks.get(task, Handed("", lanes, times=0))
        self.tasks[task] = replace(before, name=name, times=before.times + 1, state="out")

    def submitted(self) -> dict[str, Handed]:
        """The tasks of submissions that nobody has seen the end of, which go by no name yet."""
        every = itertools.chain.from_iterable(lanes.items() for lanes in self.submitting.values())
        return {task: Handed("", lanes) for task, lanes in every}

    def parts(self) -> list[Config]:
        """The pieces of jobs that were cut, of all that was ever handed out."""
        return [from_mapping(config) for config in _found(self._parts).values()]

    def add_parts(self, parts: Mapping[str, Config]) -> None:
        """Remember pieces of jobs that were cut, by their keys."""
        known = _found(self._parts) if parts else {}
        if new := {key: config.mapping() for key, config in parts.items() if key not in known}:
            write(self._parts, known | new)

    def save(self) -> None:
        """Write all of it at once."""
        content: dict[str, Any] = {"engine": self.engine, "jobs": self.jobs, "failed": self.failed}
        content["submitting"] = self.submitting
        content["tasks"] = {name: asdict(task) for name, task in self.tasks.items()}
        write(self._path, content)
        self._written = time.monotonic()

    def save_sometimes(self) -> None:
        """Write it unless that was just done; whoever comes back can tell the rest from the store."""
        if time.monotonic() - self._written > PACE:
            self.save()


def _found(path: Path) -> dict[str, Any]:
    """The content of a file, nothing where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError) as error:
        takes = f"a folder whose {path.name} can be read ({error})"
        raise InvalidOption("hydra.sweep.dir", path.parent.parent, takes) from error


def write(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all. Raises `InvalidOption` where that cannot be."""
    results.writable(path.parent)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.json")
    try:
        with results.writing(path.parent):
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Any:
    """The content of a file of JSON; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, InvalidOption):
        return None
