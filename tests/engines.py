"""Sweeps by the command line, in processes of their own, compared with one that ran inline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray

ROOT = Path(__file__).resolve().parent.parent
#: Options of every sweep here: nothing to look at.
QUIET = ("report=never", "figures=never")
#: Jobs that take a few seconds each, and save themselves all the time.
LONG = (
    *("loss.tau=0.1,0.2", "network.depth=3", "target.dimension=40", "seeds=2"),
    *("dynamics.steps=12000", "dynamics.step_size=1e-3", "record.count=300", "sweep.checkpoint_seconds=0.2"),
)
#: 200 short jobs, of two programs.
WIDE = (
    "loss.tau=" + ",".join(f"{0.01 + number / 1000:.3f}" for number in range(100)),
    *("network.depth=1,2", "target.dimension=8", "seeds=2", "dynamics.steps=200"),
)


def command(folder: Path, *options: str) -> list[str]:
    """The command line of a sweep into a folder."""
    return [sys.executable, "-m", "experiments.train", "-m", *QUIET, f"hydra.sweep.dir={folder}", *options]


def run(folder: Path, *options: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a sweep to its end, within a few minutes."""
    arguments: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command(folder, *options), **arguments | keywords)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Begin a sweep."""
    return subprocess.Popen(
        command(folder, *options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    """End a command as a machine that fails does."""
    process.kill()
    process.communicate()


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait for something, and give it back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing of the kind within {seconds} s: {condition}")


def began(folder: Path) -> list[dict[str, Any]]:
    """The signs of life of tasks, once the batches of all that run have been saved before their end."""
    store = folder / "store"
    signs = [json.loads(path.read_text()) for path in store.glob("tasks/[!.]*.alive.json")]
    return signs if len(list(store.glob("checkpoints/[!.]*.npz"))) >= len(signs) else []


def ledger(folder: Path) -> dict[str, Any]:
    """What the sweep handed out."""
    path = folder / "store" / "ledger.json"
    return json.loads(path.read_text()) if path.exists() else {"tasks": {}}


def handed_out(folder: Path) -> list[dict[str, Any]]:
    """Its tasks."""
    return list(ledger(folder)["tasks"].values())


def status(folder: Path | str, *options: str) -> str:
    """What `experiments.status` says of a sweep."""
    asked = [sys.executable, "-m", "experiments.status", str(folder), *options]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def kill_task(sign: dict[str, Any]) -> None:
    """Kill the process that gave a sign of life."""
    os.kill(sign["pid"], signal.SIGKILL)


def assert_equal(one: Path, other: Path, tolerance: float = 1e-10) -> None:
    """The datasets of two sweeps are the same but for how long they took."""
    with xarray.open_dataset(one / "sweep.nc") as left, xarray.open_dataset(other / "sweep.nc") as right:
        assert dict(left.sizes) == dict(right.sizes)
        assert set(left.variables) == set(right.variables)
        for name, variable in left.variables.items():
            values, others = variable.values, right[name].values
            if values.dtype.kind in "iufbmM":
                np.testing.assert_allclose(
                    values.astype(float),
                    others.astype(float),
                    rtol=tolerance,
                    atol=tolerance,
                    err_msg=str(name),
                )
            else:
                assert (values == others).all(), name
        assert left.attrs["failed"] == right.attrs["failed"]
