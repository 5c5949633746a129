"""Train a batch of generative deep linear networks: `python -m experiments.train --help`.

Tab completion runs this file as a script; it looks for the text @hydra.main in it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: only the folder of this file is on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bwdln.config import Training
from bwdln.errors import check
from bwdln.interruption import Interruption
from experiments import command_line
from experiments.batches import Batches

if TYPE_CHECKING:
    from bwdln.results import Result
    from bwdln.studies import Findings

log = logging.getLogger("experiments.train")  # also where this is __main__

#: The relative gap within which a seed counts as having reached the optimum.
REACHED = 1e-9
#: How many seeds that did not reach it are explained on the terminal; the log explains all.
SHORTFALLS = 8


def train(job: Training, folder: Path) -> float:
    """Run a configuration, save results and figures in the folder, and print a summary.

    Returns the objective, by default the median of the final relative gaps, or a huge number where that
    is not finite, since sweepers that optimize cannot take NaN. Ctrl-C ends it early, with exit status 130.
    """
    # JAX: not at the start, so that --help is quick; all of it here, where Ctrl-C simply ends it.
    from bwdln import figures, simulate, studies  # noqa: F401

    takes = "null without -m: it looks at a whole sweep"
    check(job.sweep.study is None or command_line.is_sweep(), "sweep.study", job.sweep.study, takes)
    takes = "inline without -m and hydra/launcher=batched: what is handed out are the batches of a sweep"
    check(job.sweep.engine == "inline", "sweep.engine", job.sweep.engine, takes)
    _describe(job)
    value, interrupted = run(job, folder) if job.config.study is None else study(job, folder)
    if interrupted:
        sys.exit(command_line.INTERRUPTED)
    return _finite(value)


def run(job: Training, folder: Path) -> tuple[float, bool]:
    """A single run: its objective, and whether it was interrupted."""
    from bwdln import analysis, figures, results, simulate
    from experiments import display

    began = time.perf_counter()
    analysis.check_objective(job.output.objective)
    with display.progress() as on_progress:
        result = simulate.run(job.config, on_progress=on_progress)
    with Interruption(hold=True):
        path = results.save(result, folder)
    interrupted = bool(result.dataset.attrs["interrupted"])
    if interrupted:
        report(["interrupted: what was recorded until now is kept"])
    summarize(result)
    auto = job.output.figures == "auto" and not command_line.is_sweep()
    drawn = figures.save_all(result, folder) if auto or job.output.figures == "always" else []
    written = [("result", path), *page(job.output.report, folder)]
    report(ending(folder, written, drawn, time.perf_counter() - began))
    return analysis.objective(result, job.output.objective), interrupted


def finish(result: Result, job: Training, folder: Path) -> float:
    """What is left to do as a job whose result came from a sweep: its log, its figures, its objective."""
    from bwdln import analysis, figures

    _describe(job)
    for row in analysis.summary(result):
        log.info("%s", row)
    if job.output.figures == "always":
        figures.save_all(result, folder)
    return _finite(analysis.objective(result, job.output.objective))


def _describe(job: Training) -> None:
    """Log the configuration, the versions and the device."""
    from bwdln import results

    log.info("configuration:\n%s", json.dumps(job.config.mapping(), indent=2))
    for name, value in results.provenance().items():
        log.info("%s: %s", name, value)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else sys.float_info.max


def study(job: Training, folder: Path) -> tuple[float, bool]:
    """A study of several runs: its score, and whether it was interrupted."""
    from bwdln import studies
    from experiments import display

    began = time.perf_counter()
    with display.progress() as on_progress:
        found = studies.conduct(job.config, folder, on_progress)
    show_findings(found)
    assert job.config.study is not None
    name = job.config.study.name
    about = {"name": name, "title": studies.base.title(studies.STUDIES[name])}
    studies.write_findings(found, folder, kind="study", seconds=time.perf_counter() - began, **about)
    paths = [*(("result", path) for path in found.results), *(("table", path) for path in found.tables)]
    paths += page(job.output.report, folder)
    report(ending(folder, paths, found.figures, time.perf_counter() - began))
    return found.score, found.interrupted


def page(choice: str, folder: Path) -> list[tuple[str, Path]]:
    """Make the page of a folder, for the last lines; jobs of a sweep have none of their own."""
    return [] if choice == "never" or command_line.is_sweep() else make_page(folder)


def make_page(folder: Path) -> list[tuple[str, Path]]:
    """Make the page of a folder; whatever is wrong with it is said in one line, and loses nothing else."""
    from bwdln import report as pages

    try:
        return [("report", pages.make([folder]))]
    except Exception as error:
        line = f"warning: no report was made: {command_line.said(error)}"
        log.info("%s", line)
        print(line, file=sys.stderr)
        return []


def show_findings(found: Findings) -> None:
    """Print and log the table and the sentences of a study."""
    from experiments import display

    if found.rows:
        table = display.listing(found.columns, found.rows)
        log.info("findings:\n%s", display.plain(table))
        display.show_table(table)
    report(found.notes)


def summarize(result: Result) -> None:
    """Print and log how far each seed came."""
    from bwdln import analysis, comparison
    from experiments import display

    rows = analysis.summary(result)
    log.info("summary:\n%s", display.plain(display.table(rows)))
    display.show(rows)
    short = analysis.shortfalls(result, REACHED)
    within = len(rows) - len(short)
    report([f"{within} of {len(rows)} seeds are within {REACHED:.0e} relative gap of the optimum"])
    report(short[:SHORTFALLS])
    if len(short) > SHORTFALLS:
        print(f"and {len(short) - SHORTFALLS} more: see the log")
        log.info("%s", "\n".join(short[SHORTFALLS:]))
    report(comparison.run.verdict_sentences(result))


def ending(
    folder: Path, written: Sequence[tuple[str, Path]], drawn: Sequence[Path], seconds: float
) -> list[str]:
    """The last lines: the time it took and where the files are."""
    parts = [each.name.partition(".") for each in drawn]
    names, kinds = {name for name, _, _ in parts}, {kind for _, _, kind in parts}
    files = f"{_shown(folder)}/{{{','.join(sorted(names))}}}.{{{','.join(sorted(kinds))}}}"
    return [
        f"time     {seconds:.1f} s",
        *(f"{what:8} {_shown(path)}" for what, path in written),
        *([f"figures  {files}"] if drawn else []),
        *(f"log      {_shown(each)}" for each in folder.glob("*.log")),
    ]


def _shown(path: Path) -> Path:
    """The path as seen from the current directory, if it lies in it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def report(lines: Sequence[str]) -> None:
    """Print and log lines."""
    for line in lines:
        print(line)
        log.info("%s", line)


main = command_line.application(train, "config", command_line.training, Batches)

if __name__ == "__main__":
    main()
