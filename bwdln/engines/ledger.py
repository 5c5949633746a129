"""What a sweep is about, and what of it was handed out, in a file: for whoever looks on or comes back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bwdln import results
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
    """

    def __init__(self, store: Path) -> None:
        """Reads what is there; a file that cannot be read is as none."""
        self._path, self._written = store / "ledger.json", 0.0
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self.engine: str = found.get("engine", "inline")
        self.jobs: dict[int, str] = {int(job): key for job, key in found.get("jobs", {}).items()}
        self.failed: dict[int, str] = {int(job): why for job, why in found.get("failed", {}).items()}
        self.tasks: dict[str, Handed] = {
            name: Handed(**task) for name, task in found.get("tasks", {}).items()
        }

    def begin(self, engine: str, keys: Mapping[int, str]) -> None:
        """A command begins, with these keys of jobs; of an earlier one the tasks of this engine are left."""
        self.tasks = self.out() if engine == self.engine else {}
        self.engine, self.jobs, self.failed = engine, dict(keys), {}
        self.save()

    def out(self) -> dict[str, Handed]:
        """The tasks that are waiting or running, or that nobody has looked at since they ended."""
        return {name: task for name, task in self.tasks.items() if task.state == "out"}

    def save(self) -> None:
        """Write all of it at once."""
        content: dict[str, Any] = {"engine": self.engine, "jobs": self.jobs, "failed": self.failed}
        content["tasks"] = {name: asdict(task) for name, task in self.tasks.items()}
        write(self._path, content)
        self._written = time.monotonic()

    def save_sometimes(self) -> None:
        """Write it unless that was just done; whoever comes back can tell the rest from the store."""
        if time.monotonic() - self._written > PACE:
            self.save()


def write(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all. Raises `InvalidOption` where that cannot be."""
    results.writable(path.parent)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.json")
    try:
        with results.writing(path.parent):
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Any:
    """The content of a file of JSON; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, InvalidOption):
        return None
