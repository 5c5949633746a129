"""What a run shows: its progress on standard error, its summary on standard output."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table

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
    return f"{place} · {at.running}/{at.lanes} running · {gaps} · left"


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


def listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts, such as the findings of a study."""
    result = _columns(columns)
    for row in rows:
        result.add_row(*row)
    return result


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
