"""What a run shows: its progress on standard error, its summary on standard output."""

from __future__ import annotations

import datetime
import io
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from bwdln.batching import Detached

#: As many programs of a plan are listed.
LISTED_PROGRAMS = 12
#: A text in a table of a sweep is so long at most; the file holds all of it.
LONGEST = 60
#: As many seeds are listed on a terminal; the log and the result hold all.
LISTED = 32


@contextmanager
def progress() -> Iterator[Callable[[Any], None]]:
    """A progress bar as a function of `simulate.Progress`; silent unless on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda at: None
        return
    columns = (
        bars.BarColumn(bar_width=max(5, min(30, console.width - 76))),
        bars.TextColumn("{task.description}"),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=console) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda at: bar.update(task, description=state(at), completed=at.position, total=at.end)


def state(at: Any) -> str:
    """Where a run stands, from its `Progress`; the time left comes behind it."""
    number = "{:,.0f}" if at.clock == "step" else "{:.4g}"
    place = f"{at.clock} {number.format(at.position)}/{number.format(at.end)}"
    gaps = f"gap {at.best_gap:.1e}, median {at.median_gap:.1e}"
    ended = [f", {count:,} {name}" for name in ("converged", "diverged") if (count := getattr(at, name))]
    return f"{place} · {at.running:,}/{at.lanes:,} running{''.join(ended)} · {gaps} · left"


# --- sweeps ---------------------------------------------------------------------------------------


def plan(planned: Any, jobs: int, studies: int, engine: str = "inline", away: int | None = None) -> list[str]:
    """What a `sweep.Plan` comes to, in lines; so many of the `jobs` are studies, so many tasks go away."""
    refused, before = len(planned.refused), len(planned.stored)
    failed = jobs - studies - len(planned.configs) + refused
    batches, platform = planned.batches, planned.devices[0].platform
    alone = f", {studies:,} studies one by one" if studies else ""
    to_run = len(planned.keys) - before
    on_device, on_host, gathered = map(_bytes, (*planned.bytes_per_batch, planned.bytes_of_dataset))
    came = f"{to_run:,} to run, {before:,} done before, {failed:,} refused{alone}"
    lines = [f"plan      {_count(jobs, 'job')}: {came}"]
    if not batches:
        return lines
    lines.append(
        f"programs  {len(planned.programs):,}, "
        f"for {_count(planned.lanes, 'lane')} in {_count(len(batches), 'batch', 'batches')}"
    )
    names = _names_of_programs([program[0].pieces[0].problem for program in planned.programs])
    for program, name in zip(planned.programs[:LISTED_PROGRAMS], names, strict=False):
        numbers = {job for batch in program for piece in batch.pieces for job in piece.jobs}
        lanes = sum(batch.lanes for batch in program)
        counts = _count(len(numbers), "job"), _count(lanes, "lane"), _count(len(program), "batch", "batches")
        lines.append(f"          {name}: {', '.join(counts)}")
    if len(planned.programs) > LISTED_PROGRAMS:
        lines.append(f"          … and {len(planned.programs) - LISTED_PROGRAMS:,} more")
    if engine != "inline":
        lines.append(f"engine    {engine}" + ("" if away is None else f", {_count(away, 'task')}"))
    lines.append(
        f"devices   {len(planned.devices)} x {platform}" if away is None else "devices   those of each task"
    )
    lines.append(
        f"memory    about {on_device} on the devices, {on_host} for records and targets, "
        f"in the largest batch; {gathered} here for the dataset"
    )
    return lines


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def _names_of_programs(problems: Sequence[Any]) -> list[str]:
    """What a program is for, from a problem of each; with the options that others of its kind have not."""
    kinds = [f"{each.static.loss.name}, {each.static.dynamics.name}" for each in problems]
    options = [_compiled_options(each) for each in problems]
    names = []
    for problem, kind, own in zip(problems, kinds, options, strict=True):
        alike = [others for other, others in zip(kinds, options, strict=True) if other == kind]
        apart = sorted(option for option in own if not all(option in others for others in alike))
        names.append(", ".join([f"{kind}, widths {_widths(problem.static.widths)}", *apart]))
    return names


def _compiled_options(problem: Any) -> set[str]:
    """The options that a program holds as they are, with their values."""
    config, static = problem.config, problem.static
    found = {f"precision={config.precision}", f"record.count={len(problem.record_points) - 1}"}
    for group, choice in (("loss", static.loss), ("dynamics", static.dynamics)):
        found |= {f"{group}.{name}={getattr(value, 'name', value)}" for name, value in choice.options}
    return found


def _widths(widths: Sequence[int]) -> str:
    """Widths as text, equal ones behind each other counted."""
    runs = [(width, len(list(same))) for width, same in itertools.groupby(widths)]
    return " ".join(
        f"{width}×{count}" if count > 2 else " ".join([str(width)] * count) for width, count in runs
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextmanager
def sweep_progress(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Shows a `sweep.SweepProgress`: as two bars on a terminal, and as `progress.json` in the folder.

    The file is replaced at once, about every second, and says in the end how it ended.
    """
    console, began, written = Console(stderr=True), time.perf_counter(), 0.0
    last: list[Any] = []
    columns = (
        bars.BarColumn(bar_width=max(5, min(30, console.width - 90))),
        bars.TextColumn("{task.description}"),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        whole, batch = bar.add_task("planning", total=None), bar.add_task("", total=None, visible=False)

        def show(at: Any) -> None:
            nonlocal written
            last[:] = [at]
            seconds = time.perf_counter() - began
            bar.update(whole, description=_of_sweep(at, seconds), completed=_lanes_done(at), total=at.lanes)
            if at.running is None:
                bar.reset(batch, visible=False, total=None)
            else:
                position = {"completed": at.running.position, "total": at.running.end}
                bar.update(batch, description=state(at.running), visible=True, **position)
            if seconds - written > 1.0:
                written = seconds
                _write_progress(folder, at, seconds, "running")

        ending = "failed"
        try:
            yield show
            ending = "finished"
        except KeyboardInterrupt:
            ending = "interrupted"
            raise
        except Detached:
            ending = "detached"
            raise
        finally:
            if last:
                _write_progress(folder, last[0], time.perf_counter() - began, ending)


def _of_sweep(at: Any, seconds: float) -> str:
    """Where a sweep stands; the time left comes behind it."""
    failed = f", {at.failed:,} failed" if at.failed else ""
    lanes = f"{_lanes_done(at):,.0f}/{at.lanes:,} lanes, {_lanes_done(at) / max(seconds, 1):.3g} a second"
    return f"{at.done:,}/{at.jobs:,} jobs{failed} · {lanes} · left"


def _lanes_done(at: Any) -> float:
    """Lanes that ended, those of the batch that runs by how far it is on its clock."""
    if at.running is None:
        return float(at.lanes_done)
    return float(at.lanes_done + at.running.lanes * min(1.0, at.running.position / at.running.end))


def _write_progress(folder: Path, at: Any, seconds: float, ending: str) -> None:
    """Replace `progress.json`, so that no reader sees half of it. A full disk is not its business."""
    done = _lanes_done(at)
    left = seconds * (at.lanes - done) / done if done else None
    content = at._asdict() | {
        "state": ending,
        "running": None if at.running is None else at.running._asdict(),
        "seconds": round(seconds, 1),
        "seconds_left": None if left is None else round(left, 1),
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path = folder / "progress.json"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(_finite(content), indent=1), encoding="utf-8")
        path.with_suffix(".part").replace(path)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: As many tasks of a status are listed: first those that failed or died, then those that run.
LISTED_TASKS = 20
#: The order in which tasks are listed; what is done is counted only, and why others wait.
OF_INTEREST = ("failed", "stuck", "ended", "unknown", "running")


def status(found: Any) -> list[str]:
    """How a sweep stands, from `engines.status.look`, in lines."""
    failed = sum(found.failed.values())
    left = found.jobs - found.done - found.running - failed
    lines = [
        f"sweep    {found.folder}",
        f"command  {found.command or 'none is at work'}",
        f"jobs     {found.jobs:,}: {found.done:,} done, {found.running:,} running, "
        f"{failed:,} failed, {left:,} to do",
    ]
    if found.tasks:
        states = Counter(task.state for task in found.tasks)
        counts = [f"{states[state]:,} {state}" for state in ("done", "waiting", *reversed(OF_INTEREST))]
        said = ", ".join(each for each in counts if not each.startswith("0 "))
        lines.append(f"tasks    {_count(len(found.tasks), 'task')} of {found.engine}: {said}")
    listed = sorted(
        (task for task in found.tasks if task.state in OF_INTEREST),
        key=lambda task: OF_INTEREST.index(task.state),
    )
    lines += [f"         {_of_task(task)}" for task in listed[:LISTED_TASKS]]
    if len(listed) > LISTED_TASKS:
        lines.append(f"         … and {len(listed) - LISTED_TASKS:,} more")
    waits = Counter(task.reasons[-1] for task in found.tasks if task.state == "waiting" and task.reasons)
    lines += [f"waiting  {count:,} × {reason}" for reason, count in waits.most_common()]
    lines += [f"failed   {count:,} × {reason}" for reason, count in found.failed.most_common()]
    return lines


def _of_task(task: Any) -> str:
    """A task in a line."""
    parts = [f"{task.name} {task.state}", f"{task.lanes_done:,.0f} of {_count(task.lanes, 'lane')}"]
    if task.host is not None:
        parts.append(f"on {task.host}")
    if task.silent is not None:
        parts.append(f"last sign {task.silent:.0f} s ago")
    if task.times > 1:
        parts.append(f"handed out {task.times} times")
    parts += [f"{count} × {reason}" for reason, count in Counter(task.reasons).items()]
    if task.log is not None and task.state != "running":
        parts.append(f"log {task.log}")
    return ", ".join(parts)


# --- tables ---------------------------------------------------------------------------------------


def table(rows: Sequence[Any]) -> Table:
    """A table of the rows of `analysis.summary`."""
    names = ("seed", "final loss", "gap", "relative gap", "rank", "steps", "flow time")
    result = _columns(names)
    result.add_column("outcome", no_wrap=True)
    for row in rows:
        numbers = f"{row.loss:.6g}", f"{row.gap:.1e}", f"{row.relative_gap:.1e}", f"{row.rank}"
        times = f"{row.step:,}", f"{row.time:.4g}"
        result.add_row(f"{row.seed}", *numbers, *times, row.outcome.replace("_", " "))
    return result


def sweep_table(
    rows: Sequence[Any], swept: Mapping[int, Mapping[str, Any]], objective: str
) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells of the rows of `analysis.sweep_rows`; `swept`: what was swept over, by job."""
    names = list(dict.fromkeys(name for options in swept.values() for name in options))
    cells = []
    for row in rows:
        options = [swept[row.job].get(name) for name in names]
        came = [None, f"failed: {row.failed}"] if row.failed else [row.objective, row.outcomes]
        cells.append([row.job, *options, *came, "best" if row.best else ""])
    return ["job", *names, objective, "outcome", ""], cells


def cell(value: Any) -> str:
    """A value in a printed table; long texts, such as why a job failed, are cut."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts, such as the findings of a study."""
    result = _columns(columns)
    for row in rows:
        result.add_row(*row)
    return result


def claims(rows: Sequence[Sequence[str]]) -> list[str]:
    """Two lines for each row of the table of claims, behind the name of its study."""
    lines = []
    for study, group in itertools.groupby(rows, key=lambda row: row[0]):
        lines.append(study)
        for _, statement, source, predicted, measured, held in group:
            lines.append(f"  {'held' if held == 'yes' else 'FAILED':7}{statement} ({source})")
            lines.append(f"         predicted {predicted}; measured {measured}")
    return lines


def _columns(names: Sequence[str]) -> Table:
    """An empty table with columns of numbers."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        result.add_column(name, justify="right", no_wrap=True)
    return result


def plain(renderable: Any) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def show(rows: Sequence[Any]) -> None:
    """Print the table of `analysis.summary`; on a terminal only the first of many seeds."""
    terminal = Console().is_terminal
    show_table(table(rows[:LISTED] if terminal else rows))
    if terminal and len(rows) > LISTED:
        Console().print(f"… and {len(rows) - LISTED:,} more seeds: see the log", highlight=False)


def show_table(table: Table) -> None:
    """Print a table: in color on a terminal, else as plain text."""
    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(plain(table))
