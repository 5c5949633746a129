"""The table as CSV and as Markdown, and what machine and versions it was made with."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import jax

from benchmarks.suite import measure
from benchmarks.suite.measure import Row
from bwdln import lanes

PACKAGES = ("bwdln", "jax", "jaxlib", "numpy", "scipy", "torch", "POT", "ott-jax", "geomstats")
#: What the seconds of a section are of.
UNITS = {
    "losses": "a value and gradient of one pair",
    "descent": "a step of one lane",
    "flow": "an evaluation for one lane",
    "grids": "one lane of the grid, from start to end",
    "scaling": "a step or an evaluation of one lane",
    "startup": "the whole",
}


def machine() -> dict[str, object]:
    """Processor, cores, memory, devices, threads and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": measure.processor(),
        "cores": lanes.cores(),
        "memory_GB": round(memory / 1e9, 1),
        "devices": [each.device_kind for each in jax.local_devices()],
        "threads": "LAPACK of ours 1; programs side by side as many as cores; peers as their lines say",
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def write(rows: Sequence[Row], folder: Path, settings: measure.Settings) -> None:
    """`table.csv`, `table.md` and `machine.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    described = machine()
    (folder / "machine.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [each.name for each in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    (folder / "table.md").write_text("\n".join(_markdown(rows, described, settings)) + "\n", encoding="utf-8")


def _markdown(rows: Sequence[Row], described: dict[str, object], settings: measure.Settings) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in dict(_versions()).items())
    devices = ", ".join(sorted(set(map(str, described["devices"]))))
    yield "# Benchmark"
    yield ""
    yield (
        f"{described['processor']}, {described['cores']} cores, {described['memory_GB']} GB; "
        f"JAX on {devices}; Python {described['python']}, {versions}. {described['threads']}."
    )
    yield ""
    yield (
        f"Medians of {settings.repeats} slices of at least {settings.seconds:g} s, taken in turns after a "
        "warm-up; spread: interquartile range over median. Ratio: over the fastest of ours in the case. "
        "Error: the largest relative one against an independent reference in float64; **disagrees** where it "
        "is too large, whatever the time. Products: the time of the matrix products alone over all of it."
    )
    for section, of_section in groupby(rows, key=lambda row: row.section):
        yield ""
        yield f"## {section}"
        yield ""
        yield f"Time of {UNITS.get(section, section)}."
        for case, of_case in groupby(of_section, key=lambda row: row.case):
            yield ""
            yield f"### {case}"
            yield ""
            yield "| contestant | time | lanes/s | ratio | spread | products | error | note |"
            yield "|---|---:|---:|---:|---:|---:|---:|---|"
            yield from _lines(list(of_case))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    best = best_of_ours(rows)
    for row in sorted(rows, key=lambda row: (math.isnan(row.seconds), row.seconds)):
        name = f"**{row.contestant}**" if row.ours else row.contestant
        timed = not math.isnan(row.seconds)
        error = "" if math.isnan(row.error) else f"{row.error:.0e}"
        cells = [
            name,
            duration(row.seconds),
            f"{1 / row.seconds:,.3g}" if timed else "",
            f"{row.seconds / best:.2f}" if timed and not math.isnan(best) else "",
            f"{row.spread:.0%}" if not math.isnan(row.spread) else "",
            f"{row.ceiling:.0%}" if not math.isnan(row.ceiling) else "",
            error if row.agrees else f"{error} **disagrees**".strip(),
            row.note,
        ]
        yield "| " + " | ".join(cells) + " |"


def best_of_ours(rows: Iterable[Row]) -> float:
    """The least seconds of ours among those that agree; nan if there are none."""
    found = [row.seconds for row in rows if row.ours and row.agrees and not math.isnan(row.seconds)]
    return min(found, default=math.nan)


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    if math.isnan(seconds):
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
