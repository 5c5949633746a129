"""The interactive view: its controls, and the data they choose from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bwdln.report.markup import Markup, address, element
from bwdln.report.reading import Section, number
from bwdln.report.view import Axis, Number, Quantity, View

#: A quantity that spans this factor is shown on a log axis at first.
WIDE = 50


def payload(section: Section, base: Path) -> dict[str, Any]:
    """All that the view draws, as what JSON can hold: infinity is the text `inf`, nothing is null."""
    seen = section.view
    if seen is None:
        return {}
    return {
        "noun": seen.noun,
        "numbers": seen.numbers,
        "outcomes": [m or o for o, m in zip(seen.outcomes, seen.messages, strict=True)],
        "failed": [row for row, message in enumerate(seen.messages) if message is not None],
        "folders": {str(each): address(path, base) for each, path in section.folders.items()},
        "axes": [_axis(each) for each in seen.axes],
        "quantities": [
            each._asdict() | {"values": _finite(each.values), "log": _is_wide(each)}
            for each in seen.quantities
        ],
        "curves": seen.curves._asdict()
        | {
            "values": {
                name: [None if each is None else _finite(each) for each in rows]
                for name, rows in seen.curves.values.items()
            }
        },
        "objective": seen.objective,
    }


def _axis(axis: Axis) -> dict[str, Any]:
    shown = [number(value) for value in axis.values] if axis.numeric else axis.values
    return {
        "name": _label(axis),
        "values": axis.values,
        "shown": shown,
        "at": axis.at,
        "numeric": axis.numeric,
    }


def _label(axis: Axis) -> str:
    return axis.name + (f" (with {', '.join(axis.others)})" if axis.others else "")


def _finite(values: list[Number]) -> list[Any]:
    return ["inf" if v is not None and math.isinf(v) else v for v in values]


def _is_wide(quantity: Quantity) -> bool:
    present = [v for v in quantity.values if v is not None and math.isfinite(v)]
    return bool(present) and min(present) > 0 and max(present) > WIDE * min(present)


# --- controls -------------------------------------------------------------------------------------


def controls(seen: View, key: str) -> Markup:
    """Everything to choose, the place of the view, and what is said about it."""
    clock = "flow time" if seen.curves.clock == "time" else "step"
    names = [(str(place), _label(axis)) for place, axis in enumerate(seen.axes)]
    first = next(
        (str(place) for place, axis in enumerate(seen.axes) if axis.numeric), "0" if names else "progress"
    )
    first = first if seen.noun == "job" else "progress"
    second = "" if seen.noun == "seed" else next((place for place, _ in names if place != first), "")
    quantities = [(each.name, each.label) for each in seen.quantities]
    scales = [("linear", "linear"), ("log", "log")]
    fields = [
        _choice("view", "View", [("curves", "curves"), ("map", "heat map")], "curves")
        if len(names) > 1
        else None,
        _choice("x", "Horizontal axis", [*names, ("progress", f"progress ({clock})")], first),
        _choice("color", "Color, second axis", [("", "none"), *names], second),
        _choice("quantity", "Quantity", quantities, seen.objective),
        _choice("yscale", "Scale of the quantity", scales, "log"),
        _choice("xscale", "Scale of the axis", scales, "linear"),
        *(_filter(place, axis) for place, axis in enumerate(seen.axes) if len(seen.axes) > 1),
    ]
    return element(
        "div",
        element("form", *fields, class_="controls", autocomplete="off"),
        element("div", class_="chart", role="group", aria_label="Interactive view"),
        element("p", class_="about", role="status", aria_live="polite"),
        element("p", class_="legend"),
        element(
            "details",
            element("summary", "Values shown"),
            element("div", class_="scroll values"),
            class_="behind",
        ),
        element("noscript", element("p", "The interactive view needs JavaScript; the table below does not.")),
        class_="explore",
        data_source=f"{key}-data",
    )


def _choice(name: str, label: str, options: list[tuple[str, str]], chosen: str) -> Markup:
    listed = [element("option", said, value=value, selected=value == chosen) for value, said in options]
    return element("label", element("span", label), element("select", *listed, name=name, autocomplete="off"))


def _filter(place: int, axis: Axis) -> Markup:
    """A choice of one value of an option, or of all of them."""
    shown = (
        [number(value) for value in axis.values] if axis.numeric else [str(value) for value in axis.values]
    )
    options = [("", f"all {len(shown)}"), *((str(index), said) for index, said in enumerate(shown))]
    choice = _choice(f"filter-{place}", axis.name, options, "")
    return element("div", choice, class_="filter", data_axis=str(place))
