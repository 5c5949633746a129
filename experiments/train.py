"""Train a batch of generative deep linear networks: `python -m experiments.train --help`.

Tab completion runs this file as a script; it looks for the text @hydra.main in it.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: only the folder of this file is on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bwdln.config import Config
from bwdln.interruption import Interruption
from experiments import command_line

if TYPE_CHECKING:
    from bwdln.results import Result

log = logging.getLogger("experiments.train")  # also where this is __main__

#: The relative gap within which a seed counts as having reached the optimum.
REACHED = 1e-9
#: How many seeds that did not reach it are explained on the terminal; the log explains all.
SHORTFALLS = 8


def train(config: Config, folder: Path) -> float:
    """Run a configuration, save results and figures in the folder, and print a summary.

    Returns the median of the final relative gaps, or a huge number where that is not finite, since
    sweepers that optimize cannot take NaN. Ctrl-C ends it early, with exit status 130.
    """
    # JAX: not at the start, so that --help is quick; all of it here, where Ctrl-C simply ends it.
    from bwdln import figures, results, simulate, studies  # noqa: F401

    log.info("configuration:\n%s", json.dumps(config.mapping(), indent=2))
    for name, value in results.provenance().items():
        log.info("%s: %s", name, value)
    gap, interrupted = (run if config.study is None else study)(config, folder)
    if interrupted:
        sys.exit(command_line.INTERRUPTED)
    return gap if math.isfinite(gap) else sys.float_info.max


def run(config: Config, folder: Path) -> tuple[float, bool]:
    """A single run: the median of the final relative gaps, and whether it was interrupted."""
    from bwdln import figures, results, simulate
    from experiments import display

    began = time.perf_counter()
    with display.progress() as on_progress:
        result = simulate.run(config, on_progress=on_progress)
    with Interruption(hold=True):
        path = results.save(result, folder)
    interrupted = bool(result.dataset.attrs["interrupted"])
    if interrupted:
        report(["interrupted: what was recorded until now is kept"])
    gap = summarize(result)
    drawn = figures.save_all(result, folder)
    report(ending(folder, [("result", path)], drawn, time.perf_counter() - began))
    return gap, interrupted


def study(config: Config, folder: Path) -> tuple[float, bool]:
    """A study of several runs: its score, and whether it was interrupted."""
    from bwdln import studies
    from experiments import display

    began = time.perf_counter()
    with display.progress() as on_progress:
        found = studies.conduct(config, folder, on_progress)
    if found.rows:
        table = display.listing(found.columns, found.rows)
        log.info("findings:\n%s", display.plain(table))
        display.show_table(table)
    report(found.notes)
    paths = [*(("result", path) for path in found.results), *(("table", path) for path in found.tables)]
    report(ending(folder, paths, found.figures, time.perf_counter() - began))
    return found.score, found.interrupted


def summarize(result: Result) -> float:
    """Print and log how far each seed came; returns the median of the relative gaps."""
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
    return statistics.median(row.relative_gap for row in rows)


def ending(
    folder: Path, written: Sequence[tuple[str, Path]], drawn: Sequence[Path], seconds: float
) -> list[str]:
    """The last lines: the time it took and where the files are."""
    names, kinds = ({each.stem for each in drawn}, {each.suffix[1:] for each in drawn})
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


main = command_line.application(train)

if __name__ == "__main__":
    main()
