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
        yield lambda at: bar.update(task, description=state(at), completed=at.step, total=at.steps)


def state(at: Any) -> str:
    """Where a run stands, from its `simulate.Progress`; the time left comes behind it."""
    gaps = f"gap {at.best_gap:.1e}, median {at.median_gap:.1e}"
    return f"step {at.step:,}/{at.steps:,} · {at.running}/{at.lanes} running · {gaps} · left"


def table(rows: Sequence[Any]) -> Table:
    """A table of the rows of `analysis.summary`."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("seed", "final loss", "gap", "relative gap", "rank", "steps", "flow time"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("outcome", no_wrap=True)
    for row in rows:
        numbers = f"{row.loss:.6g}", f"{row.gap:.1e}", f"{row.relative_gap:.1e}", f"{row.rank}"
        times = f"{row.step:,}", f"{row.time:.4g}"
        result.add_row(f"{row.seed}", *numbers, *times, row.outcome.replace("_", " "))
    return result


def plain(renderable: Any) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def show(rows: Sequence[Any]) -> None:
    """Print the table: in color on a terminal, else as plain text."""
    console = Console()
    if not console.is_terminal:
        print(plain(table(rows)))
        return
    console.print(table(rows[:LISTED]))
    if len(rows) > LISTED:
        console.print(f"… and {len(rows) - LISTED:,} more seeds: see the log", highlight=False)
