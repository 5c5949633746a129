"""From a command to its results when there is nearly nothing to do, and the seconds it takes to compile.

The command is `experiments.train` with two steps, in a process of its own, with an empty and with a filled
folder of compiled programs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.suite import descent
from benchmarks.suite.measure import Row, Settings
from bwdln import simulate
from bwdln.config import Config, from_mapping
from bwdln.program import _program

ROOT = Path(__file__).resolve().parents[2]
DYNAMICS = {
    "descent": ["dynamics=gradient_descent", "dynamics.steps=2"],
    "end-to-end flow": ["dynamics=end_to_end_flow", "dynamics.end_time=0.01", "initialization.balanced=true"],
}


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    chosen = ["descent"] if settings.short else list(DYNAMICS)
    for name in chosen:
        yield from _commands(name, settings)
    if settings.short:
        return
    yield _row("imports", "import bwdln.simulate", _imports(settings.repeats))
    yield from _compilation()


def _commands(name: str, settings: Settings) -> Iterator[Row]:
    """The whole command with programs compiled anew, and with those of the command before."""
    cold, warm = [], []
    for _ in range(settings.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_command(DYNAMICS[name], folder, f"{folder}/first"))
            if not settings.short:
                warm.append(_command(DYNAMICS[name], folder, f"{folder}/second"))
    yield _row(f"command, {name}", "no compiled programs there", cold, settings.short)
    if warm:
        yield _row(f"command, {name}", "compiled programs there", warm)


def _command(dynamics: list[str], folder: str, output: str) -> float:
    options = [*dynamics, "network.depth=3", "seeds=2", "record.count=1", "figures=never", "report=never"]
    options += [f"programs={folder}/programs", f"hydra.run.dir={output}"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "experiments.train", *options],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def _imports(repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import bwdln.simulate"], cwd=ROOT, check=True)
        found.append(time.perf_counter() - began)
    return found


def _compilation() -> Iterator[Row]:
    """Seconds of tracing, lowering and compiling until a first step, by depth."""
    seconds: defaultdict[str, float] = defaultdict(float)

    def heard(event: str, duration: float, **_: object) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds[event.removeprefix("/jax/core/compile/").removesuffix("_duration")] += duration

    jax.monitoring.register_event_duration_secs_listener(heard)
    for name, config in _programs():
        _program.cache_clear()
        seconds.clear()
        began = time.perf_counter()
        _, running = simulate.begin([simulate.prepare(config)])
        end = np.int32(1) if config.dynamics.name == "gradient_descent" else np.float64(1e-3)
        running.advance(np.full(running.count, end))
        total = time.perf_counter() - began
        running.finish()
        parts = ", ".join(f"{part} {value:.2f} s" for part, value in sorted(seconds.items()))
        row = _row("first step, in a running process", name, [total])
        row.note = f"{parts}; all programs of a run, those of the start, too"
        yield row


def _programs() -> Iterator[tuple[str, Config]]:
    for depth in (1, 10, 100):
        yield f"descent, depth {depth}", descent.job(descent.Case(descent.square(20, depth), 4))
    flow = {
        "target": {"name": "geometric", "dimension": 20, "condition_number": 10.0},
        "network": {"depth": 10},
        "initialization": {"name": "orthogonal", "balanced": True},
        "loss": {"name": "bures_wasserstein"},
        "dynamics": {"name": "end_to_end_flow", "end_time": 1.0},
        "record": {"count": 1},
        "seeds": 4,
    }
    yield "end-to-end flow", from_mapping(flow)


def _row(case: str, contestant: str, seconds: list[float], short: bool = False) -> Row:
    row = Row("startup", case, f"bwdln, {contestant}", 20, 3, 20, 1, "float64", "", True)
    if not short:
        row.seconds, row.minimum = statistics.median(seconds), min(seconds)
        if len(seconds) > 1:
            first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
            row.spread = (third - first) / row.seconds
    return row
