"""Tables of a page: what a study found, and the jobs of a sweep or the seeds of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bwdln.report.markup import Markup, address, element, join
from bwdln.report.reading import Section, number
from bwdln.report.view import Number, View

#: An option gets a choice of its values above the table if it has no more of them.
CHOICES = 40
#: What stands in the table beside the options, as far as it is recorded.
OF_JOBS = ("relative_gap", "loss")
OF_SEEDS = ("loss", "gap", "relative_gap", "rank", "step", "time")
#: The column of claims that says whether they held.
HELD = "held"
#: Sorts behind every number: what is infinite, and behind it what there is not.
INFINITE, NOTHING = 1e306, 1e307


class Column(NamedTuple):
    """A column: its cells by row, what they sort by (None: their texts), and the choices above it."""

    name: str
    cells: list[Any]
    order: list[float] | None
    choices: list[str]


def heading(section: Section) -> str:
    """What the rows of the table are."""
    return "Seeds" if section.kind == "run" else "Jobs"


def rows(section: Section, key: str, base: Path) -> Markup | None:
    """The table of jobs or of seeds, the best first; what failed stands last, with its message."""
    if section.view is None:
        return None
    seen = section.view
    columns = _columns(seen, section, base)
    objective = [_place(value) for value in seen.quantity(seen.objective).values]
    order = sorted(range(len(seen.numbers)), key=lambda row: (seen.messages[row] is not None, objective[row]))
    order = order if seen.noun == "job" else list(range(len(order)))
    body = [
        element(
            "tr",
            *(_cell(column, row) for column in columns),
            id=f"{key}-{seen.noun}-{seen.numbers[row]}",
            class_=_class(seen, row),
        )
        for row in order
    ]
    caption = f"{len(order):,} {heading(section).lower()}; a column's heading sorts by it"
    return _table(
        [column.name for column in columns], body, caption, [c.order is not None for c in columns], columns
    )


def _class(seen: View, row: int) -> str | None:
    if seen.messages[row] is not None:
        return "failed"
    return "best" if row == seen.best else None


def _columns(seen: View, section: Section, base: Path) -> list[Column]:
    names = [seen.objective, *OF_JOBS, seen.curves.clock] if seen.noun == "job" else OF_SEEDS
    recorded = {each.name: each for each in seen.quantities}
    measures = [recorded[name] for name in dict.fromkeys(names) if name in recorded]
    first = Column(
        seen.noun,
        [_number(seen, section, row, base) for row in range(len(seen.numbers))],
        [float(each) for each in seen.numbers],
        [],
    )
    options = [_option(name, column) for name, column in seen.options.items()]
    numbers = [
        Column(
            each.name.replace("_", " "),
            [shown(v, each.name) for v in each.values],
            [_place(v) for v in each.values],
            [],
        )
        for each in measures
    ]
    return [first, *options, *numbers, _outcome(seen)]


def _number(seen: View, section: Section, row: int, base: Path) -> Markup | str:
    number = seen.numbers[row]
    folder = section.folders.get(number)
    said = (
        str(number)
        if folder is None
        else element("a", str(number), href=address(folder, base), title="Open its folder")
    )
    best = element("span", "best", class_="badge") if row == seen.best else None
    return join([said, " ", best]) if best else said


def _option(name: str, column: Sequence[Any]) -> Column:
    said = ["–" if value is None else number(value) for value in column]
    numeric = all(value is None or not isinstance(value, str) for value in column)
    present = dict.fromkeys(value for value in column if value is not None)
    choices = [number(value) for value in (sorted(present) if numeric else present)]
    order = [NOTHING if value is None else float(value) for value in column] if numeric else None
    return Column(name, said, order, choices if 1 < len(choices) <= CHOICES else [])


def _outcome(seen: View) -> Column:
    cells: list[Any] = [
        outcome if message is None else join([element("strong", "failed"), ": ", message])
        for outcome, message in zip(seen.outcomes, seen.messages, strict=True)
    ]
    words = ("converged", "reached end", "stalled", "running", "diverged", "failed")
    present = [word for word in words if any(word in outcome for outcome in seen.outcomes)]
    return Column("outcome", cells, None, present if len(present) > 1 else [])


def shown(value: Number, name: str) -> str:
    """A number of the table: infinite is what diverged, a dash is nothing."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name.endswith("gap") or (value and not 1e-3 <= abs(value) < 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


def _place(value: Number) -> float:
    if value is None:
        return NOTHING
    return max(min(value, INFINITE), -INFINITE)


def findings(section: Section, places: Mapping[str, str]) -> Markup | None:
    """The table and the sentences of a study; `places`: the sections of folders that it names first."""
    found = section.findings
    if found is None:
        return None
    held = found.columns.index(HELD) if found.kind == "claims" and HELD in found.columns else None
    numeric = [all(_is_number(row[place]) for row in found.rows) for place in range(len(found.columns))]

    def cell(text: str, place: int) -> Markup:
        content = _linked(text, places) if place == 0 else text
        return element("td", content, class_="number" if numeric[place] else None)

    body = [
        element(
            "tr",
            *(cell(text, place) for place, text in enumerate(row)),
            class_="failed" if held is not None and row[held] == "no" else None,
        )
        for row in found.rows
    ]
    table = _table(found.columns, body, f"Findings: {found.title}", numeric, []) if found.rows else None
    notes = (
        element("ul", *(element("li", note) for note in found.notes), class_="notes") if found.notes else None
    )
    title = element("p", found.title, class_="lead") if section.kind == "sweep" else None
    return join([title, table, notes])


def _linked(cell: str, places: Mapping[str, str]) -> Markup | str:
    return element("a", cell, href=f"#{places[cell]}") if cell in places else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").replace("−", "-"))
    except ValueError:
        return cell.strip() in ("", "–", "-")
    return True


def _cell(column: Column, row: int) -> Markup:
    order = None if column.order is None else f"{column.order[row]:.10g}"
    classes = None if order is None else "number"
    return element("td", column.cells[row], data_order=order, class_=classes)


def _table(
    names: Sequence[str],
    body: Sequence[Markup],
    caption: str,
    numeric: Sequence[bool],
    columns: Sequence[Column],
) -> Markup:
    """A table in a box that scrolls by itself, with what filters it above."""
    heads = [
        element(
            "th",
            name,
            scope="col",
            class_="number" if is_number else None,
            data_type="num" if is_number else None,
        )
        for name, is_number in zip(names, numeric, strict=True)
    ]
    filters = [
        element(
            "label",
            element("span", column.name),
            element(
                "select",
                element("option", "all", value=""),
                *(element("option", each) for each in column.choices),
                data_column=str(place),
                autocomplete="off",
            ),
        )
        for place, column in enumerate(columns)
        if column.choices
    ]
    # Rows come as lines, so that the page can be read, and compared, as a text.
    table = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody", "\n", join(body, "\n")),
        class_="sortable long" if len(body) > 25 else "sortable",
    )
    return element(
        "div",
        element("form", *filters, class_="filters") if filters else None,
        element("div", table, class_="scroll"),
        class_="table-box",
    )
