"""What a study is: more than one run, from one configuration, with its own table and figures."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bwdln import results, simulate, sweep
from bwdln.analysis import Dataset
from bwdln.config import Config
from bwdln.errors import check
from bwdln.interruption import Interruption
from bwdln.lanes import Progress
from bwdln.registry import Registry, load_plugins
from bwdln.results import Result
from bwdln.simulate import Problem

#: Name -> function (config, folder, on_progress, *, options) -> Findings. The configuration is that of
#: the whole job; a study derives its runs from it. It writes into the folder and replaces nothing there.
STUDIES = Registry("study")

#: Name -> function (dataset, configs, folder) -> Findings, of a sweep that ended: its dataset
#: (`collection`), and the configuration of each of its jobs by number.
SWEEP_STUDIES = Registry("sweep study")

#: Called with where the run in progress stands.
OnProgress = Callable[[Progress], None]


class Claim(NamedTuple):
    """Something that theory or the paper says, and what a study measured of it, in words.

    `source`: where it is said, such as "§6" of docs/theory.md or "the paper"; `held`: whether it is so.
    """

    statement: str
    source: str
    predicted: str
    measured: str
    held: bool


class Findings(NamedTuple):
    """What a study came to, for its user to read.

    `columns` and `rows`: a table of texts. `notes`: sentences. `results`, `tables`, `figures`: the files
    that were written. `score`: what a sweeper that optimizes looks at. `interrupted`: whether Ctrl-C
    ended it early. `claims`: what the study was to find out.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    results: list[Path]
    tables: list[Path]
    figures: list[Path]
    score: float
    interrupted: bool
    claims: Sequence[Claim] = ()


def conduct(config: Config, folder: str | Path, on_progress: OnProgress | None = None) -> Findings:
    """Conduct the study that `config.study` chooses, and write what it finds into the folder.

    Raises `InvalidOption`, before anything compiles, for a study that cannot be conducted.
    """
    if config.study is None:
        raise ValueError("the configuration has no study")
    load_plugins(config.plugins)
    choice = STUDIES.resolved(config.study)
    findings: Findings = STUDIES[choice.name](config, Path(folder), on_progress, **dict(choice.options))
    return findings


def check_sweep_study(name: str | None) -> None:
    """Raise `InvalidOption` unless that is the name of a study of sweeps, or None."""
    known = name is None or name in SWEEP_STUDIES
    check(known, "sweep.study", name, f"null or one of {', '.join(sorted(SWEEP_STUDIES))}")


def conduct_on_sweep(
    name: str, dataset: Dataset, configs: Mapping[int, Config], folder: str | Path
) -> Findings:
    """Conduct the study of that name on a sweep that ended, and write what it finds into the folder.

    Raises `InvalidOption` for a name that is not registered, and where there is nothing to find.
    """
    check_sweep_study(name)
    findings: Findings = SWEEP_STUDIES[name](dataset, configs, Path(folder))
    return findings


# --- the runs of a study --------------------------------------------------------------------------


class Runs(NamedTuple):
    """The results of the runs that finished, by name, the files of all that began, and whether
    Ctrl-C ended them early.
    """

    results: dict[str, Result]
    paths: list[Path]
    interrupted: bool


def prepared(jobs: Mapping[str, Config], folder: Path) -> dict[str, Problem]:
    """The problems of jobs, by name, all checked; the name is the folder of the run in `folder`.

    Raises `InvalidOption` for what cannot be run, and where one of them already has a result.
    """
    taken = [name for name in jobs if (folder / name / "result.nc").exists()]
    check(not taken, "folder", folder, f"one without results; this one has {', '.join(taken)}")
    return {name: simulate.prepare(config) for name, config in jobs.items()}


def run_all(
    problems: Mapping[str, Problem],
    folder: Path | None,
    on_progress: OnProgress | None = None,
    places: int | None = None,
) -> Runs:
    """Run problems, those that differ only in traced numbers together, until Ctrl-C.

    Each result is saved in the folder of its name in `folder`, or not at all if that is None. `places`: see
    `simulate.run_together`.
    """
    finished: dict[str, Result] = {}
    paths: list[Path] = []
    interrupted = False
    for names in sweep.groups(problems):
        together = [problems[name] for name in names]
        done = simulate.run_together(together, on_progress=on_progress, places=places)
        with Interruption(hold=True) as interruption:
            if folder is not None:
                paths += [results.save(each, folder / name) for name, each in zip(names, done, strict=True)]
        complete = not done[0].dataset.attrs["interrupted"]
        finished |= dict(zip(names, done, strict=True)) if complete else {}
        if interruption.requested or not complete:
            interrupted = len(finished) < len(problems)
            break
    return Runs(finished, paths, interrupted)


def check_different(option: str, values: Sequence[float]) -> None:
    """Raise `InvalidOption` where a number comes twice."""
    for value in values:
        check(list(values).count(value) == 1, option, f"{value:g} twice", "different numbers")


def cut_short(runs: Runs, planned: int) -> list[str]:
    """A sentence for runs that Ctrl-C ended early."""
    said = f"interrupted: {len(runs.results)} of {planned} runs finished; all that was recorded is kept"
    return [said] if runs.interrupted else []


# --- what a study writes --------------------------------------------------------------------------


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write rows as comma-separated values with all digits; None and NaN are empty. Returns the path.

    Raises `InvalidOption` if the folder cannot be written.
    """
    results.writable(path.parent)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
    return path


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else repr(float(value))
    return "" if value is None else str(value)


#: The file that says what was found in a folder, for reports and claims; and its layout.
FINDINGS, FINDINGS_SCHEMA = "findings.json", 1


def write_findings(
    found: Findings, folder: Path, *, kind: str, name: str, title: str, seconds: float
) -> Path:
    """Write what a study found into its folder; paths are relative to it. Returns the path of the file.

    `kind`: "study", "sweep study", "landscape" or "claims"; `seconds` it took. A score that is not finite
    is null. Raises `InvalidOption` if the folder cannot be written.
    """

    def inside(paths: Sequence[Path]) -> list[str]:
        return [path.relative_to(folder).as_posix() for path in paths]

    content = {
        "schema": FINDINGS_SCHEMA,
        "kind": kind,
        "name": name,
        "title": title,
        "columns": found.columns,
        "rows": found.rows,
        "notes": found.notes,
        "results": inside(found.results),
        "tables": inside(found.tables),
        "figures": inside(found.figures),
        "score": found.score if math.isfinite(found.score) else None,
        "interrupted": found.interrupted,
        "claims": [claim._asdict() for claim in found.claims],
        "seconds": round(seconds, 2),
    }
    path = results.writable(folder) / FINDINGS
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def title(function: Callable[..., Any]) -> str:
    """What a study is about: the first sentence of its module's docstring, else of its own."""
    text = " ".join(
        (sys.modules[function.__module__].__doc__ or function.__doc__ or function.__name__).split()
    )
    return text.partition(". ")[0].rstrip(".")
